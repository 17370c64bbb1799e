"""Every sender gets in: its published vector, or else a request that is signed as its documentation describes.

The requests are signed here by hand, one statement a sender, and not by what is under test.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import pytest

from bridge.config.model import Webhook
from bridge.ingress.problem import Refusal
from bridge.ingress.store import Item
from bridge.ingress.webhook import Endpoint
from bridge.signatures import SCHEMES
from bridge.signatures.scheme import FORM

NOW = 1_790_000_000
ISO_NOW = "2026-09-21T14:13:20Z"
SECRET = "of the tests"
KEY = "whsec_" + base64.b64encode(bytes(range(32))).decode()
URL = "https://hooks.example.com/v1/webhooks/hub"
JSON = "application/json"


def hexed(secret: str, message: str, algorithm: str = "sha256") -> str:
    return hmac.new(secret.encode(), message.encode(), algorithm).hexdigest()


def base64ed(secret: str, message: str, algorithm: str = "sha256") -> str:
    return base64.b64encode(hmac.new(secret.encode(), message.encode(), algorithm).digest()).decode()


def svix(secret: str, message: str) -> str:
    key = base64.b64decode(secret.rpartition("whsec_")[2])
    return base64.b64encode(hmac.new(key, message.encode(), "sha256").digest()).decode()


@dataclass(frozen=True)
class Sender:
    """headers: of this body, at this time (unix seconds), with this secret. type: of its event, behind `hub.`. timed:
    the time is signed."""

    headers: Callable[[str, int, str], dict[str, str]]
    body: Any = field(default_factory=lambda: {"type": "a.b", "id": "evt_1"})
    type: str | None = "a.b"
    settings: Mapping[str, Any] = field(default_factory=dict)
    secret: str = SECRET
    timed: bool = False
    delivery: str | None = None
    media_type: str = JSON
    signs_body: bool = True


def _standard(prefix: str) -> Callable[[str, int, str], dict[str, str]]:
    return lambda body, now, secret: {
        f"{prefix}-id": "msg_1",
        f"{prefix}-timestamp": str(now),
        f"{prefix}-signature": "v1,AAAA v1," + svix(secret, f"msg_1.{now}.{body}"),
    }


def _stripe(header: str, unit: int = 1) -> Callable[[str, int, str], dict[str, str]]:
    return lambda body, now, secret: {
        header: f"t={now * unit}, v1=00, v1={hexed(secret, f'{now * unit}.{body}')}"
    }


def _form(body: str, secret: str) -> str:
    fields = sorted(json.loads(body).items())
    return base64ed(secret, URL + "".join(name + value for name, value in fields), "sha1")


SENDERS: dict[str, Sender] = {
    "standard": Sender(_standard("webhook"), secret=KEY, timed=True, delivery="msg_1"),
    "supabase": Sender(
        _standard("webhook"),
        {"user": {"id": "u"}, "email_data": {}},
        None,
        {"type": "auth.email"},
        secret=f"v1,{KEY}",
        timed=True,
        delivery="msg_1",
    ),
    "svix": Sender(_standard("svix"), secret=KEY, timed=True, delivery="msg_1"),
    "clerk": Sender(_standard("svix"), secret=KEY, timed=True, delivery="msg_1"),
    "resend": Sender(_standard("svix"), secret=KEY, timed=True, delivery="msg_1"),
    "stripe": Sender(_stripe("Stripe-Signature"), timed=True, delivery="evt_1"),
    "mux": Sender(_stripe("Mux-Signature"), timed=True, delivery="evt_1"),
    "workos": Sender(
        _stripe("WorkOS-Signature", 1000), {"event": "a.b", "id": "evt_1"}, timed=True, delivery="evt_1"
    ),
    "calendly": Sender(
        _stripe("Calendly-Webhook-Signature"), {"event": "invitee.created"}, "invitee.created", timed=True
    ),
    "paddle": Sender(
        lambda body, now, secret: {"Paddle-Signature": f"ts={now};h1=00;h1={hexed(secret, f'{now}:{body}')}"},
        {"event_type": "a.b", "event_id": "evt_1"},
        timed=True,
        delivery="evt_1",
    ),
    "slack": Sender(
        lambda body, now, secret: {
            "X-Slack-Request-Timestamp": str(now),
            "X-Slack-Signature": f"v0={hexed(secret, f'v0:{now}:{body}')}",
        },
        {"type": "event_callback", "event_id": "Ev1", "event": {"type": "app_mention"}},
        "app_mention",
        timed=True,
        delivery="Ev1",
    ),
    "zoom": Sender(
        lambda body, now, secret: {
            "x-zm-request-timestamp": str(now),
            "x-zm-signature": f"v0={hexed(secret, f'v0:{now}:{body}')}",
        },
        {"event": "meeting.started", "event_ts": 1},
        "meeting.started",
        timed=True,
    ),
    "zendesk": Sender(
        lambda body, now, secret: {
            "X-Zendesk-Webhook-Signature-Timestamp": {NOW: ISO_NOW}.get(now, str(now)),
            "X-Zendesk-Webhook-Signature": base64ed(secret, {NOW: ISO_NOW}.get(now, str(now)) + body),
        },
        {"type": "zen:event-type:user.created", "id": "evt_1"},
        "zen:event-type:user.created",
        timed=True,
    ),
    "github": Sender(
        lambda body, now, secret: {
            "X-GitHub-Event": "push",
            "X-Hub-Signature-256": f"sha256={hexed(secret, body)}",
        },
        type="push",
    ),
    "bitbucket": Sender(
        lambda body, now, secret: {
            "X-Event-Key": "repo:push",
            "X-Hub-Signature": f"sha256={hexed(secret, body)}",
        },
        type="repo:push",
    ),
    "intercom": Sender(
        lambda body, now, secret: {"X-Hub-Signature": f"sha1={hexed(secret, body, 'sha1')}"},
        {"topic": "user.created", "id": "notif_1"},
        "user.created",
        delivery="notif_1",
    ),
    "pagerduty": Sender(
        lambda body, now, secret: {"X-PagerDuty-Signature": f"v1=00,v1={hexed(secret, body)}"},
        {"event": {"id": "01E", "event_type": "incident.triggered"}},
        "incident.triggered",
        delivery="01E",
    ),
    "circleci": Sender(
        lambda body, now, secret: {"circleci-signature": f"v1={hexed(secret, body)},v2=00"}, delivery="evt_1"
    ),
    "vercel": Sender(
        lambda body, now, secret: {"x-vercel-signature": hexed(secret, body, "sha1")}, delivery="evt_1"
    ),
    "linear": Sender(
        lambda body, now, secret: {"Linear-Signature": hexed(secret, body)},
        {"type": "Issue", "action": "create", "webhookTimestamp": NOW * 1000},
        "Issue.create",
    ),
    "shopify": Sender(
        lambda body, now, secret: {
            "X-Shopify-Topic": "orders/create",
            "X-Shopify-Hmac-Sha256": base64ed(secret, body),
        },
        type="orders.create",
    ),
    "sentry": Sender(
        lambda body, now, secret: {
            "Sentry-Hook-Resource": "issue",
            "Sentry-Hook-Signature": hexed(secret, body),
        },
        {"action": "created"},
        "issue.created",
    ),
    "typeform": Sender(
        lambda body, now, secret: {"Typeform-Signature": f"sha256={base64ed(secret, body)}"},
        {"event_type": "form_response", "event_id": "01H"},
        "form_response",
        delivery="01H",
    ),
    "lemonsqueezy": Sender(
        lambda body, now, secret: {"X-Signature": hexed(secret, body)},
        {"meta": {"event_name": "order_created"}},
        "order_created",
    ),
    "razorpay": Sender(
        lambda body, now, secret: {"X-Razorpay-Signature": hexed(secret, body)},
        {"event": "payment.captured"},
        "payment.captured",
    ),
    "paystack": Sender(
        lambda body, now, secret: {"x-paystack-signature": hexed(secret, body, "sha512")},
        {"event": "charge.success"},
        "charge.success",
    ),
    "hubspot": Sender(
        lambda body, now, secret: {
            "X-HubSpot-Request-Timestamp": str(now * 1000),
            "X-HubSpot-Signature-v3": base64ed(secret, f"POST{URL}{body}{now * 1000}"),
        },
        {
            "subscriptionType": "contact.creation",
            "subscriptionId": 7,
            "eventId": 1,
            "occurredAt": 2,
            "objectId": 3,
        },
        "contact.creation",
        {"url": URL},
        timed=True,
        delivery="7:1:2:3",
    ),
    "square": Sender(
        lambda body, now, secret: {"x-square-hmacsha256-signature": base64ed(secret, URL + body)},
        {"type": "payment.created", "event_id": "evt_1"},
        "payment.created",
        {"url": URL},
        delivery="evt_1",
    ),
    "twilio": Sender(
        lambda body, now, secret: {"X-Twilio-Signature": _form(body, secret)},
        {"MessageSid": "SM1", "Body": "a & b = ü"},
        None,
        {"url": URL, "type": "sms.in"},
        media_type=FORM.decode(),
    ),
    "mandrill": Sender(
        lambda body, now, secret: {"X-Mandrill-Signature": _form(body, secret)},
        {"mandrill_events": '[{"event": "open", "_id": "m1", "ts": 5}]'},
        "open",
        {"url": URL},
        delivery="m1:open:5",
        media_type=FORM.decode(),
    ),
    "gitlab": Sender(
        lambda body, now, secret: {
            "X-Gitlab-Token": secret,
            "X-Gitlab-Event": "Push Hook",
            "Idempotency-Key": "d-1",
        },
        {"object_kind": "push"},
        "push",
        delivery="d-1",
        signs_body=False,
    ),
    "hmac": Sender(
        lambda body, now, secret: {"X-Mac": hexed(secret, body)},
        type=None,
        settings={"header": "X-Mac", "type": "a.b", "id": "$body.id"},
        delivery="evt_1",
    ),
    "bearer": Sender(
        lambda body, now, secret: {"Authorization": f"Bearer {secret}"},
        type=None,
        settings={"type": "a.b", "id": "$body.id"},
        delivery="evt_1",
        signs_body=False,
    ),
    "basic": Sender(
        lambda body, now, secret: {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"},
        type=None,
        settings={"type": "a.b", "id": "$body.id"},
        secret="user:pass:word",
        delivery="evt_1",
        signs_body=False,
    ),
}
TIMED = [name for name, sender in SENDERS.items() if sender.timed]


def endpoint(name: str, *secrets: str, now: float = NOW) -> Endpoint:
    sender = SENDERS[name]
    settings = {"scheme": name, "secrets": secrets or (sender.secret,), **sender.settings}
    return Endpoint("hub", Webhook.model_validate(settings), clock=lambda: now)


def taken(
    name: str, to: Endpoint, *, now: int = NOW, change: str = "", headers: Mapping[str, str] = {}
) -> Any:
    """What becomes of the sender's request. change: added to the body after it was signed."""
    sender = SENDERS[name]
    text = json.dumps(sender.body)
    given = {"content-type": sender.media_type, **sender.headers(text, now, sender.secret), **headers}
    body = urlencode(sender.body) if sender.media_type != JSON else text
    sent = {key.lower().encode(): value.encode() for key, value in given.items()}
    return to.take(sent, body.encode() + change.encode())


