"""The section `scale` of bridge.yaml: several machines, this one file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bridge.quantity import Boolean, Integer
from bridge.section import Section


class ScaleSection(Section):
    """How several bridges with this file divide its streams. Absent: one runs them, and others stand by."""

    share: Boolean = False
    """Divide the streams fairly between all bridges that run this file."""
    max_streams: Annotated[Integer, Field(ge=1)] | None = None
    """Streams that one bridge runs at most. Absent: any number."""
