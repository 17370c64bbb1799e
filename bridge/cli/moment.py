"""A point in time on the command line: ISO 8601 with time zone, or so long ago (`24h`)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import rich_click as click


class Moment(click.ParamType[datetime] if TYPE_CHECKING else click.ParamType):  # type: ignore[misc]
    """2026-01-31T12:00:00Z, 2026-01-31, or a duration before now such as 90m or 7d. UTC where no zone is given."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        from bridge.config.quantity import parse_duration  # noqa: PLC0415  (pydantic: `--help` needs none)

        if isinstance(value, datetime):
            return value
        try:
            return datetime.now(UTC) - parse_duration(value)
        except ValueError:
            pass
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r} is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 24h",
                param,
                ctx,
            )
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
