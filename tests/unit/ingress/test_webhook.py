"""A signed body to an event: type, key, ids and payload, as the configuration says."""

from __future__ import annotations

import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bridge.config.model import IngressSection, Webhook
from bridge.ingress.problem import Refusal
from bridge.ingress.store import Item
from bridge.ingress.webhook import Endpoint

SECRET = "of the tests"


def item(body: bytes | dict[str, Any], **given: Any) -> Item:
    """The event of a well-signed request with one object."""
    made = taken(body, **given)
    assert isinstance(made, Item)
    return made


def taken(body: bytes | dict[str, Any], *, scheme: str = "github", **given: Any) -> Any:
    """What becomes of a well-signed request. Header names with _ for -."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = given.pop("headers", {"x_github_event": "push", "x_github_delivery": "d-1"})
    now = 1_700_000_000
    digest = hmac.digest(SECRET.encode(), content, "sha256").hex()
    stripe = hmac.digest(SECRET.encode(), b"%d.%b" % (now, content), "sha256").hex()
    sent = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    sent |= {
        b"x-hub-signature-256": f"sha256={digest}".encode(),
        b"x-mac": digest.encode(),
        b"stripe-signature": f"t={now},v1={stripe}".encode(),
        b"authorization": f"Bearer {SECRET}".encode(),
    }
    webhook = Webhook.model_validate({"scheme": scheme, "secrets": (SECRET,), **given})
    return Endpoint("hub", webhook, clock=lambda: now).take(sent, content)


def test_githubs_event_is_named_by_its_header_and_told_by_its_bytes() -> None:
    made = item(b'{"ref": "main"}')
    assert (made.type, made.payload) == ("hub.push", b'{"ref": "main"}')
    assert made.idempotency_key == "d-1"
    assert made.endpoint == "hub"
    # the delivery's id is not signed: under another one the same bytes are the same delivery
    copy = item(b'{"ref": "main"}', headers={"x_github_event": "push", "x_github_delivery": "d-2"})
    assert copy.delivery == made.delivery
    assert item(b'{"ref": "dev"}').delivery != made.delivery
    assert json.loads(made.headers or b"") == {"webhook": "hub"}


def test_stripes_event_is_named_and_told_by_its_body() -> None:
    made = item({"id": "evt_1", "type": "charge.failed"}, scheme="stripe")
    assert (made.type, made.idempotency_key, made.delivery) == ("hub.charge.failed", "evt_1", "evt_1")


def test_expressions_and_templates_read_body_and_headers() -> None:
    made = item(
        {"id": 7, "data": {"object": {"customer": "cus_1", "amount": 10, "tags": ["a"]}}},
        type="pay.{{ headers.x_kind }}",
        key="$body.data.object.customer",
        idempotency_key="pay-{{ body.id }}",
        id="$body.id",
        payload={
            "customer_id": "$body.data.object.customer",
            "double": "$body.data.object.amount * 2",
            "v": 1,
        },
        headers={"x_kind": "in"},
    )
    assert (made.type, made.key, made.idempotency_key, made.delivery) == ("pay.in", "cus_1", "pay-7", "7")
    assert json.loads(made.payload) == {"customer_id": "cus_1", "double": 20, "v": 1}


def test_one_key_of_a_thing_is_not_one_event_for_all_that_happens_to_it() -> None:
    def keys(**given: Any) -> list[str | None]:
        topics = ("orders/create", "orders/updated", "orders/cancelled", "orders/cancelled")
        settings = {"scheme": "hmac", "header": "X-Mac", "id": "$headers.x_id", **given}
        return [
            item({"id": 7}, **settings, headers={"x_shopify_topic": topic, "x_id": "1"}).idempotency_key
            for topic in topics
        ]

    one = keys(type="shop.order", idempotency_key="$body.id")
    assert one == ["orders/create:7", "orders/updated:7", "orders/cancelled:7", "orders/cancelled:7"]
    told = keys(type="shop.{{ headers.x_shopify_topic | replace('/', '.') }}", idempotency_key="$body.id")
    assert told == ["7"] * 4  # the type tells them apart already
    long = keys(type="shop.order", idempotency_key="{{ body.id }}" + "k" * 250)
    assert len(set(long)) == 3
    assert all(key is not None and key.startswith("sha256:") for key in long)


def test_numbers_that_are_carried_stay_exact() -> None:
    digits = "12345678901234567890123.000000000000000000000100"
    made = item(b'{"a": {"n": %b}}' % digits.encode(), payload={"n": "$body.a.n", "all": "$body.a"})
    assert made.payload == b'{"n":%b,"all":{"n":%b}}' % (digits.encode(), digits.encode())
    assert item(b'{"n":   1.50}').payload == b'{"n":   1.50}'


def test_a_bearers_copy_is_told_only_where_an_id_is_named() -> None:
    assert item({}, scheme="bearer", type="a").delivery is None
    assert item({"id": "x"}, scheme="bearer", type="a", id="$body.id").delivery == "x"
    assert item(b"{}", scheme="hmac", type="a", header="X-Mac", id="body").delivery is not None


@pytest.mark.parametrize(
    ("body", "given", "status"),
    [
        (b"not json", {}, 400),
        (b"[1]", {}, 422),
        (b'{"a": "\\u0000"}', {}, 422),
        (b"{}", {"type": "$body.type"}, 400),
        (b'{"type": ""}', {"type": "$body.type"}, 400),
        (b'{"type": {"a": 1}}', {"type": "$body.type"}, 400),
        (b'{"type": "with blank"}', {"type": "$body.type"}, 400),
        (b'{"type": "%b"}' % (b"x" * 300), {"type": "$body.type"}, 400),
        (b"{}", {"id": "$body.id"}, 400),
        (b'{"a": "x"}', {"payload": {"n": "$body.a / 2"}}, 422),
    ],
)
def test_what_is_signed_but_cannot_become_an_event_is_refused(
    body: bytes, given: dict[str, Any], status: int
) -> None:
    with pytest.raises(Refusal) as refused:
        item(body, **given)
    assert refused.value.status == status


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "type", "a"]), inner),
    max_leaves=12,
)
CONFIGURED: list[dict[str, Any]] = [
    {},
    {"scheme": "stripe"},
    {"scheme": "stripe", "type": "t.{{ body.type }}", "key": "$body.a.id", "payload": {"x": "$body.a + 1"}},
    {
        "scheme": "hmac",
        "header": "X-Mac",
        "type": "$body.type",
        "id": "$body.id",
        "idempotency_key": "$body.a",
    },
]


@pytest.mark.fault(73)
@given(body=st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_signed_body_becomes_an_event_or_a_refusal(body: bytes) -> None:
    for configured in CONFIGURED:
        status, made = 0, []
        try:
            made = taken(body, **configured)
        except Refusal as refusal:
            status = refusal.status
        assert status in (0, 400, 413, 422)
        for each in made if isinstance(made, list) else [made]:
            assert isinstance(json.loads(each.payload), dict)
            assert 0 < len(each.type) <= 200


HMAC = {"scheme": "hmac", "type": "a", "header": "X", "id": "body"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"scheme": "hmac", "type": "a", "header": "X", "id": None}, "hmac has no id of a delivery"),
        ({"scheme": "hmac", "type": "a", "id": "body"}, "header is missing"),
        ({"scheme": "github", "header": "X-A"}, "header is for hmac"),
        ({"scheme": "stripe", "encoding": "base64"}, "encoding is for hmac"),
        ({"scheme": "stripe", "url": "https://a.example"}, "url is for hmac"),
        ({"scheme": "twilio", "type": "a"}, "url is missing"),
        ({"scheme": "square", "url": "https://a.example/?b=1"}, "must not have a query"),
        ({"scheme": "square", "url": "a.example"}, "must be an address"),
        ({"scheme": "basic", "type": "a"}, "not user:password"),
        (HMAC | {"signs": "{timestamp}"}, "signs has no {body}"),
        (HMAC | {"signs": "{time}.{body}"}, "has {time}: the parts are {body}"),
        (HMAC | {"signs": "{timestamp}.{body}"}, "{timestamp} and timestamp need each other"),
        (HMAC | {"delivery": "X-Id"}, "{id} and delivery need each other"),
        (HMAC | {"signs": "{timestamp}.{body}", "timestamp": "t="}, "separator must say"),
        (HMAC | {"signs": "{url}{body}"}, "url is missing"),
        (HMAC | {"secret_encoding": "hex"}, "not hex"),
        ({"scheme": "bearer"}, "requests do not name an event type"),
        ({"scheme": "standard", "secrets": ("not base64!",)}, "not base64"),
        ({"scheme": "github", "type": "$event.type"}, r"reads \$event"),
        ({"scheme": "github", "type": "$body.a +"}, "unexpected"),
        ({"scheme": "github", "payload": {"a": ["{{ meta.id }}"]}}, r"reads \$meta"),
        ({"scheme": "github", "id": "always"}, "the same for every delivery"),
    ],
)
def test_a_configuration_that_could_not_work_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Webhook.model_validate({"secrets": ("s",), **given})


@pytest.mark.parametrize(
    ("origin", "fits"),
    [
        ("https://app.example.com", True),
        ("http://localhost:5173", True),
        ("http://[::1]:5173", True),
        ("https://app.example.com/", False),
        ("https://App.example.com", False),
        ("https://app.example.com:443", False),
        ("app.example.com", False),
        ("*", False),
        ("null", False),
        ("https://a@app.example.com", False),
    ],
)
def test_an_origin_is_written_as_browsers_send_it(origin: str, fits: bool) -> None:
    section = {"api_keys": ("k",), "cors": (origin,)}
    if fits:
        assert IngressSection.model_validate(section).cors == (origin,)
        return
    with pytest.raises(ValidationError, match="must be an origin as browsers send it"):
        IngressSection.model_validate(section)
