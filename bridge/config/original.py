"""What a configuration was made of: enough to make it again where neither its file nor its variables are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Original:
    """file: its path as it was given. variables, files: those that the text asks for, by the name it has for them, with
    their values, secrets too."""

    file: str
    text: str = field(repr=False)
    variables: Mapping[str, str] = field(repr=False)
    files: Mapping[str, str] = field(repr=False)


NOTHING = Original("", "", {}, {})
