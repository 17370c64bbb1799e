"""Nkeys and JWTs as nsc makes them, for servers that know users by them (NATS documentation, JWT guide)."""

from __future__ import annotations

import base64
import json
import os
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]

_UNLIMITED = -1


class Nkey:
    """A pair of an operator, an account or a user."""

    def __init__(self, prefix: int = nkeys.PREFIX_BYTE_USER) -> None:
        self.seed: bytes = nkeys.encode_seed(os.urandom(32), prefix)
        self.public: str = nkeys.from_seed(bytearray(self.seed)).public_key.decode()

    def write(self, file: Path) -> Path:
        file.write_bytes(self.seed + b"\n")
        file.chmod(0o600)
        return file

    def jwt(self, subject: str, name: str, nats: dict[str, Any], *, expires: int | None = None) -> str:
        """A JWT that this key signs."""
        claims: dict[str, Any] = {"iss": self.public, "sub": subject, "name": name, "iat": int(time.time())}
        claims["nats"] = {"version": 2, **nats}
        if expires is not None:
            claims["exp"] = int(time.time()) + expires
        claims["jti"] = base64.b32encode(sha256(json.dumps(claims).encode()).digest()).decode().rstrip("=")
        header = {"typ": "JWT", "alg": "ed25519-nkey"}
        signed = f"{_part(header)}.{_part(claims)}"
        signature = nkeys.from_seed(bytearray(self.seed)).sign(signed.encode())
        return f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


class Operator:
    """An operator with one account that has JetStream. `configuration`: what the server's file says of them."""

    def __init__(self) -> None:
        self.key = Nkey(nkeys.PREFIX_BYTE_OPERATOR)
        self.account = Nkey(nkeys.PREFIX_BYTE_ACCOUNT)
        limits = dict.fromkeys(
            (
                *("subs", "conn", "leaf", "imports", "exports", "data", "payload"),
                *("mem_storage", "disk_storage", "streams", "consumer", "max_ack_pending"),
            ),
            _UNLIMITED,
        )
        account = {"type": "account", "limits": {**limits, "wildcards": True}, "default_permissions": {}}
        system = Nkey(nkeys.PREFIX_BYTE_ACCOUNT)
        preload = {
            self.account.public: self.key.jwt(self.account.public, "app", account),
            system.public: self.key.jwt(
                system.public, "SYS", {"type": "account", "limits": {"subs": -1, "conn": -1, "data": -1}}
            ),
        }
        operator = self.key.jwt(
            self.key.public, "test", {"type": "operator", "system_account": system.public}
        )
        lines = ", ".join(f"{name}: {json.dumps(text)}" for name, text in preload.items())
        self.configuration = (
            f"operator: {json.dumps(operator)}\nsystem_account: {system.public}\n"
            f"resolver: MEMORY\nresolver_preload: {{ {lines} }}"
        )

    def credentials(
        self, file: Path, *, publish: list[str], subscribe: list[str], expires: int | None = None
    ) -> Path:
        """A user's credentials file, with these permissions."""
        user = Nkey()
        rights = {
            "type": "user",
            "pub": {"allow": publish},
            "sub": {"allow": subscribe},
            "subs": _UNLIMITED,
            "data": _UNLIMITED,
            "payload": _UNLIMITED,
        }
        token = self.account.jwt(user.public, "relay", rights, expires=expires)
        file.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        file.chmod(0o600)
        return file
