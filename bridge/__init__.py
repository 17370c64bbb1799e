"""Outbox Bridge: every event committed to the outbox reaches the target table exactly once."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.producer import emit as emit

__all__ = ["__version__", "emit"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `bridge.emit` on first use: the command starts without it."""
    if name == "emit":
        from bridge.producer import emit  # noqa: PLC0415  (loads psycopg)

        return emit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