def one(found: Any) -> Item:
    [item] = found if isinstance(found, list) else [found]
    assert isinstance(item, Item)
    return item


def is_refused(name: str, to: Endpoint, **given: Any) -> bool:
    try:
        taken(name, to, **given)
    except Refusal as refusal:
        return refusal.status == 401
    return False


def test_every_scheme_has_a_sender_here_and_says_where_it_is_documented() -> None:
    assert set(SENDERS) == set(SCHEMES)
    for name in set(SCHEMES) - {"hmac", "bearer"}:
        assert SCHEMES[name].source.startswith("https://"), name


@pytest.mark.parametrize("name", SENDERS)
def test_a_sender_gets_in_and_its_event_has_a_type_and_a_delivery(name: str) -> None:
    sender = SENDERS[name]
    item = one(taken(name, endpoint(name)))
    assert item.type == (f"hub.{sender.type}" if sender.type else sender.settings["type"])
    assert item.delivery is not None
    assert sender.delivery in (None, item.delivery)
    assert one(taken(name, endpoint(name))) == item  # sent again it is the same delivery


@pytest.mark.security(10)
@pytest.mark.parametrize("name", SENDERS)
def test_a_changed_body_another_secret_and_no_signature_are_refused(name: str) -> None:
    sender = SENDERS[name]
    assert is_refused(name, endpoint(name), change=" ") == sender.signs_body
    wrong = f"{sender.secret[:-4]}AAA=" if sender.secret.endswith("=") else f"{sender.secret}!"
    assert is_refused(name, endpoint(name, wrong))
    with pytest.raises(Refusal) as refused:
        endpoint(name).take({b"content-type": b"application/json"}, b"{}")
    assert refused.value.status == 401


