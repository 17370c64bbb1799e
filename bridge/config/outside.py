"""What a configuration takes from the machine it is read on: variables and files, remembered for original.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path


class Outside(Mapping[str, str]):
    """The environment, which remembers what it was asked for and had: `variables`, and `files` by the path as it is
    written. contents: of files, by that path; other files are read. written_in: the configuration's directory."""

    def __init__(
        self, environ: Mapping[str, str], written_in: Path, contents: Mapping[str, str] | None = None
    ) -> None:
        self.environ = environ
        self.written_in = written_in
        self.variables: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self._contents = contents or {}

    def __getitem__(self, name: str) -> str:
        self.variables[name] = found = self.environ[name]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.environ)

    def __len__(self) -> int:
        return len(self.environ)

    def file(self, path: str, read: Callable[[Path], str]) -> str:
        """A file's text. Raises what `read` raises."""
        known = self._contents.get(path)
        self.files[path] = found = read(self.written_in / path) if known is None else known
        return found
