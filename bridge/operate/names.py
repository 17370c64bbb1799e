"""Names in options and arguments: one that means nothing is an error (exit code 2), with the name that was meant.

An answer such as "no open dead letter matches" to a misspelt name reads as if all were well.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from bridge.errors import BridgeError, ConfigError, UnitFailure
from bridge.problem import nearest, suggestion

if TYPE_CHECKING:
    from bridge.stream.spec import StreamSpec

_SERVERS = re.compile(r"[0-9A-Z]{5}|http_[1-5][0-9]{2}")
"""A SQLSTATE or a status of HTTP: a code that a server may give, whether or not one has."""


def check_name(kind: str, word: str, known: Iterable[str], where: str = "") -> None:
    """Raise ConfigError if `word` is none of the known names."""
    names = sorted(set(known))
    if word not in names:
        raise ConfigError(f"there is no {kind} {word}{where}", hint=suggestion(word, names))


def check_pipeline(plans: Collection[StreamSpec], word: str | None, kept: Iterable[str] = ()) -> None:
    """A pipeline of the configuration, or one of which something is kept."""
    if word is not None:
        check_name("pipeline", word, {spec.name for plan in plans for spec in plan.pipelines} | set(kept))


def check_cause(said: str, word: str, here: Collection[str], kept: Collection[str] = ()) -> None:
    """A code. here: those that what is asked for has; kept: those that anything else has.

    Beside these, our own codes and those that a server may give are known. Vendors have more than anybody can list, so
    a word that is near none passes where nothing has a code yet. Raises ConfigError with `said` and the word.
    """
    if word in here or word in kept:
        return
    ours = set(_our_codes())
    if word in ours:
        return
    if _SERVERS.fullmatch(word):
        hint = nearest(word, here)
    else:
        hint = nearest(word, {*here, *kept, *ours})
        if not hint and (here or kept):
            hint = suggestion(word, {*here, *kept})
    if hint:
        raise ConfigError(f"{said} {word}", hint=hint)


def check_messages(ids: Collection[str], states: Mapping[str, str], wanted: str) -> None:
    """Ids of messages, or their beginnings, of which none is in the state that is wanted. states: of those that there
    are, by id. Raises BridgeError."""
    for each in ids:
        known = {state for one, state in states.items() if one.startswith(each)}
        if known:
            said = f"message {each} is {' and '.join(sorted(known))}, not {wanted}"
            raise BridgeError(said, hint="bridge sink list --state " + min(known))
    if ids:
        raise BridgeError(
            f"there is no message {' or '.join(ids)}; one that was sent or discarded is kept for 7 days",
            hint="bridge sink list has the ids; to send an event again: bridge replay --destination "
            "PIPELINE/DESTINATION --since TIME",
        )


def _our_codes() -> Iterator[str]:
    """Of every kind of failure that a batch has by itself, and of a message that nobody took in time."""
    kinds: list[type[UnitFailure]] = [UnitFailure]
    for kind in kinds:
        kinds += kind.__subclasses__()
        yield kind.code
    yield from ("expired", "no_destination")


def check_event_type(plans: Collection[StreamSpec], word: str, kept: Iterable[str] = ()) -> None:
    """A type that a pipeline takes, or of which something is kept."""
    patterns = {pattern for plan in plans for spec in plan.pipelines for pattern in spec.events}
    if word not in set(kept) and not any(fnmatchcase(word, pattern) for pattern in patterns):
        raise ConfigError(f"no pipeline takes {word}", hint=suggestion(word, patterns))
