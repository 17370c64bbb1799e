"""Events in over HTTP: a producer like any other, which answers once its event is committed."""
