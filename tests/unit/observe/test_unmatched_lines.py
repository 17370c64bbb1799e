"""What `bridge status` says of types that no pipeline takes."""

from __future__ import annotations

from bridge.observe.unmatched import KEPT, Unmatched, lines
from bridge.planning.taken import TypesTaken


def test_a_misspelt_type_is_among_those_that_the_text_names() -> None:
    unmatched = Unmatched(clock=lambda: 0.0)
    unmatched.use(TypesTaken(("usage.limit_reached",)))
    unmatched.count({f"other.{number}".encode(): 5 for number in range(KEPT - 1)})
    unmatched.count({b"usage.limit_reachd": 1})
    said = lines(unmatched.as_dict())
    assert "1 usage.limit_reachd" in said[1]
    assert "did you mean usage.limit_reached?" in said[1]
    assert f"{5 * (KEPT - 10)} of other types" in said[-2]