@pytest.mark.security(10)
@pytest.mark.parametrize("name", SENDERS)
def test_either_of_two_secrets_is_taken(name: str) -> None:
    secret = SENDERS[name].secret
    other = f"{secret[:-4]}AAA=" if secret.endswith("=") else f"{secret}!"
    for pair in ((secret, other), (other, secret)):
        assert one(taken(name, endpoint(name, *pair)))


@pytest.mark.security(10)
@pytest.mark.parametrize("name", TIMED)
def test_a_signed_time_is_good_for_five_minutes(name: str) -> None:
    for away in (-300, 300):
        assert one(taken(name, endpoint(name, now=NOW + away)))
    for away in (-301, 301):
        assert is_refused(name, endpoint(name, now=NOW + away))


def test_linears_time_is_in_its_body() -> None:
    assert one(taken("linear", endpoint("linear", now=NOW + 299)))
    assert is_refused("linear", endpoint("linear", now=NOW + 301))


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("github", "X-GitHub-Delivery"),
        ("bitbucket", "X-Request-UUID"),
        ("linear", "Linear-Delivery"),
        ("shopify", "X-Shopify-Webhook-Id"),
        ("sentry", "Request-ID"),
        ("zendesk", "X-Zendesk-Webhook-Invocation-Id"),
        ("razorpay", "X-Razorpay-Event-Id"),
        ("twilio", "I-Twilio-Idempotency-Token"),
    ],
)
def test_an_id_that_is_not_signed_is_only_the_idempotency_key(name: str, header: str) -> None:
    first = one(taken(name, endpoint(name), headers={header: "d-1"}))
    copy = one(taken(name, endpoint(name), headers={header: "d-2"}))
    assert (first.idempotency_key, copy.idempotency_key) == ("d-1", "d-2")
    assert first.delivery == copy.delivery


