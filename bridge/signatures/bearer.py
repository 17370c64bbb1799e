"""The secret itself as a bearer token: for senders that cannot sign."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from functools import partial

from bridge.signatures.scheme import Scheme, Settings, Signed, Verify, keys_of


class Bearer(Scheme):
    """`authorization: Bearer SECRET`."""

    @classmethod
    def verifier(cls, settings: Settings) -> Verify:
        return partial(_verify, keys_of(settings))


def _verify(keys: Iterable[bytes], request: Signed) -> bool:
    scheme, _, token = request.header(b"authorization").partition(b" ")
    given = hashlib.sha256(token.strip()).digest()
    found = False
    for key in keys:
        found |= hmac.compare_digest(hashlib.sha256(key).digest(), given)
    return found and scheme.lower() == b"bearer"
