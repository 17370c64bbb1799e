"""Find what is added as a file: the modules of a package, by name.

A pipeline step, a destination kind, a sink, a signature scheme and a command are one module each, in a package of their
own. Listing the names imports nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from typing import TypeVar

T = TypeVar("T")


def modules_of(package: str, *, but: Collection[str]) -> tuple[str, ...]:
    """The modules of an imported package, sorted by name. but: the ones to leave out."""
    (folder,) = sys.modules[package].__path__
    names = {name.removesuffix(".py") for name in os.listdir(folder) if name.endswith(".py")}
    return tuple(sorted(names - {"__init__", *but}))


class Kinds(Mapping[str, type[T]]):
    """The modules beside one, by name: each stands for the one subclass of `base` that it defines, and is imported when
    that is asked for."""

    def __init__(self, beside: str, base: type[T], *, but: Collection[str]) -> None:
        """beside: the `__name__` of a module of the package. but: modules that define no kind."""
        self._package = beside.rpartition(".")[0]
        self._base = base
        self._names = modules_of(self._package, but=but)
        self._found: dict[str, type[T]] = {}

    def __getitem__(self, name: str) -> type[T]:
        """Raises KeyError for another name, TypeError for a module that does not define one kind."""
        found = self._found.get(name)
        if found is None:
            if name not in self._names:
                raise KeyError(name)
            found = self._found[name] = self._load(name)
        return found

    def _load(self, name: str) -> type[T]:
        module = import_module(f"{self._package}.{name}")
        own = [
            each
            for each in vars(module).values()
            if isinstance(each, type) and issubclass(each, self._base) and each.__module__ == module.__name__
        ]
        if len(own) != 1:
            raise TypeError(f"{module.__name__} must define one {self._base.__name__}, not {len(own)}")
        return own[0]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