# -- published vectors --------------------------------------------------------------------------------


def let_in(
    settings: Mapping[str, Any], headers: Mapping[str, str], body: str, *, now: float, query: str = ""
) -> bool:
    to = Endpoint("hub", Webhook.model_validate({"type": "a", **settings}), clock=lambda: now)
    sent = {key.lower().encode(): value.encode() for key, value in headers.items()}
    try:
        to.take(sent, body.encode(), query.encode())
    except Refusal as refusal:
        return refusal.status != 401
    return True


SLACK_BODY = (
    "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
    "&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
    "&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    "&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)


def test_slacks_published_request() -> None:
    """docs.slack.dev, "Verifying requests from Slack"."""
    settings = {"scheme": "slack", "secrets": ("8f742231b10e8888abcd99yyyzzz85a5",), "type": None}
    headers = {
        "content-type": FORM.decode(),
        "x-slack-request-timestamp": "1531420618",
        "x-slack-signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    }
    to = Endpoint("chat", Webhook.model_validate(settings), clock=lambda: 1531420618)
    item = one(to.take({k.encode(): v.encode() for k, v in headers.items()}, SLACK_BODY.encode()))
    assert item.type == "chat.slash_command"
    assert json.loads(item.payload)["command"] == "/webhook-collect"
    assert not let_in(settings, headers, SLACK_BODY + "&a=", now=1531420618)


def test_twilios_published_form() -> None:
    """twilio.com/docs, "Webhooks security", and the tests of its libraries: with one value twice, too."""
    settings = {"scheme": "twilio", "secrets": ("12345",), "url": "https://mycompany.com/myapp.php"}
    body = urlencode(
        {
            "Digits": "1234",
            "To": "+18005551212",
            "From": "+14158675309",
            "Caller": "+14158675309",
            "CallSid": "CA1234567890ABCDE",
        }
    )
    headers = {"content-type": FORM.decode(), "x-twilio-signature": "RSOYDt4T1cUTdK1PDd93/VVr8B8="}
    assert let_in(settings, headers, body, now=0, query="foo=1&bar=2")
    assert not let_in(settings, headers, body, now=0, query="foo=1&bar=3")
    assert not let_in(settings, headers, f"{body}&a=b", now=0, query="foo=1&bar=2")
    headers["x-twilio-signature"] = "IK+Dwps556ElfBT0I3Rgjkr1wJU="
    twice = "Sid=CA123&SidAccount=AC123&Digits=5678&Digits=1234&Digits=1234"
    assert let_in(settings, headers, twice, now=0, query="foo=1&bar=2")


def test_twilios_published_json() -> None:
    """The tests of its libraries: a body that is no form is signed by its SHA-256 in the address."""
    settings = {"scheme": "twilio", "secrets": ("12345",), "url": "https://mycompany.com/myapp.php"}
    body = '{"property": "value", "boolean": true}'
    query = "foo=1&bar=2&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620"
    headers = {"content-type": JSON, "x-twilio-signature": "a9nBmqA0ju/hNViExpshrM61xv4="}
    assert let_in(settings, headers, body, now=0, query=query)
    assert not let_in(settings, headers, body + " ", now=0, query=query)
    assert not let_in(settings, {**headers, "content-type": FORM.decode()}, "", now=0, query=query)


def test_squares_published_request() -> None:
    """developer.squareup.com, "Verify and validate an event notification", and the tests of its libraries."""
    settings = {"scheme": "square", "secrets": ("asdf1234",), "url": "https://example.com/webhook"}
    headers = {"x-square-hmacsha256-signature": "2kRE5qRU2tR+tBGlDwMEw2avJ7QM4ikPYD/PJ3bd9Og="}
    assert let_in(settings, headers, '{"hello":"world"}', now=0)
    assert not let_in({**settings, "url": "https://example.com/other"}, headers, '{"hello":"world"}', now=0)


def test_svixs_published_request() -> None:
    """docs.svix.com, "How to verify webhooks with the Svix libraries"."""
    headers = {
        "svix-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "svix-timestamp": "1614265330",
        "svix-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    for scheme in ("svix", "clerk", "resend"):
        settings = {"scheme": scheme, "secrets": ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",)}
        assert let_in(settings, headers, '{"test": 2432232314}', now=1614265330)
        assert not let_in(settings, headers, '{"test": 2432232315}', now=1614265330)


# -- what senders send --------------------------------------------------------------------------------


def bearer(body: str, media_type: str = JSON, **settings: Any) -> Any:
    webhook = Webhook.model_validate({"scheme": "bearer", "secrets": ("s",), "type": "a", **settings})
    sent = {b"authorization": b"Bearer s", b"content-type": media_type.encode(), b"x-id": b"7"}
    return Endpoint("hub", webhook).take(sent, body.encode())


def test_each_element_of_an_array_is_an_event_with_a_delivery_of_its_own() -> None:
    body = '[{"n": 12345678901234567890123.10, "k": "a"}, {"k": "b"}]'
    for written in ("body", "$headers.x_id", "$body.k"):
        items = bearer(body, id=written, idempotency_key="$headers.x_id")
        assert [item.payload for item in items] == [b'{"n":12345678901234567890123.10,"k":"a"}', b'{"k":"b"}']
        assert len({item.delivery for item in items}) == 2
        assert [item.idempotency_key for item in items] == ["7.0", "7.1"]
        assert bearer(body, id=written)[1].delivery == items[1].delivery
    assert bearer("[]") == []
    for wrong, status in (("[1]", 422), ('[{"a": "\\u0000"}]', 422), ('[{"a": NaN}]', 422), ("[{}", 400)):
        with pytest.raises(Refusal) as refused:
            bearer(wrong)
        assert refused.value.status == status, wrong


def test_a_form_is_an_object_of_its_fields_or_the_json_in_its_payload() -> None:
    form = FORM.decode()
    assert json.loads(bearer("a=1&b=%C3%BC+x&a=2&c=", form).payload) == {"a": ["1", "2"], "b": "ü x", "c": ""}
    assert json.loads(bearer(urlencode({"payload": '{"type": "block_actions"}'}), form).payload) == {
        "type": "block_actions"
    }
    assert len(bearer(urlencode({"payload": '[{"a": 1}, {"a": 2}]'}), f"{form}; charset=utf-8")) == 2
    assert bearer('{"a": 1}', form).payload == b'{"a": 1}'  # curl -d says form
    for wrong, status in (("a=%FF", 400), ("a=%00", 422)):
        with pytest.raises(Refusal) as refused:
            bearer(wrong, form)
        assert refused.value.status == status


@pytest.mark.parametrize(
    ("media_type", "told"),
    [
        ("text/xml; charset=utf-8", "text/xml"),
        ("multipart/form-data; boundary=x", "multipart/form-data"),
        ("", "missing"),
        ("<script>", "malformed"),
    ],
)
def test_a_body_that_cannot_be_read_is_told_its_media_type(media_type: str, told: str) -> None:
    with pytest.raises(Refusal) as refused:
        bearer("<a/>", media_type)
    assert (refused.value.status, refused.value.field) == (400, "content-type")
    assert f"its content-type is {told}: a webhook takes JSON and {FORM.decode()}" in refused.value.detail


def test_slack_and_zoom_are_told_that_the_secret_is_known() -> None:
    for name, body, told in (
        (
            "slack",
            {"type": "url_verification", "challenge": "3eZbrw1a", "token": "t"},
            {"challenge": "3eZbrw1a"},
        ),
        ("slack", {"ssl_check": "1", "token": "t"}, {}),
        (
            "zoom",
            {"event": "endpoint.url_validation", "payload": {"plainToken": "qgg8"}},
            {"plainToken": "qgg8", "encryptedToken": hexed(SECRET, "qgg8")},
        ),
    ):
        text = json.dumps(body)
        headers = SENDERS[name].headers(text, NOW, SECRET)
        sent = {key.lower().encode(): value.encode() for key, value in headers.items()}
        assert endpoint(name).take(sent, text.encode()) == told
        with pytest.raises(Refusal):  # whoever does not know it is not answered
            endpoint(name, "another").take(sent, text.encode())


def test_hubspot_signs_some_characters_without_their_percent_encoding() -> None:
    now = str(NOW * 1000)
    message = f"POST{URL}?a=x:y/z@!&b=%20{{}}{now}"
    headers = {"X-HubSpot-Request-Timestamp": now, "X-HubSpot-Signature-v3": base64ed(SECRET, message)}
    settings = {"scheme": "hubspot", "secrets": (SECRET,), "url": URL}
    assert let_in(settings, headers, "{}", now=NOW, query="a=x%3Ay%2Fz%40%21&b=%20")


def test_create_update_and_cancel_with_one_body_are_three_deliveries() -> None:
    items = [
        one(
            taken(
                "shopify",
                endpoint("shopify"),
                headers={"X-Shopify-Topic": topic, "X-Shopify-Webhook-Id": topic},
            )
        )
        for topic in ("orders/create", "orders/updated", "orders/cancelled")
    ]
    assert [item.type for item in items] == [
        "hub.orders.create",
        "hub.orders.updated",
        "hub.orders.cancelled",
    ]
    assert len({item.delivery for item in items}) == len({item.idempotency_key for item in items}) == 3


# -- the configurable scheme --------------------------------------------------------------------------

DESCRIBED: dict[str, dict[str, Any]] = {
    "svix": {
        "header": "svix-signature",
        "signs": "{id}.{timestamp}.{body}",
        "encoding": "base64",
        "prefix": "v1,",
        "separator": " ",
        "timestamp": "svix-timestamp",
        "delivery": "svix-id",
        "secret_encoding": "base64",
    },
    "paddle": {
        "header": "Paddle-Signature",
        "signs": "{timestamp}:{body}",
        "prefix": "h1=",
        "separator": ";",
        "timestamp": "ts=",
    },
    "slack": {
        "header": "X-Slack-Signature",
        "signs": "v0:{timestamp}:{body}",
        "prefix": "v0=",
        "timestamp": "X-Slack-Request-Timestamp",
    },
    "vercel": {"header": "x-vercel-signature", "algorithm": "sha1"},
    "paystack": {"header": "x-paystack-signature", "algorithm": "sha512"},
    "square": {
        "header": "x-square-hmacsha256-signature",
        "encoding": "base64",
        "signs": "{url}{body}",
        "url": URL,
    },
    "zendesk": {
        "header": "X-Zendesk-Webhook-Signature",
        "encoding": "base64",
        "signs": "{timestamp}{body}",
        "timestamp": "X-Zendesk-Webhook-Signature-Timestamp",
    },
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_the_configurable_scheme_can_describe_a_sender(name: str) -> None:
    secret = SENDERS[name].secret
    settings = {"scheme": "hmac", "secrets": (secret,), "type": "a", "id": "body", **DESCRIBED[name]}
    to = Endpoint("hub", Webhook.model_validate(settings), clock=lambda: NOW)
    assert one(taken(name, to))
    assert is_refused(name, to, change=" ")


def test_a_secret_may_be_base64_or_hex_and_bearer_may_have_another_header() -> None:
    body, key = "{}", bytes(range(20))
    mac = hmac.digest(key, body.encode(), hashlib.sha256).hex()
    common = {"scheme": "hmac", "id": "body", "header": "X-Mac"}
    for secret, encoding in ((key.hex(), "hex"), (base64.b64encode(key).decode(), "base64")):
        settings = {**common, "secrets": (secret,), "secret_encoding": encoding}
        assert let_in(settings, {"X-Mac": mac}, body, now=0)
    token = {"scheme": "bearer", "secrets": ("t",), "header": "X-Telegram-Bot-Api-Secret-Token"}
    assert let_in(token, {"X-Telegram-Bot-Api-Secret-Token": "t"}, body, now=0)
    for wrong in ({"X-Telegram-Bot-Api-Secret-Token": "u"}, {"authorization": "Bearer t"}, {}):
        assert not let_in(token, wrong, body, now=0)


def test_an_id_cannot_take_over_what_follows_it() -> None:
    """`a.1` and `1.b` would be signed as `a` and `1.1.b` are."""
    settings = {
        **{"scheme": "hmac", "secrets": (SECRET,), "id": "body", "header": "X-Mac"},
        **{"signs": "{id}.{body}", "delivery": "X-Id"},
    }
    assert let_in(settings, {"X-Id": "a", "X-Mac": hexed(SECRET, 'a.1.{"b": 1}')}, '1.{"b": 1}', now=0)
    assert not let_in(settings, {"X-Id": "a.1", "X-Mac": hexed(SECRET, 'a.1.{"b": 1}')}, '{"b": 1}', now=0)
