"""NATS with JetStream: the connection, its errors with their fixes, and what is published."""
