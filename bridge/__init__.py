"""Outbox Bridge: every event committed to the outbox reaches the target table exactly once."""

__version__ = "0.1.0"
