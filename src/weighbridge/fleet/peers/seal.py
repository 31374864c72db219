"""Shows that a text in a shared Redis was written by a gateway with the same operator's key. Pure.

Whoever can write to that Redis could else name servers of his own as replicas, and have prompts and keys sent there.
"""

from __future__ import annotations

import hmac
from hashlib import sha256

#: Hexadecimal digits of a seal: 128 bits.
DIGITS = 32


class Seal:
    """Seals texts for one `purpose`: what was sealed for one is nothing for another."""

    def __init__(self, key: bytes, purpose: str) -> None:
        """`key`: the digest of the operator's key, which no gateway shows."""
        self._key = hmac.new(key, b"weighbridge:" + purpose.encode(), sha256).digest()

    def of(self, text: bytes) -> bytes:
        """The seal of a text, in hexadecimal digits."""
        return hmac.new(self._key, text, sha256).hexdigest()[:DIGITS].encode()

    def fits(self, seal: bytes, text: bytes) -> bool:
        """Whether a seal is the one of this text; it takes as long for any that is wrong."""
        return hmac.compare_digest(seal, self.of(text))
