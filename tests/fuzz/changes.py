"""Inputs changed at random: bytes flipped, pieces cut out, doubled and moved, words of the format put in."""

from __future__ import annotations

import random
from collections.abc import Sequence


def changed(seed: bytes, words: Sequence[bytes], draw: random.Random) -> bytes:
    """Return `seed` with one to four changes; the same draws give the same ones."""
    data = bytearray(seed)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.randint(1, 16))
        change = draw.randrange(5)
        if change == 0 and start < len(data):
            data[start] ^= 1 << draw.randrange(8)
        elif change == 1:
            del data[start:end]
        elif change == 2:
            data[start:start] = data[start:end] * draw.choice([1, 2, 40])
        elif change == 3:
            data[start:end] = draw.choice(words)
        else:
            data[start:end] = draw.randbytes(end - start)
    return bytes(data)
