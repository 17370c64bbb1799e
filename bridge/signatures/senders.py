"""A preset for each sender whose way to sign is known.

Each preset is what the page in `source` says. Where the sender's own id of a delivery is not signed, it is only the
idempotency key: everything that is signed is the delivery's id, so a copy under another id is still a copy.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from bridge.signatures.scheme import (
    BODY,
    SIGNED,
    Recipe,
    Scheme,
    SignatureSettings,
    Signed,
    Verify,
    is_near,
    is_secret,
)

# -- Standard Webhooks and its family -----------------------------------------------------------------


_STANDARD = Recipe(
    header="webhook-signature",
    signs="{id}.{timestamp}.{body}",
    encoding="base64",
    prefix="v1,",
    separator=" ",
    timestamp="webhook-timestamp",
    delivery="webhook-id",
    secret_encoding="base64",  # noqa: S106  no secret
)


class Standard(Scheme, name="standard"):
    """Standard Webhooks, symmetric keys, v1: OpenAI, Supabase and many more."""

    source = "https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md"
    recipe = _STANDARD
    type: ClassVar[tuple[str, ...]] = ("$body.type",)
    id = ("$headers.webhook_id",)
    idempotency_key = ("$headers.webhook_id",)


class Supabase(Standard, name="supabase"):
    """Standard Webhooks with secrets such as `v1,whsec_...`. Auth hooks do not name an event."""

    source = "https://supabase.com/docs/guides/auth/auth-hooks"
    type = ()


class Svix(Scheme, name="svix"):
    """Standard Webhooks under other names of headers."""

    source = "https://docs.svix.com/receiving/verifying-payloads/how-manual"
    recipe = replace(_STANDARD, header="svix-signature", timestamp="svix-timestamp", delivery="svix-id")
    type = ("$body.type", "$body.eventType")
    id = ("$headers.svix_id",)
    idempotency_key = ("$headers.svix_id",)


class Clerk(Svix, name="clerk"):
    """Svix sends for Clerk."""

    source = "https://clerk.com/docs/guides/development/webhooks/syncing"


class Resend(Svix, name="resend"):
    """Svix sends for Resend."""

    source = "https://resend.com/docs/webhooks/verify-webhooks-requests"


# -- a time and the body ------------------------------------------------------------------------------

_STRIPE = Recipe(
    header="stripe-signature", signs="{timestamp}.{body}", prefix="v1=", separator=",", timestamp="t="
)
_SLACK = Recipe(
    header="x-slack-signature",
    signs="v0:{timestamp}:{body}",
    prefix="v0=",
    timestamp="x-slack-request-timestamp",
)


class Stripe(Scheme, name="stripe"):
    """`t=TIME,v1=HEX[,v1=HEX]`."""

    source = "https://docs.stripe.com/webhooks?verify=verify-manually"
    recipe = _STRIPE
    type = ("$body.type",)
    id = ("$body.id",)
    idempotency_key = ("$body.id",)


class Paddle(Scheme, name="paddle"):
    """`ts=TIME;h1=HEX[;h1=HEX]`."""

    source = "https://developer.paddle.com/webhooks/signature-verification"
    recipe = Recipe(
        header="paddle-signature", signs="{timestamp}:{body}", prefix="h1=", separator=";", timestamp="ts="
    )
    type = ("$body.event_type",)
    id = ("$body.event_id",)
    idempotency_key = ("$body.event_id",)


class Calendly(Scheme, name="calendly"):
    """As Stripe. A body has no id, but it has when it was made, in microseconds."""

    source = "https://developer.calendly.com/api-docs/4c305798a61d3-webhook-signatures"
    recipe = replace(_STRIPE, header="calendly-webhook-signature")
    type = ("$body.event",)
    id = (BODY,)


class Mux(Scheme, name="mux"):
    """As Stripe."""

    source = "https://www.mux.com/docs/core/verify-webhook-signatures"
    recipe = replace(_STRIPE, header="mux-signature")
    type = ("$body.type",)
    id = ("$body.id", SIGNED)
    idempotency_key = ("$body.id",)


class WorkOS(Scheme, name="workos"):
    """As Stripe, in milliseconds."""

    source = "https://workos.com/docs/events/data-syncing/webhooks"
    recipe = replace(_STRIPE, header="workos-signature")
    type = ("$body.event",)
    id = ("$body.id", SIGNED)
    idempotency_key = ("$body.id",)


class Slack(Scheme, name="slack"):
    """The Events API, interactivity and slash commands. Answers url_verification."""

    source = "https://docs.slack.dev/authentication/verifying-requests-from-slack"
    recipe = _SLACK
    type = ("$body.event.type", "$body.type", "slash_command")
    id = ("$body.event_id", SIGNED)
    accepted = 200
    answer = (b"", "text/plain")  # a slash command shows its user whatever is in it
    idempotency_key = ("$body.event_id",)

    @classmethod
    def reply(cls, document: Mapping[str, Any], secrets: tuple[str, ...]) -> Mapping[str, Any] | None:
        """https://docs.slack.dev/reference/events/url_verification, and of a slash command's certificate."""
        if document.get("type") == "url_verification":
            return {"challenge": document.get("challenge")}
        return {} if document.get("ssl_check") == "1" else None


