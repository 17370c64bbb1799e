"""Variants of a test, of which one is enough for `make test`."""

from __future__ import annotations

from typing import Any

import pytest


def first_fast(*values: Any) -> list[Any]:
    """For parametrize: the first in `make test`, the others in `make test-all` alone."""
    return [values[0], *(pytest.param(value, marks=pytest.mark.slow) for value in values[1:])]
