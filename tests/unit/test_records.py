"""bridge.records.dataclass beside the standard library's, on the same classes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from bridge import records

Decorator = Callable[..., Any]
STANDARD: Decorator = dataclasses.dataclass
OURS: Decorator = vars(records)["dataclass"]
BOTH = pytest.mark.parametrize("dataclass", [STANDARD, OURS], ids=["standard", "ours"])


def made(dataclass: Decorator, **options: bool) -> Any:
    @dataclass(**{"slots": True, **options})
    class Point:
        kind: ClassVar[str] = "point"
        x: int
        y: int = 7
        seen: list[int] = dataclasses.field(default_factory=list)
        secret: str = dataclasses.field(default="", repr=False, compare=False)

        def moved(self, by: int) -> Any:
            return dataclasses.replace(self, x=self.x + by)

    return Point


@BOTH
@pytest.mark.parametrize("instances", [1, 100])
@pytest.mark.parametrize("frozen", [False, True])
def test_instances_hold_what_they_are_given(dataclass: Decorator, instances: int, *, frozen: bool) -> None:
    point = made(dataclass, frozen=frozen)
    for n in range(instances):
        one, other = point(n, seen=[n]), point(x=n, y=8, secret="s")
        assert (one.x, one.y, one.seen, one.secret, one.kind) == (n, 7, [n], "", "point")
        assert (other.x, other.y, other.seen, other.secret) == (n, 8, [], "s")
        assert point(n).seen is not point(n).seen
        assert repr(one).endswith(f"Point(x={n}, y=7, seen=[{n}])")


@BOTH
@pytest.mark.parametrize("before", [0, 100])
@pytest.mark.parametrize(
    ("given", "named"), [((), {}), ((1, 2, [], "", 5), {}), ((1,), {"x": 2}), ((1,), {"z": 2})]
)
def test_wrong_arguments_are_refused(
    dataclass: Decorator, before: int, given: tuple[Any, ...], named: dict[str, Any]
) -> None:
    point = made(dataclass)
    for _ in range(before):
        point(1)
    with pytest.raises(TypeError):
        point(*given, **named)


@BOTH
def test_equality_order_and_hash(dataclass: Decorator) -> None:
    @dataclass(frozen=True, slots=True, order=True)
    class Version:
        major: int
        minor: int = 0

    assert Version(1) == Version(1, 0)
    assert hash(Version(1)) == hash(Version(1, 0))
    assert sorted([Version(2), Version(1, 5), Version(1)]) == [Version(1), Version(1, 5), Version(2)]
    assert Version(1) != made(dataclass)(1)
    point = made(dataclass)
    assert point(1, secret="a") == point(1, secret="b")
    with pytest.raises(TypeError):
        hash(point(1))
    with pytest.raises(TypeError):
        assert Version(1) < 1


@BOTH
def test_frozen_instances_do_not_change_and_are_copied(dataclass: Decorator) -> None:
    one = made(dataclass, frozen=True)(1, seen=[1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.x = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        del one.x
    again = copy.deepcopy(one)
    assert again == one
    assert again.seen is not one.seen
    assert not hasattr(one, "__dict__")


@BOTH
def test_the_standard_functions_read_it(dataclass: Decorator) -> None:
    point = made(dataclass, frozen=True)
    assert [field.name for field in dataclasses.fields(point)] == ["x", "y", "seen", "secret"]
    assert dataclasses.is_dataclass(point)
    assert dataclasses.asdict(point(1)) == {"x": 1, "y": 7, "seen": [], "secret": ""}
    assert point(1).moved(2) == point(3)
    match point(4):
        case point(x, y):
            assert (x, y) == (4, 7)


@BOTH
def test_subclasses_have_the_fields_of_their_bases_first(dataclass: Decorator) -> None:
    point = made(dataclass)

    @dataclass(slots=True)
    class Placed(point):  # type: ignore[misc,valid-type]
        y: int = 9
        z: int = 3

        def __post_init__(self) -> None:
            self.z += self.y

    one = Placed(1)
    assert (one.x, one.y, one.z) == (1, 9, 12)
    assert [field.name for field in dataclasses.fields(Placed)] == ["x", "y", "seen", "secret", "z"]
    assert point(1).y == 7
    assert not hasattr(one, "__dict__")


def test_nothing_is_compiled_before_an_instance_is_made() -> None:
    point = made(OURS)
    first = point.__init__
    point(1)
    assert point.__init__ is first
    for _ in range(100):
        point(1)
    assert point.__init__ is not first
