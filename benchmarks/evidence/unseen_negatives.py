"""Lines that hold no personal data, written by somebody who had not read the patterns: `unseen_lines.txt`.

A mark such as `{d4}` is drawn anew for each line: digits, `h` hexadecimal, `y`, `mo`, `dd`, `hh`, `mi` of a time. What
detectors touched when they met these lines first is in docs/measured/routes.md; they have been mended by them since.
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

WRITTEN = Path(__file__).with_name("unseen_lines.txt")

_MARK = re.compile(r"\{([dh])([0-9]{1,2})\}|\{(y2?|mo|dd|hh|mi|uuid|ulid|b64)\}")
_HEX = "0123456789abcdef"
_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def unseen_lines(seed: int, draws: int) -> Iterator[str]:
    """Each line `draws` times."""
    rng = random.Random(seed)
    written = WRITTEN.read_text(encoding="utf-8").splitlines()
    for _ in range(draws):
        for line in written:
            yield _MARK.sub(lambda mark: _drawn(mark, rng), line)


def _drawn(mark: re.Match[str], rng: random.Random) -> str:
    if mark[1] == "d":
        return str(rng.randint(10 ** (int(mark[2]) - 1), 10 ** int(mark[2]) - 1))
    if mark[1] == "h":
        return "".join(rng.choices(_HEX, k=int(mark[2])))
    match mark[3]:
        case "y":
            return str(rng.randint(2019, 2026))
        case "y2":
            return str(rng.randint(19, 26))
        case "mo":
            return f"{rng.randint(1, 12):02}"
        case "dd":
            return f"{rng.randint(1, 28):02}"
        case "hh":
            return f"{rng.randint(0, 23):02}"
        case "mi":
            return f"{rng.randint(0, 59):02}"
        case "uuid":
            return str(uuid.UUID(int=rng.getrandbits(128), version=4))
        case "ulid":
            return "".join(rng.choices(_BASE32, k=26))
        case _:
            return "".join(rng.choices(_BASE64, k=28)) + "=="