class Zoom(Scheme, name="zoom"):
    """As Slack. Answers endpoint.url_validation. A body has no id, but it has when it was made, in milliseconds."""

    source = "https://developers.zoom.us/docs/api/webhooks/"
    recipe = replace(_SLACK, header="x-zm-signature", timestamp="x-zm-request-timestamp")
    type = ("$body.event",)
    id = (BODY,)
    accepted = 200

    @classmethod
    def reply(cls, document: Mapping[str, Any], secrets: tuple[str, ...]) -> Mapping[str, Any] | None:
        payload = document.get("payload")
        if document.get("event") != "endpoint.url_validation" or not isinstance(payload, Mapping):
            return None
        token = str(payload.get("plainToken"))
        encrypted = hmac.digest(secrets[0].encode(), token.encode(errors="replace"), "sha256").hex()
        return {"plainToken": token, "encryptedToken": encrypted}


class Zendesk(Scheme, name="zendesk"):
    """The time, in ISO 8601, and the body. A trigger's webhook has no type: then it is `webhook`."""

    source = "https://developer.zendesk.com/documentation/webhooks/verifying/"
    recipe = Recipe(
        header="x-zendesk-webhook-signature",
        signs="{timestamp}{body}",
        encoding="base64",
        timestamp="x-zendesk-webhook-signature-timestamp",
    )
    type = ("$body.type", "webhook")
    id = (SIGNED,)
    idempotency_key = ("$headers.x_zendesk_webhook_invocation_id",)


# -- the body -----------------------------------------------------------------------------------------

_GITHUB = Recipe(header="x-hub-signature-256", prefix="sha256=")


class GitHub(Scheme, name="github"):
    """The delivery's id is not signed."""

    source = "https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries"
    recipe = replace(_GITHUB, prefix=None)
    type = ("$headers.x_github_event",)
    id = (SIGNED,)
    idempotency_key = ("$headers.x_github_delivery",)


class Bitbucket(Scheme, name="bitbucket"):
    """As GitHub, in another header."""

    source = "https://support.atlassian.com/bitbucket-cloud/docs/manage-webhooks/"
    recipe = replace(_GITHUB, header="x-hub-signature")
    type = ("$headers.x_event_key",)
    id = (SIGNED,)
    idempotency_key = ("$headers.x_request_uuid",)


class Intercom(Scheme, name="intercom"):
    """HMAC-SHA1 with the app's client secret."""

    source = "https://developers.intercom.com/intercom-api-reference/v1.0/reference/signed-notifications"
    recipe = Recipe(header="x-hub-signature", algorithm="sha1", prefix="sha1=")
    type = ("$body.topic",)
    id = ("$body.id", SIGNED)
    idempotency_key = ("$body.id",)


