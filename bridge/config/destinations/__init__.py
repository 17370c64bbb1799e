"""The kinds of destinations, one module each: what is written, what lint says of it, the plain value."""
