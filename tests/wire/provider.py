"""An identity provider for tests: keys, their JWKS, and tokens signed with them."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import get_default_algorithms

ISSUER, AUDIENCE = "https://login.example", "weighbridge"


@cache
def private_key(algorithm: str, number: int = 0) -> Any:
    """A key for an algorithm; another one for each number. RSA keys take a while, so they are kept."""
    curves = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1, "ES256K": ec.SECP256K1}
    if algorithm in curves:
        return ec.generate_private_key(curves[algorithm]())
    if algorithm == "EdDSA":
        return ed448.Ed448PrivateKey.generate() if number == 448 else ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 1024 if number == 1024 else 2048)


def jwk(algorithm: str, kid: str | None, number: int = 0, **more: Any) -> dict[str, Any]:
    """The public half, as a provider publishes it."""
    key = private_key(algorithm, number).public_key()
    told = get_default_algorithms()[algorithm].to_jwk(key, as_dict=True)
    told = {name: value for name, value in told.items() if name not in ("key_ops", "kid")}
    return {**told, **({"kid": kid} if kid is not None else {}), **more}


def jwks(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


def claims(**changes: Any) -> dict[str, Any]:
    """Claims of a good token for Alice; a change to None takes one out."""
    now = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now + 600, "nbf": now - 10, "iat": now}
    return {name: value for name, value in (good | changes).items() if value is not None}


def token(
    algorithm: str = "ES256", kid: str | None = "one", number: int = 0, header: Any = None, **changes: Any
) -> str:
    headers = {**({"kid": kid} if kid is not None else {}), **(header or {})}
    return jwt.encode(claims(**changes), private_key(algorithm, number), algorithm, headers)


class Provider:
    """Serves a JWKS; `answer` is what it does now."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.status = 200
        self.asked: list[str] = []
        self.hold: Callable[[], Awaitable[Any]] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope["path"] + "?" + scope["query_string"].decode())
        if self.hold is not None:
            await self.hold()
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": self.data})
