"""What a refused message becomes when it is rendered anew."""

from __future__ import annotations

import json

from bridge.postgres.stored import enveloped, opened
from bridge.repair.messages import rendered


def test_a_message_that_nobody_has_is_all_new() -> None:
    body = b'{"to":["a@x.org","b@x.org"],"n":12345678901234567890123.10}'
    assert rendered(body, '{"to": "old@x.org", "text": "old"}') == (body.decode(), "")


def test_of_a_mail_that_some_have_only_the_others_get_the_new_one() -> None:
    sent = {"to": ["b@x.org"], "text": "old", "_shown": ["a@x.org", "b@x.org"], "_refused": [], "_why": None}
    for kept in (json.dumps(sent), enveloped(json.dumps(sent).encode()).decode()):
        text, why = rendered(b'{"to":["a@x.org","b@x.org"],"text":"new"}', kept)
        assert json.loads(text) == sent | {"text": "new"}
        assert why == "to those who did not take it before"


def test_what_a_database_may_not_hold_goes_into_an_envelope() -> None:
    body = '{"text":"Grüße ⚡"}'.encode()
    text, _ = rendered(body, '{"text": "old"}')
    assert text.isascii()
    assert opened(json.loads(text)) == body
