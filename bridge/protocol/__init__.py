"""The exactly-once protocol, pure: no socket, no clock, no chance."""