class PagerDuty(Scheme, name="pagerduty"):
    """Webhooks v3: `v1=HEX[,v1=HEX]`."""

    source = "https://developer.pagerduty.com/docs/verifying-webhook-signatures"
    recipe = Recipe(header="x-pagerduty-signature", prefix="v1=", separator=",")
    type = ("$body.event.event_type",)
    id = ("$body.event.id", SIGNED)
    idempotency_key = ("$body.event.id",)


class CircleCI(Scheme, name="circleci"):
    """As PagerDuty."""

    source = "https://circleci.com/docs/outbound-webhooks/"
    recipe = Recipe(header="circleci-signature", prefix="v1=", separator=",")
    type = ("$body.type",)
    id = ("$body.id", SIGNED)
    idempotency_key = ("$body.id",)


class Vercel(Scheme, name="vercel"):
    """HMAC-SHA1."""

    source = "https://vercel.com/docs/webhooks/webhooks-api"
    recipe = Recipe(header="x-vercel-signature", algorithm="sha1")
    type = ("$body.type",)
    id = ("$body.id", SIGNED)
    idempotency_key = ("$body.id",)


class Linear(Scheme, name="linear"):
    """The body, which has the time in it, in milliseconds."""

    source = "https://linear.app/developers/webhooks"
    recipe = Recipe(header="linear-signature")
    type = ("{{ body.type }}.{{ body.action }}", "$body.type")
    id = (SIGNED,)
    accepted = 200
    idempotency_key = ("$headers.linear_delivery",)

    @classmethod
    def verifier(cls, settings: SignatureSettings) -> Verify:
        verify = super().verifier(settings)
        return lambda request: verify(request) and _is_fresh(request)


def _is_fresh(request: Signed) -> bool:
    """A body without a time is let in once, because its bytes are its id."""
    try:
        time = json.loads(request.body).get("webhookTimestamp")
    except (ValueError, AttributeError, RecursionError):
        return True  # no JSON object: refused as such
    return time is None or is_near(str(time).encode(errors="replace"), request.now)


class Shopify(Scheme, name="shopify"):
    """The body in base64. The topic is not signed, and create, update and cancel of an order may have the same body, so
    both together are the delivery's id."""

    source = "https://shopify.dev/docs/apps/build/webhooks/subscribe/https"
    recipe = Recipe(header="x-shopify-hmac-sha256", encoding="base64")
    type = ("$headers.x_shopify_topic",)
    id = (SIGNED,)
    idempotency_key = ("$headers.x_shopify_webhook_id",)

    @classmethod
    def identity(cls, settings: SignatureSettings) -> Callable[[Signed], bytes | None]:
        return lambda request: request.header(b"x-shopify-topic") + b"\n" + request.body


class Sentry(Scheme, name="sentry"):
    """Integration platform: the body, with the client secret."""

    source = "https://docs.sentry.io/integrations/integration-platform/webhooks/"
    recipe = Recipe(header="sentry-hook-signature")
    type = ("{{ headers.sentry_hook_resource }}.{{ body.action }}", "$headers.sentry_hook_resource")
    id = (SIGNED,)
    idempotency_key = ("$headers.request_id",)


class Typeform(Scheme, name="typeform"):
    """The body in base64."""

    source = "https://www.typeform.com/developers/webhooks/secure-your-webhooks/"
    recipe = Recipe(header="typeform-signature", encoding="base64", prefix="sha256=")
    type = ("$body.event_type",)
    id = ("$body.event_id", SIGNED)
    idempotency_key = ("$body.event_id",)


class LemonSqueezy(Scheme, name="lemonsqueezy"):
    """The body."""

    source = "https://docs.lemonsqueezy.com/help/webhooks/signing-requests"
    recipe = Recipe(header="x-signature")
    type = ("$body.meta.event_name",)
    id = (SIGNED,)
    accepted = 200


