"""Observability: metrics, logs, health, the admin server and its page."""
