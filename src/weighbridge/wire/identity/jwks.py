"""The public keys of an identity provider: read from a file or a URL, kept, read again, and bounded in all of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK, PyJWTError

from weighbridge.errors import BadInput
from weighbridge.wire.client import HttpClient, Trust
from weighbridge.wire.errors import ApiError

log = logging.getLogger("weighbridge.server")

#: Seconds after which keys are read again; after a failure, and for a key that is not known.
REFRESH_SECONDS, RETRY_SECONDS, UNKNOWN_SECONDS = 300.0, 30.0, 10.0
#: Seconds for reading them once.
READ_WITHIN = 5.0
#: Seconds for which keys are believed that can no longer be read.
KEEP_SECONDS = 24 * 3600.0
#: Bytes of a set of keys, and keys of it.
LARGEST_SET, MOST_KEYS = 1 << 20, 100
#: Bits of an RSA key.
SHORTEST_RSA = 2048

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
#: The algorithms of a key, by its type and curve: asymmetric ones only, so that nothing public can be used to sign.
ALGORITHMS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("RSA", ""): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
    ("OKP", "Ed448"): ("EdDSA",),
}
_PUBLIC = frozenset({"kty", "crv", "n", "e", "x", "y"})


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that signatures are checked with, and the algorithms that it may be used for."""

    kid: str | None
    key: Any
    algorithms: tuple[str, ...]


def read_jwks(data: bytes) -> tuple[PublicKey, ...]:
    """Read the keys of a set that can check signatures; others are left out. Raises ValueError for what is no set."""
    if len(data) > LARGEST_SET:
        raise ValueError(f"it is larger than {LARGEST_SET >> 10} KiB")
    try:
        listed = msgspec.json.decode(data)["keys"]
        entries = [entry for entry in listed if isinstance(entry, dict)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError) as error:
        raise ValueError('it is no JWKS: {"keys": [...]}') from error
    if len(entries) > MOST_KEYS:
        raise ValueError(f"it has more than {MOST_KEYS} keys")
    return tuple(key for entry in entries if (key := _public_key(entry)) is not None)


def _public_key(entry: dict[str, Any]) -> PublicKey | None:
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    kind, curve, kid = (entry.get(name, "") for name in ("kty", "crv", "kid"))
    if not all(isinstance(word, str) for word in (kind, curve, kid)):
        return None
    algorithms = ALGORITHMS.get((kind, "" if kind == "RSA" else curve), ())
    if "alg" in entry:
        algorithms = tuple(one for one in algorithms if one == entry["alg"])
    if not algorithms:
        return None
    try:
        key = PyJWK({name: entry[name] for name in _PUBLIC & entry.keys()}, algorithms[0]).key
    except (PyJWTError, ValueError, TypeError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < SHORTEST_RSA:
        return None
    return PublicKey(kid or None, key, algorithms)


class Jwks:
    """A provider's keys. `find` answers from memory; reading again happens in the background, or for an unknown key."""

    def __init__(
        self, file: Path | None, url: str | None, trust: Trust, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """One of `file` and `url`. Raises BadInput for a file that holds no key."""
        self._file, self._url, self._trust, self._clock = file, url, trust, clock
        self._keys: tuple[PublicKey, ...] = ()
        self._read_at = self._tried_at = float("-inf")
        self._complaint = ""  # the last one, until the keys could be read again
        self._reading: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        if file is not None:
            try:
                self._take(file.read_bytes())
            except (OSError, ValueError) as error:
                raise BadInput(f"oidc_jwks {file}: {_said(error)}", param="oidc_jwks") from error

    def start(self) -> None:
        """Read the keys now and again, until `stop`; called on the event loop."""
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        tasks = [task for task in (self._keeper, self._reading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def find(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """Return the keys that a token's header means. Raises ApiError 503 where keys cannot be had."""
        found = self._known(kid, algorithm)
        is_reading = self._reading is not None and not self._reading.done()
        if not found and (is_reading or self._clock() - self._tried_at >= UNKNOWN_SECONDS):
            await self._read_once()
            found = self._known(kid, algorithm)
        if not found and self._clock() - self._read_at > KEEP_SECONDS:
            message = "the keys that tokens are checked with cannot be read; try again in a moment"
            raise ApiError(
                503, message, code="identity_unavailable", kind="server_error", retry_after=UNKNOWN_SECONDS
            )
        return found

    def _known(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        if self._clock() - self._read_at > KEEP_SECONDS:
            return []
        fitting = [key for key in self._keys if algorithm in key.algorithms]
        if kid is None:
            return fitting if len(fitting) == 1 else []
        return [key for key in fitting if key.kid == kid]

    async def _keep(self) -> None:
        while True:
            await self._read_once()
            well = self._tried_at <= self._read_at
            await asyncio.sleep(REFRESH_SECONDS if well else RETRY_SECONDS)

    async def _read_once(self) -> None:
        """Read them, or wait for the reading that is under way."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        await asyncio.shield(self._reading)

    async def _read(self) -> None:
        self._tried_at = self._clock()
        try:
            async with asyncio.timeout(READ_WITHIN):
                self._take(await self._fetch())
        except (OSError, ValueError) as error:  # TimeoutError is an OSError
            self._complain(
                f"the keys of {self._where} cannot be read, those from before stay: {_said(error)}"
            )
        else:
            self._complaint = ""

    def _complain(self, words: str) -> None:
        """Say it once, until it is something else."""
        if words != self._complaint:
            self._complaint = words
            log.warning("%s", words)

    async def _fetch(self) -> bytes:
        if self._file is not None:
            return await asyncio.to_thread(self._file.read_bytes)
        parts = urlsplit(self._where)
        client = HttpClient(f"{parts.scheme}://{parts.netloc}", READ_WITHIN, keep=False, trust=self._trust)
        path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
        try:
            response = await client.send(client.head("GET", path, {"Accept-Encoding": "identity"}))
            await response.begin(READ_WITHIN)
            data = await response.whole(LARGEST_SET + 1)
        finally:
            client.close()
        if response.status != 200:
            raise ValueError(f"it answers with status {response.status}")
        return data

    def _take(self, data: bytes) -> None:
        keys = read_jwks(data)
        if not keys:
            raise ValueError("no key of it can check a signature of RS, PS, ES or EdDSA")
        self._keys, self._read_at = keys, self._clock()

    @property
    def _where(self) -> str:
        return str(self._file) if self._file is not None else self._url or ""


def _said(error: Exception) -> str:
    return str(error) or f"nothing came within {READ_WITHIN:g} s"