class Razorpay(Scheme, name="razorpay"):
    """The body."""

    source = "https://razorpay.com/docs/webhooks/validate-test/"
    recipe = Recipe(header="x-razorpay-signature")
    type = ("$body.event",)
    id = (SIGNED,)
    idempotency_key = ("$headers.x_razorpay_event_id",)


class Paystack(Scheme, name="paystack"):
    """HMAC-SHA512 of the body."""

    source = "https://paystack.com/docs/payments/webhooks/"
    recipe = Recipe(header="x-paystack-signature", algorithm="sha512")
    type = ("$body.event",)
    id = (SIGNED,)
    accepted = 200


# -- the address --------------------------------------------------------------------------------------


class HubSpot(Scheme, name="hubspot"):
    """Version 3: method, address, body and time, in milliseconds. A body is an array of events, whose ids are not
    unique; attemptNumber changes when they are sent again."""

    source = (
        "https://developers.hubspot.com/docs/apps/developer-platform/build-apps/authentication/"
        "request-validation"
    )
    recipe = Recipe(
        header="x-hubspot-signature-v3",
        signs="{method}{url}{body}{timestamp}",
        encoding="base64",
        timestamp="x-hubspot-request-timestamp",
        decode_url=True,
    )
    type = ("$body.subscriptionType", "$body.eventType")
    id = (
        "{{ body.subscriptionId }}:{{ body.eventId }}:{{ body.occurredAt }}"
        ":{{ body.objectId if body.objectId is defined else '' }}",
        SIGNED,
    )
    takes = frozenset({"url"})


class Square(Scheme, name="square"):
    """The address and the body."""

    source = "https://developer.squareup.com/docs/webhooks/step3validate"
    recipe = Recipe(header="x-square-hmacsha256-signature", signs="{url}{body}", encoding="base64")
    type = ("$body.type",)
    id = ("$body.event_id", SIGNED)
    idempotency_key = ("$body.event_id",)
    takes = frozenset({"url"})


class Twilio(Scheme, name="twilio"):
    """HMAC-SHA1 of the address and the fields of the form; of a JSON body, the address has the SHA-256."""

    source = "https://www.twilio.com/docs/usage/webhooks/webhooks-security"
    recipe = Recipe(header="x-twilio-signature", signs="{url}{form}", algorithm="sha1", encoding="base64")
    id = (SIGNED,)
    accepted = 200
    answer = (b"<Response/>", "text/xml")  # TwiML that does nothing; JSON is its error 12300
    idempotency_key = ("$headers.i_twilio_idempotency_token",)
    takes = frozenset({"url"})


class Mandrill(Scheme, name="mandrill"):
    """Mailchimp Transactional: as Twilio. The field mandrill_events is an array of events."""

    source = (
        "https://mandrill.zendesk.com/hc/en-us/articles/360039232513-How-to-Authenticate-Webhook-Requests"
    )
    recipe = Recipe(header="x-mandrill-signature", signs="{url}{form}", algorithm="sha1", encoding="base64")
    type = ("$body.event", "$body.type")
    id = ("{{ body._id }}:{{ body.event }}:{{ body.ts }}", SIGNED)
    accepted = 200
    json_field = "mandrill_events"
    takes = frozenset({"url"})


# -- the secret itself --------------------------------------------------------------------------------


class GitLab(Scheme, name="gitlab"):
    """The secret token in a header; nothing is signed. Before 17.4 GitLab sends no id that a repeat would share."""

    source = "https://docs.gitlab.com/user/project/integrations/webhooks/"
    type = ("$body.object_kind", "$body.event_name", "$body.event_type")
    id = ("$headers.idempotency_key",)
    idempotency_key = ("$headers.idempotency_key",)

    @classmethod
    def verifier(cls, settings: SignatureSettings) -> Verify:
        return lambda request: is_secret(settings.secrets, request.header(b"x-gitlab-token"))
