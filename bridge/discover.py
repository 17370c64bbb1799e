"""What is added as a file is found by being there: the modules of a package, by name.

A pipeline step, a sink, a signature scheme and a command are one module each, named as the thing is called, in a
package with few other modules. Names are listed without an import: which modules are loaded, and when, is for the
package's `kinds` to say.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def modules_of(package: str, *, but: Collection[str]) -> tuple[str, ...]:
    """The modules of a package that is imported, in the order of the alphabet. but: those that are no kind."""
    return tuple(
        sorted(each.name for each in iter_modules(sys.modules[package].__path__) if each.name not in but)
    )


def made_in(package: str, name: str, base: type[T]) -> type[T]:
    """The one subclass of `base` that a module defines. TypeError when it is not one."""
    module = import_module(f"{package}.{name}")
    found = [each for each in _classes(module) if issubclass(each, base)]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define one {base.__name__}, it defines {len(found)}")
    return found[0]


def _classes(module: ModuleType) -> list[type]:
    return [
        each
        for each in vars(module).values()
        if isinstance(each, type) and each.__module__ == module.__name__
    ]
