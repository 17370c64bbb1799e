"""Every `bridge COMMAND` that the program, an alert or a document prints is one that can be typed."""

from __future__ import annotations

from tests.support.printed import HOLE, commands_in, complaint, document_texts, source_texts


def test_every_command_in_a_printed_text_parses() -> None:
    told = {(one.where, written) for one in source_texts() for written in commands_in(one.text)}
    assert len(told) > 120
    refused = {f"{where}: bridge {written}": why for where, written in told if (why := complaint(written))}
    assert refused == {}


def test_every_command_in_a_document_or_an_alert_parses() -> None:
    told = {(one.where, written) for one in document_texts() for written in commands_in(one.text)}
    assert len(told) > 120
    refused = {f"{where}: bridge {written}": why for where, written in told if (why := complaint(written))}
    assert refused == {}


def test_what_cannot_be_typed_is_found() -> None:
    for written in (
        "sink discrad x",
        "dead retry --al",
        "replay --since 24h",
        f"replay --destination {HOLE}",
        "recover --accept-sauce",
        "sink move OLD",
        "decommission ONE TWO",
        "dead list --limit 3",
        "sink list -n many",
    ):
        assert complaint(written), written
    for written in (
        "recover --help shows each",
        "dead retry --cause CODE sends them",
        f"decommission {HOLE}",
    ):
        assert complaint(written) == ""
