"""Tokens of an identity provider: what is accepted, every way to forge one, and how its keys are kept."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.backends import serving, until
from tests.wire.provider import AUDIENCE, ISSUER, Provider, claims, jwk, jwks, private_key, token
from weighbridge.errors import BadInput
from weighbridge.secret import Secret
from weighbridge.wire.client import Trust
from weighbridge.wire.errors import ApiError
from weighbridge.wire.identity import jwks as jwks_module
from weighbridge.wire.identity.jwks import LARGEST_SET, MOST_KEYS, Jwks, read_jwks
from weighbridge.wire.identity.settings import IdentitySettings
from weighbridge.wire.identity.tokens import LONGEST_TOKEN, Tokens

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


def tokens_of(folder: Path, *keys: Any, **settings: Any) -> Tokens:
    file = folder / "jwks.json"
    file.write_bytes(jwks(*keys))
    known = {"oidc_jwks": file, "oidc_issuer": ISSUER, "oidc_audiences": (AUDIENCE, "other")}
    return Tokens(IdentitySettings(**(known | settings)))


async def refused(tokens: Tokens, sent: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await tokens.tenant(Secret(sent))
    assert sent[:20] not in str(caught.value)
    return caught.value


def part(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_every_asymmetric_algorithm_is_read(tmp_path: Path, algorithm: str) -> None:
    """With and without the key's own word for what it is used for."""
    for more in ({}, {"alg": algorithm, "use": "sig"}, {"key_ops": ["verify"]}):
        tokens = tokens_of(tmp_path, jwk(algorithm, "one", **more))
        assert await tokens.tenant(Secret(token(algorithm))) == "alice"
    assert await tokens_of(tmp_path, jwk(algorithm, None)).tenant(Secret(token(algorithm, None))) == "alice"


async def test_a_claim_is_the_tenant(tmp_path: Path) -> None:
    tokens = tokens_of(tmp_path, jwk("ES256", "one"), oidc_claim="https://example/team")
    assert await tokens.tenant(Secret(token(**{"https://example/team": "größe"}))) == "größe"
    for wrong in (None, "", 5, ["a"], {"a": 1}, True, "a" * 201, "a\nb", "a\x00"):
        error = await refused(tokens, token(**{"https://example/team": wrong}))
        assert (error.status, error.code) == (401, "invalid_token")
    assert await tokens.tenant(Secret(token(aud=["x", "other"], **{"https://example/team": "t"}))) == "t"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exp": 1}, "has expired"),
        ({"exp": None}, "lacks one of the claims"),
        ({"exp": "soon"}, "is not valid"),
        ({"nbf": 4e9}, "is not valid yet"),
        ({"iat": 4e9}, "is not valid yet"),
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"iss": ISSUER + "/"}, "another issuer"),
        ({"iss": None}, "lacks one of the claims"),
        ({"aud": "somebody-else"}, "another audience"),
        ({"aud": None}, "lacks one of the claims"),
        ({"aud": []}, ""),
        ({"aud": AUDIENCE.upper()}, "another audience"),
        ({"aud": 5}, ""),
        ({"sub": 5}, ""),
    ],
)
async def test_claims_are_checked(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    error = await refused(tokens_of(tmp_path, jwk("ES256", "one")), token(**changes))
    assert error.status == 401
    assert error.code == ("expired_token" if changes.get("exp") == 1 else "invalid_token")
    assert said in str(error)


async def test_clocks_may_differ_by_a_minute(tmp_path: Path) -> None:
    tokens, now = tokens_of(tmp_path, jwk("ES256", "one")), int(time.time())
    assert await tokens.tenant(Secret(token(exp=now - 30, nbf=now + 30, iat=now + 30))) == "alice"
    assert (await refused(tokens, token(exp=now - 100))).code == "expired_token"


async def test_no_way_to_forge_one(tmp_path: Path) -> None:
    """`none`, a public key as an HMAC's, other keys, other algorithms, keys that the token itself brings."""
    more = jwk("RS256", "ps", alg="PS256"), jwk("RS256", "three", 3)
    tokens = tokens_of(tmp_path, jwk("RS256", "one"), jwk("ES256", "two"), *more)
    good = token("RS256")
    assert await tokens.tenant(Secret(good)) == "alice"
    header, payload, signature = good.split(".")
    forged = [f"{part({'alg': word, 'kid': 'one'})}.{payload}." for word in ("none", "None", "NONE", "")]
    forged += [f"{part({'alg': 'none', 'kid': 'one'})}.{payload}.{signature}"]
    pem = private_key("RS256").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = private_key("RS256").public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, pem.strip(), der, json.dumps(jwk("RS256", "one")).encode(), b""):
        for algorithm, digest in (("HS256", "sha256"), ("HS384", "sha384"), ("HS512", "sha512")):
            told = f"{part({'alg': algorithm, 'typ': 'JWT', 'kid': 'one'})}.{payload}"
            forged.append(f"{told}.{part(hmac.digest(secret, told.encode(), digest))}")
    forged += [
        token("RS256", "one", 1),  # another's key under a known name
        token("ES256", "one"),  # a known key under another's name
        token("RS256", "two"),
        token("PS256", "one", 1),
        token("RS256", "ps"),  # a key that is for PS256 alone
        token("RS256", "unknown"),
        token("RS256", None),  # two keys could be meant
        token("RS256", header={"jwk": jwk("RS256", "one", 1), "jku": "https://evil.example"}, number=1),
        token("RS256", header={"crit": ["x"], "x": 1}),
        f"{part({'alg': 'RS256', 'kid': ['one']})}.{payload}.{signature}",
        f"{header}.{part(claims(sub='admin'))}.{signature}",
        f"{header}.{payload}.",
        f"{header}.{payload}.{signature[:-6]}AAAAAA",
        f"..{signature}",
        "..",
        "a.b.c",
        f"{part([])}.{payload}.{signature}",
        f"{part({'alg': ['RS256'], 'kid': 'one'})}.{payload}.{signature}",
        f"{part(b'[' * 5000)}.{payload}.{signature}",
        f"{part({'alg': 'RS256', 'kid': 'one'})}.{part(b'[' * 5000)}.{signature}",
        good + "A" * LONGEST_TOKEN,
    ]
    for one in forged:
        assert (await refused(tokens, one)).status == 401, one


