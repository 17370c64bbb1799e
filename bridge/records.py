"""`@dataclass` as the standard library has it, for a tenth of what that costs a start.

The standard one compiles six methods a class, a third of a millisecond, whether or not anybody makes an instance: 70 of
the 280 ms that `bridge run` took before it connected (docs/performance.md). Here the standard one is asked for
`__init__` when the first instance is made; the other methods need no compiler. `field`, `replace`, `fields` and
`asdict` of the standard library find what they read of a class when they first do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from inspect import get_annotations
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # noqa: PLC0414  so that it is exported
else:

    def dataclass(*, frozen=False, slots=False, eq=True, order=False):
        """The decorator, with the parameters of the standard one that are used here."""
        return lambda plain: _made(plain, frozen=frozen, slots=slots, eq=eq, order=order)


Fields = dict[str, "dataclasses.Field[Any]"]
"""By name, in order."""

R = TypeVar("R")

_FIELDS = "_record_fields"
_FIRST = 20
"""Instances of a class before `__init__` is compiled: most classes have fewer, of a configuration."""


def _made(plain: type, *, frozen: bool, slots: bool, eq: bool, order: bool) -> type:
    inherited: Fields = {}
    for base in reversed(plain.__mro__[1:]):
        inherited |= base.__dict__.get(_FIELDS, {})
    own = {
        name: _field(plain.__dict__.get(name, dataclasses.MISSING), declared)
        for name, declared in get_annotations(plain).items()
        if not declared.startswith("ClassVar")
    }
    fields = inherited | own
    cls = _slotted(plain, own, inherited) if slots else plain
    values = _values([name for name, one in fields.items() if one.compare])
    standard = _Standard(cls, fields, frozen=frozen)
    methods: dict[str, Any] = {
        "__init__": standard.first_init(),
        "__repr__": _repr([name for name, one in fields.items() if one.repr]),
    }
    if eq:
        methods["__eq__"] = _comparison("__eq__", values)
        methods["__hash__"] = (lambda self: hash(values(self))) if frozen else None
    if order:
        methods |= {sign: _comparison(sign, values) for sign in ("__lt__", "__le__", "__gt__", "__ge__")}
    if frozen:
        methods |= {"__setattr__": _refuse, "__delattr__": _refuse}
        methods |= {"__getstate__": _state, "__setstate__": _restore} if slots else {}
    for name, method in methods.items():
        if name not in plain.__dict__:  # its own are left as they are
            setattr(cls, name, method)
    setattr(cls, _FIELDS, fields)
    setattr(cls, "_record_values", staticmethod(_values(list(fields))))  # noqa: B010  as the next
    setattr(cls, "__match_args__", tuple(fields))  # noqa: B010  a `case` reads it; mypy knows of none
    for name in ("__dataclass_fields__", "__dataclass_params__"):
        setattr(cls, name, _Asked(standard, name))
    return cls


def _field(default: Any, declared: str) -> dataclasses.Field[Any]:
    given = isinstance(default, dataclasses.Field)
    made: dataclasses.Field[Any] = default if given else dataclasses.field(default=default)
    made.type = declared  # a string, as everywhere in this package
    return made


def _slotted(plain: type, own: Fields, inherited: Fields) -> type:
    """A class has its slots from the beginning: the same one again."""
    namespace = {name: value for name, value in plain.__dict__.items() if name not in own}
    for name in ("__dict__", "__weakref__"):
        namespace.pop(name, None)
    namespace["__slots__"] = tuple(name for name in own if name not in inherited)
    made = type(plain)(plain.__name__, plain.__bases__, namespace)
    made.__qualname__ = plain.__qualname__
    return made


class _Standard:
    """What the standard decorator makes of the same fields, once somebody needs it."""

    def __init__(self, cls: type, fields: Fields, *, frozen: bool) -> None:
        self._cls, self._fields, self._frozen = cls, fields, frozen
        self._first: object = None

    def complete(self) -> None:
        """Give the class what it has of the standard one."""
        cls = self._cls
        like: dict[str, Any] = {
            name: dataclasses.field(  # one of the two is MISSING
                default=one.default,
                default_factory=one.default_factory,
                repr=one.repr,
                compare=one.compare,
            )
            for name, one in self._fields.items()
        }
        like["__annotations__"] = {name: one.type for name, one in self._fields.items()}
        like["__module__"] = cls.__module__
        if hasattr(cls, "__post_init__"):
            like["__post_init__"] = cls.__post_init__
        plain = type(cls.__name__, (), like)
        made: type = dataclasses.dataclass(repr=False, eq=False, frozen=self._frozen)(plain)
        for name in ("__dataclass_fields__", "__dataclass_params__"):
            setattr(cls, name, getattr(made, name))
        if cls.__dict__["__init__"] is self._first:
            cls.__init__ = made.__init__  # type: ignore[misc]

    def first_init(self) -> Callable[..., None]:
        """`__init__` of the first instances; it takes ten times as long as the one that it brings for the others."""
        fields, made, assign = self._fields, 0, object.__setattr__

        def __init__(this: Any, *given: Any, **named: Any) -> None:
            nonlocal made
            made += 1
            values = dict(zip(fields, given, strict=False)) | named
            wrong = len(values) < len(given) + len(named)
            for name, one in fields.items():
                if name in values:
                    continue
                if one.default_factory is not dataclasses.MISSING:
                    values[name] = one.default_factory()
                elif one.default is not dataclasses.MISSING:
                    values[name] = one.default
            if made > _FIRST or wrong or len(values) != len(fields):
                self.complete()
                self._cls.__init__(this, *given, **named)  # type: ignore[misc]
                return
            for name, value in values.items():
                assign(this, name, value)
            if post_init is not None:
                post_init(this)

        post_init = getattr(self._cls, "__post_init__", None)
        self._first = __init__
        return __init__


def replace(record: R, **changes: Any) -> R:
    """As the standard one, for a fifth of its time: a stream replaces several for each batch."""
    cls = record.__class__
    values = dict(zip(cls.__match_args__, cls._record_values(record), strict=True))  # type: ignore[attr-defined]
    return cls(**values | changes)


class _Asked:
    """An attribute of the class that only the standard library's functions read."""

    def __init__(self, standard: _Standard, name: str) -> None:
        self._standard, self._name = standard, name

    def __get__(self, _: object, owner: type) -> Any:
        self._standard.complete()
        return getattr(owner, self._name)


def _values(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return attrgetter(*names)
    return (lambda self: (getattr(self, names[0]),)) if names else (lambda _: ())


def _comparison(sign: str, values: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any, Any], Any]:
    compare = getattr(tuple, sign)

    def method(self: Any, other: Any) -> Any:
        return compare(values(self), values(other)) if other.__class__ is self.__class__ else NotImplemented

    return method


def _repr(names: Sequence[str]) -> Callable[[Any], str]:
    def __repr__(self: Any) -> str:
        told = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{self.__class__.__qualname__}({told})"

    return __repr__


def _refuse(_: Any, name: str, *__: Any) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to or delete field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, name) for name in self.__match_args__]


def _restore(self: Any, state: list[Any]) -> None:
    for name, value in zip(self.__match_args__, state, strict=True):
        object.__setattr__(self, name, value)
