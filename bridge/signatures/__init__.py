"""How senders of webhooks prove who they are: one configurable scheme, and a preset for each sender.

`scheme` has the parts of a signature and their check, `configurable` the schemes that a webhook describes itself,
`senders` the presets. Importing the package knows them all.
"""

from bridge.signatures import configurable, senders
from bridge.signatures.scheme import BODY, SCHEMES, SIGNED, TOLERANCE_SECONDS, Scheme, Signed

__all__ = [
    "BODY",
    "SCHEMES",
    "SIGNED",
    "TOLERANCE_SECONDS",
    "Scheme",
    "Signed",
    "configurable",
    "senders",
]