async def test_what_a_header_says_must_be_understood_is(tmp_path: Path) -> None:
    """Refused by us also where the library knows the word, and would read the token in another way."""
    tokens = tokens_of(tmp_path, jwk("ES256", "one"))
    for critical in (["x"], ["b64"], [], "b64", None):
        error = await refused(tokens, token(header={"crit": critical, "b64": True, "x": 1}))
        assert error.status == 401, critical
    error = await refused(tokens, token(header={"crit": ["b64"], "b64": False}))
    assert "has a header that is not understood here" in str(error)


@given(st.text(max_size=50), st.text(max_size=50), st.text(max_size=50))
async def test_whatever_is_sent_is_an_answer(one: str, two: str, three: str) -> None:
    tokens = Tokens.__new__(Tokens)
    tokens.keys = Jwks.__new__(Jwks)
    tokens.keys._keys, tokens.keys._clock = read_jwks(jwks(jwk("ES256", "one"))), lambda: 0.0
    tokens.keys._read_at = tokens.keys._tried_at = 0.0
    tokens.keys._reading = None
    tokens._issuer, tokens._audiences, tokens._claim = ISSUER, [AUDIENCE], "sub"
    for sent in (
        f"{one}.{two}.{three}",
        f"{part({'alg': 'ES256', 'kid': 'one'})}.{part(two.encode())}.{three}",
    ):
        with pytest.raises(ApiError):
            await tokens.tenant(Secret(sent))


# -- the keys ------------------------------------------------------------------------------------------


def test_keys_that_cannot_check_a_signature_are_left_out() -> None:
    secret = {"kty": "oct", "kid": "s", "k": part(b"x" * 32)}
    useless = [
        secret,
        {**secret, "alg": "HS256"},
        jwk("RS256", "short", 1024),
        jwk("RS256", "enc", use="enc"),
        jwk("RS256", "ops", key_ops=["encrypt"]),
        jwk("RS256", "ops", key_ops="verify"),
        jwk("RS256", "hs", alg="HS256"),
        jwk("RS256", "es", alg="ES256"),
        jwk("ES256", "curve", crv="P-384"),
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
        {"kty": "RSA", "n": "AA"},
        {"kty": ["RSA"]},
        {"kid": {"a": 1}, **jwk("ES256", None)},
        {},
        5,
    ]
    assert read_jwks(jwks(*useless)) == ()
    [good] = read_jwks(jwks(*useless, jwk("ES256", "good", d=part(b"x" * 32))))
    assert (good.kid, good.algorithms) == ("good", ("ES256",))
    assert not hasattr(good.key, "private_numbers")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"keys": 5}', b"\xff", b"[" * 100_000, b" " * LARGEST_SET + b"{}"]
)
def test_what_is_no_set_of_keys_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"JWKS|larger"):
        read_jwks(data)
    with pytest.raises(ValueError, match="larger than"):  # one that would be read, but for its size
        read_jwks(jwks(jwk("ES256", "one")) + b" " * LARGEST_SET)
    with pytest.raises(ValueError, match="more than"):
        read_jwks(jwks(*[{}] * (MOST_KEYS + 1)))


def test_a_file_without_a_key_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no key of it"):
        tokens_of(tmp_path)
    with pytest.raises(BadInput, match="No such file"):
        Jwks(tmp_path / "none", None, Trust())


