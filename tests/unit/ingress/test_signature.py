"""Signature schemes: the providers' published vectors, and that nothing malformed gets in or raises."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.config.model import Webhook
from bridge.ingress.signature import TOLERANCE_SECONDS, Signed, verifier

# github.com/standard-webhooks/standard-webhooks, the example of its reference libraries
STANDARD = Webhook(secrets=("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",))
STANDARD_HEADERS = {
    b"webhook-id": b"msg_p5jXN8AQM9LWM0D4loKWxJek",
    b"webhook-timestamp": b"1614265330",
    b"webhook-signature": b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
STANDARD_BODY, STANDARD_TIME = b'{"test": 2432232314}', 1614265330

# docs.github.com, "Validating webhook deliveries", "Testing the webhook payload validation"
GITHUB = Webhook(scheme="github", secrets=("It's a Secret to Everybody",))
GITHUB_BODY = b"Hello, World!"
GITHUB_SIGNATURE = b"757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"

# docs.stripe.com/webhooks, "Verify webhook signatures manually"; Stripe publishes no signed example, so this
# one is from: printf '%s' '1492774577.{"id":...}' | openssl dgst -sha256 -hmac whsec_test_secret
STRIPE = Webhook(scheme="stripe", secrets=("whsec_test_secret",))
STRIPE_BODY, STRIPE_TIME = b'{"id":"evt_1","type":"charge.failed"}', 1492774577
STRIPE_SIGNATURE = b"600244ca197b9f3bb2011b57b35db1503d5b88a082c5ff1b17798b4dd62df517"

# RFC 4231, test case 2
PLAIN = Webhook(scheme="hmac", secrets=("Jefe",), header="X-Signature", type="a", id="body")
PLAIN_BODY = b"what do ya want for nothing?"
PLAIN_SIGNATURE = b"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"


def verified(webhook: Webhook, headers: Mapping[bytes, bytes], body: bytes, now: float = 0) -> bool:
    return verifier(webhook)(Signed(headers, body, now))


def stripe(header: bytes, now: float = STRIPE_TIME, body: bytes = STRIPE_BODY) -> bool:
    return verified(STRIPE, {b"stripe-signature": header}, body, now)


def test_the_published_vectors_are_let_in() -> None:
    assert verified(STANDARD, STANDARD_HEADERS, STANDARD_BODY, STANDARD_TIME)
    assert verified(GITHUB, {b"x-hub-signature-256": b"sha256=" + GITHUB_SIGNATURE}, GITHUB_BODY)
    assert stripe(b"t=1492774577,v1=" + STRIPE_SIGNATURE + b",v0=6ffbb59b2300aae63f272406069a9788598b792a")
    assert verified(PLAIN, {b"x-signature": PLAIN_SIGNATURE}, PLAIN_BODY)


def test_a_plain_hmac_may_be_base64() -> None:
    webhook = PLAIN.model_copy(update={"encoding": "base64"})
    signature = base64.b64encode(bytes.fromhex(PLAIN_SIGNATURE.decode()))
    assert verified(webhook, {b"x-signature": signature}, PLAIN_BODY)
    assert not verified(webhook, {b"x-signature": PLAIN_SIGNATURE}, PLAIN_BODY)


def test_a_bearer_secret_is_compared_whole() -> None:
    webhook = Webhook(scheme="bearer", secrets=("one", "two"), type="a")
    assert verified(webhook, {b"authorization": b"Bearer two"}, b"")
    for wrong in (b"Bearer tw", b"Bearer", b"two", b"Basic two", b"Bearer one two", b""):
        assert not verified(webhook, {b"authorization": wrong}, b"")


@pytest.mark.security(10)
@pytest.mark.fault(73)
@pytest.mark.parametrize("scheme", ["standard", "github", "stripe", "hmac"])
def test_one_changed_byte_of_the_body_is_refused(scheme: str) -> None:
    cases = {
        "standard": (STANDARD, STANDARD_HEADERS, STANDARD_BODY, STANDARD_TIME),
        "github": (GITHUB, {b"x-hub-signature-256": b"sha256=" + GITHUB_SIGNATURE}, GITHUB_BODY, 0),
        "stripe": (
            STRIPE,
            {b"stripe-signature": b"t=1492774577,v1=" + STRIPE_SIGNATURE},
            STRIPE_BODY,
            STRIPE_TIME,
        ),
        "hmac": (PLAIN, {b"x-signature": PLAIN_SIGNATURE}, PLAIN_BODY, 0),
    }
    webhook, headers, body, now = cases[scheme]
    assert verified(webhook, headers, body, now)
    assert not verified(webhook, headers, body + b" ", now)
    assert not verified(webhook, {name: value + b"0" for name, value in headers.items()}, body, now)
    assert not verified(webhook, {}, body, now)


@pytest.mark.security(10)
@pytest.mark.fault(74)
def test_a_secret_of_another_is_refused_and_either_of_two_is_let_in() -> None:
    headers = {b"x-hub-signature-256": b"sha256=" + GITHUB_SIGNATURE}
    assert not verified(Webhook(scheme="github", secrets=("another",)), headers, GITHUB_BODY)
    for pair in (("another", *GITHUB.secrets), (*GITHUB.secrets, "another")):
        assert verified(Webhook(scheme="github", secrets=pair), headers, GITHUB_BODY)


@pytest.mark.security(10)
@pytest.mark.fault(74)
def test_a_time_is_good_for_five_minutes_to_either_side() -> None:
    header = b"t=1492774577,v1=" + STRIPE_SIGNATURE
    for away in (-TOLERANCE_SECONDS, 0, TOLERANCE_SECONDS):
        assert stripe(header, STRIPE_TIME + away)
        assert verified(STANDARD, STANDARD_HEADERS, STANDARD_BODY, STANDARD_TIME + away)
    for away in (-TOLERANCE_SECONDS - 1, TOLERANCE_SECONDS + 1):
        assert not stripe(header, STRIPE_TIME + away)
        assert not verified(STANDARD, STANDARD_HEADERS, STANDARD_BODY, STANDARD_TIME + away)


def test_any_of_several_signatures_in_a_header_is_enough() -> None:
    assert stripe(b"t=1492774577,v1=00,v1=" + STRIPE_SIGNATURE)
    several = b"v1a,AAAA v1,AAAA " + STANDARD_HEADERS[b"webhook-signature"]
    headers = {**STANDARD_HEADERS, b"webhook-signature": several}
    assert verified(STANDARD, headers, STANDARD_BODY, STANDARD_TIME)


@pytest.mark.security(10)
@pytest.mark.fault(73)
@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"t=1492774577",
        b"v1=" + STRIPE_SIGNATURE,
        b"t=1492774577,v0=" + STRIPE_SIGNATURE,
        b"t=1492774577,t=1492774577,v1=" + STRIPE_SIGNATURE,
        b"t=+1492774577,v1=" + STRIPE_SIGNATURE,
        b"t=1492774577.0,v1=" + STRIPE_SIGNATURE,
        b"t=\xd9\xa1,v1=" + STRIPE_SIGNATURE,
        b"t=" + b"9" * 5000 + b",v1=" + STRIPE_SIGNATURE,
        b"t=1492774577,v1=" + STRIPE_SIGNATURE[:-2],
        b"t=1492774577,v1=zz",
        b",,,=,=,",
    ],
)
def test_a_malformed_stripe_header_is_refused(header: bytes) -> None:
    assert not stripe(header)


ODD = st.binary(max_size=60) | st.sampled_from(
    [b"v1,", b"v1,AAAA", b"t=1,v1=00", b"t=,v1=", b"sha256=", b"sha256=0", b"Bearer ", b"\xff", b"9" * 400]
)
NAMES = (
    *(b"webhook-id", b"webhook-timestamp", b"webhook-signature", b"stripe-signature"),
    *(b"x-hub-signature-256", b"x-signature", b"authorization"),
)


@pytest.mark.security(10)
@pytest.mark.fault(73)
@given(
    headers=st.dictionaries(st.sampled_from(NAMES), ODD), body=st.binary(max_size=60), now=st.floats(0, 4e9)
)
def test_no_header_and_no_body_raise_or_get_in(headers: dict[bytes, bytes], body: bytes, now: float) -> None:
    bearer = Webhook(scheme="bearer", secrets=("a secret that is not guessed",), type="a")
    for webhook in (STANDARD, GITHUB, STRIPE, PLAIN, bearer):
        assert verified(webhook, headers, body, now) is False
