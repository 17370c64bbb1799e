"""A file of a secret that is being replaced, and one that has been."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.config.load import load
from bridge.config.rotated import rotated
from bridge.config.substitution import files_away
from bridge.errors import ConfigError

TEXT = """
version: 1
source: { dsn: "host=s password=${file:pw}" }
connections:
  warehouse: { type: postgres, dsn: "host=t password=${file:pw}" }
  hook: { type: webhook, url: "https://example.com/${file:token}", secret: "${file:secret}" }
pipelines:
  p:
    event: t
    destinations:
      told: { connection: hook, data: { n: $event.n } }
"""
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("pw", "old"), ("token", "old\n"), ("secret", SECRET)):
        (tmp_path / name).write_text(text)
    (tmp_path / "bridge.yaml").write_text(TEXT)
    return tmp_path


@pytest.mark.parametrize("text", ["", "\n", "\r\n", None])
@pytest.mark.parametrize("name", ["pw", "token", "secret"])
def test_a_file_that_is_away_or_empty_changes_nothing(name: str, text: str | None, folder: Path) -> None:
    config = load(folder / "bridge.yaml", {})
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    assert rotated(config) is None
    assert files_away(TEXT, folder) == [str(folder / name)] * TEXT.count(f"file:{name}")
    with pytest.raises(ConfigError, match=r"is empty|cannot be read"):
        load(folder / "bridge.yaml", {})
    if name == "pw":
        with pytest.raises(ValueError, match=r"is empty|cannot be read"):
            config.source.dsn.reread()  # type: ignore[attr-defined]
    other = "secret" if name == "token" else "token"
    before = (folder / other).read_text()
    (folder / other).write_text(SECRET.replace("M", "N"))
    fresh = rotated(config)
    assert fresh is not None
    assert fresh.original.files[name] == config.original.files[name], "another file does not wait for it"
    assert fresh.connections["hook"] != config.connections["hook"]
    (folder / other).write_text(before)
    (folder / name).write_text(SECRET if name == "secret" else "new")
    fresh = rotated(config)
    if name == "secret":  # as it was
        assert fresh is None
        return
    assert fresh is not None
    assert fresh.source.dsn == config.source.dsn, "a database's stays until it is refused"
    assert (fresh.connections["hook"] != config.connections["hook"]) == (name == "token")
    assert files_away(TEXT, folder) == []