async def test_a_file_with_new_keys_is_read_when_a_token_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not more often than every ten seconds, whatever is asked for."""
    tokens, now, reads = tokens_of(tmp_path, jwk("ES256", "one")), [100.0], []
    monkeypatch.setattr(tokens.keys, "_clock", lambda: now[0])
    monkeypatch.setattr(tokens.keys, "_read_at", 100.0)
    fetch = tokens.keys._fetch

    async def counted() -> bytes:
        reads.append(now[0])
        return await fetch()

    monkeypatch.setattr(tokens.keys, "_fetch", counted)
    (tmp_path / "jwks.json").write_bytes(jwks(jwk("ES384", "two")))
    assert await tokens.tenant(Secret(token())) == "alice"  # known: nothing is read
    assert reads == []
    asked = [tokens.tenant(Secret(token("ES384", "two"))) for _ in range(20)]
    assert await asyncio.gather(*asked) == ["alice"] * 20
    assert reads == [100.0]
    await refused(tokens, token())  # it is gone
    for _ in range(20):
        await refused(tokens, token("ES256", "made-up"))
    assert reads == [100.0]
    now[0] += 11
    await refused(tokens, token("ES256", "made-up"))
    assert reads == [100.0, 111.0]


def of_url(url: str, **settings: Any) -> Tokens:
    known = {"oidc_jwks_url": url, "oidc_issuer": ISSUER, "oidc_audiences": (AUDIENCE,)}
    return Tokens(IdentitySettings(**(known | settings)))


async def test_keys_of_a_url_are_read_before_the_first_token_and_kept_when_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(jwks_module.log, "warning", lambda text, *values: warned.append(text % values))
    monkeypatch.setattr(jwks_module, "REFRESH_SECONDS", 0.02)
    monkeypatch.setattr(jwks_module, "RETRY_SECONDS", 0.02)
    provider = Provider(jwks(jwk("ES256", "one")))
    async with serving(provider) as url:
        tokens = of_url(url + "/keys/?v=1")
        tokens.keys.start()
        assert await tokens.tenant(Secret(token())) == "alice"
        assert provider.asked[0] == "/keys/?v=1"
        for status, data in (
            (500, b""),
            (302, b""),
            (200, b"nonsense"),
            (200, jwks()),
            (200, b"x" * (2 << 20)),
        ):
            provider.status, provider.data = status, data
            seen = len(provider.asked)
            await until(lambda seen=seen: len(provider.asked) > seen + 3)
            assert await tokens.tenant(Secret(token())) == "alice"
        provider.status, provider.data = 200, jwks(jwk("ES384", "next"))
        await until(lambda: tokens.keys._keys[0].kid == "next")  # rotated, without a token that asks for it
        assert await tokens.tenant(Secret(token("ES384", "next"))) == "alice"
        await refused(tokens, token())
        await tokens.keys.stop()
    assert len(warned) == len(set(warned)) >= 5  # once for each reason


async def test_without_keys_it_is_nobodys_fault_that_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_module, "READ_WITHIN", 0.1)
    provider = Provider(jwks(jwk("ES256", "one")))

    async def forever() -> None:
        await asyncio.sleep(1)

    provider.hold = forever
    async with serving(provider) as url:
        for tokens in (of_url(url), of_url("http://127.0.0.1:9")):
            error = await refused(tokens, token())
            assert (error.status, error.code) == (503, "identity_unavailable")
            assert error.retry_after


async def test_keys_that_could_not_be_read_for_a_day_are_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokens_of(tmp_path, jwk("ES256", "one"))
    now = [time.monotonic()]
    monkeypatch.setattr(tokens.keys, "_clock", lambda: now[0])
    (tmp_path / "jwks.json").unlink()
    now[0] += 23 * 3600
    assert await tokens.tenant(Secret(token())) == "alice"
    now[0] += 2 * 3600
    assert (await refused(tokens, token())).status == 503


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"oidc_jwks_url": "http://login.example/keys"}, "over https"),
        ({"oidc_jwks_url": "https://u:canary@login.example/keys"}, "without an account"),
        ({"oidc_jwks_url": "ftp://login.example"}, "over https"),
        ({"oidc_jwks_url": "https://"}, "over https"),
        ({"oidc_jwks_url": "https://x", "oidc_jwks": Path("x")}, "keep one of them"),
        ({"oidc_jwks_url": "https://x", "oidc_issuer": None}, "go together"),
        ({"oidc_jwks_url": "https://x", "oidc_audiences": ()}, "go together"),
        ({}, "go together"),
    ],
)
def test_settings_that_would_check_less_than_all_are_refused(settings: dict[str, Any], said: str) -> None:
    known = {"oidc_issuer": ISSUER, "oidc_audiences": (AUDIENCE,)}
    with pytest.raises(BadInput, match=said) as caught:
        IdentitySettings(**(known | settings))
    assert "canary" not in str(caught.value)
