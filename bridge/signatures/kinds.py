"""Every signature scheme by its name: the modules of this package, except those that schemes share."""

from __future__ import annotations

from bridge.discover import Kinds
from bridge.signatures.scheme import Scheme

SCHEMES = Kinds(__name__, Scheme, but=("kinds", "scheme"))
