"""Tokens of an identity provider (OpenID Connect): signed by its key, made for us, of now; a claim is the tenant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jwt

from weighbridge.secret import Secret
from weighbridge.wire.ask import LONGEST_NAME
from weighbridge.wire.client import Trust
from weighbridge.wire.errors import ApiError
from weighbridge.wire.identity.jwks import Jwks
from weighbridge.wire.identity.settings import IdentitySettings

#: Seconds by which clocks may differ.
LEEWAY_SECONDS = 60
#: Characters of a token.
LONGEST_TOKEN = 16 << 10

#: What is wrong with a token, for people, by what its check raises; the first that fits.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.ExpiredSignatureError, "has expired; get a new one"),
    (jwt.ImmatureSignatureError, "is not valid yet"),
    (jwt.InvalidAudienceError, "is for another audience"),
    (jwt.InvalidIssuerError, "is from another issuer"),
    (jwt.MissingRequiredClaimError, "lacks one of the claims exp, iss and aud"),
    (jwt.InvalidSignatureError, "has a wrong signature"),
)


class Tokens:
    """Checks tokens by the settings `oidc_*`."""

    def __init__(self, settings: IdentitySettings) -> None:
        """Raises BadInput for keys in a file that are none."""
        trust = Trust(settings.oidc_tls_ca)
        self.keys = Jwks(settings.oidc_jwks, settings.oidc_jwks_url, trust)
        self._issuer = settings.oidc_issuer
        self._audiences = list(settings.oidc_audiences)
        self._claim = settings.oidc_claim

    async def tenant(self, token: Secret) -> str:
        """Return the tenant in a token. Raises ApiError 401, or 503 where the provider's keys cannot be had."""
        if len(token.reveal()) > LONGEST_TOKEN:
            raise _refused(f"is longer than {LONGEST_TOKEN >> 10} KiB")
        header = _header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if "crit" in header or not isinstance(algorithm, str) or not isinstance(kid, str | None):
            raise _refused("has a header that is not understood here")
        candidates = await self.keys.find(kid, algorithm)
        if not candidates:
            raise _refused("is signed with a key or an algorithm that is not known here")
        return self._tenant_in(self._checked(token, algorithm, [one.key for one in candidates]))

    def _checked(self, token: Secret, algorithm: str, keys: list[Any]) -> Mapping[str, Any]:
        """The claims of a token that one of the keys has signed."""
        refusal: Exception | None = None
        for key in keys:
            try:
                return jwt.decode(
                    token.reveal(),
                    key,
                    algorithms=[algorithm],
                    audience=self._audiences,
                    issuer=self._issuer,
                    leeway=LEEWAY_SECONDS,
                    options={"require": ["exp", "iss", "aud"]},
                )
            except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
                refusal = error
        reason = next((words for kind, words in _REASONS if isinstance(refusal, kind)), "is not valid")
        raise _refused(reason, "expired_token" if isinstance(refusal, jwt.ExpiredSignatureError) else None)

    def _tenant_in(self, claims: Mapping[str, Any]) -> str:
        value = claims.get(self._claim)
        if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME or not value.isprintable():
            raise _refused(f"has no claim {self._claim!r} that names a tenant")
        return value


def _header(token: Secret) -> Mapping[str, Any]:
    try:
        return jwt.get_unverified_header(token.reveal())
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise _refused("cannot be read") from None


def _refused(reason: str, code: str | None = None) -> ApiError:
    return ApiError(401, f"the token {reason}", code=code or "invalid_token")
