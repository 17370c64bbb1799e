"""Accept events over HTTP: a producer like any other, which answers after its event is committed."""
