"""How many tokens a picture weighs: the published formulas of common families, from its size and nothing else.

Sizes are read from the first bytes of pictures that came with the request; what stands behind a link is never fetched
and weighs what a usual picture does. Usage corrects all of it (`load.weigher`).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator
from math import ceil, sqrt
from typing import Any

#: Bytes of a picture that are looked at for its size, and pictures of one request that are measured.
LOOKED_AT, MOST_MEASURED = 64 << 10, 64
#: Pixels of a picture whose size is not known.
USUAL = (1024, 768)
#: No picture is larger, whatever its header says.
LONGEST_SIDE = 1 << 16

Size = tuple[int, int]


def image_tokens(model: str, parts: Any) -> int:
    """Tokens of all pictures in a chat's messages, for a model of this name."""
    tokens, weigh = 0, formula_of(model)
    for number, (url, detail) in enumerate(pictures(parts)):
        size = size_of(url) if number < MOST_MEASURED else None
        tokens += weigh(size or USUAL, detail)
    return tokens


def pictures(messages: Any) -> Iterator[tuple[str, str]]:
    """The URL and the `detail` of every picture."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict) or part.get("type") != "image_url":
                continue
            image = part.get("image_url")
            url = image.get("url") if isinstance(image, dict) else image
            detail = image.get("detail") if isinstance(image, dict) else None
            yield (url if isinstance(url, str) else ""), (detail if isinstance(detail, str) else "auto")


# -- sizes -----------------------------------------------------------------------------------------------


def size_of(url: str) -> Size | None:
    """Width and height of a picture in a data URL; None for links and for what is no picture we know."""
    head, comma, data = url[: LOOKED_AT * 2].partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        return None
    data = data[: LOOKED_AT * 4 // 3 & ~3]
    try:
        raw = binascii.a2b_base64(data[: len(data) & ~3])
    except (binascii.Error, ValueError):
        return None
    size = _png(raw) or _gif(raw) or _webp(raw) or _jpeg(raw)
    return size if size is not None and all(0 < side <= LONGEST_SIDE for side in size) else None


def _png(raw: bytes) -> Size | None:
    if not raw.startswith(b"\x89PNG\r\n\x1a\n") or len(raw) < 24:
        return None
    return int.from_bytes(raw[16:20]), int.from_bytes(raw[20:24])


def _gif(raw: bytes) -> Size | None:
    if raw[:6] not in (b"GIF87a", b"GIF89a") or len(raw) < 10:
        return None
    return int.from_bytes(raw[6:8], "little"), int.from_bytes(raw[8:10], "little")


def _webp(raw: bytes) -> Size | None:
    if raw[:4] != b"RIFF" or raw[8:12] != b"WEBP" or len(raw) < 30:
        return None
    kind = raw[12:16]
    if kind == b"VP8X":
        return int.from_bytes(raw[24:27], "little") + 1, int.from_bytes(raw[27:30], "little") + 1
    if kind == b"VP8 ":
        return (int.from_bytes(raw[26:28], "little") & 0x3FFF, int.from_bytes(raw[28:30], "little") & 0x3FFF)
    if kind == b"VP8L":
        bits = int.from_bytes(raw[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def _jpeg(raw: bytes) -> Size | None:
    """The size stands in the frame header, behind any number of other segments."""
    if not raw.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 9 <= len(raw):
        if raw[at] != 0xFF:
            return None
        marker = raw[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(raw[at + 7 : at + 9]), int.from_bytes(raw[at + 5 : at + 7])
        length = int.from_bytes(raw[at + 2 : at + 4])
        if length < 2:
            return None
        at += 2 + length
    return None


# -- formulas --------------------------------------------------------------------------------------------

Formula = Callable[[Size, str], int]


def _fitted(size: Size, longest: float) -> tuple[float, float]:
    """The size scaled down so that neither side is longer."""
    scale = min(longest / max(size), 1.0)
    return size[0] * scale, size[1] * scale


def openai_tiles(size: Size, detail: str) -> int:
    """85, and 170 for each tile of 512 pixels, once it fits into 2,048 with a shorter side of 768 at most (OpenAI,
    Images and vision)."""
    if detail == "low":
        return 85
    width, height = _fitted(size, 2048.0)
    scale = min(768.0 / min(width, height), 1.0)
    return 85 + 170 * ceil(width * scale / 512 - 1e-9) * ceil(height * scale / 512 - 1e-9)


def claude(size: Size, detail: str) -> int:
    """Width times height over 750, sides of 1,568 at most (Anthropic, Vision)."""
    width, height = _fitted(size, 1568.0)
    return min(ceil(width * height / 750), 1640)


def gemini(size: Size, detail: str) -> int:
    """258 up to 384 pixels a side, beyond for each tile of 768 (Google, Understand and count tokens)."""
    if max(size) <= 384:
        return 258
    return 258 * ceil(size[0] / 768) * ceil(size[1] / 768)


def qwen(size: Size, detail: str) -> int:
    """One token for 28 x 28 pixels, from 4 to 16,384, and two around it (Qwen2-VL's processor)."""
    width, height = (max(round(side / 28), 1) for side in size)
    scale = min(sqrt(16384 / (width * height)), 1.0)
    return max(int(width * scale) * int(height * scale), 4) + 2


def pixtral(size: Size, detail: str) -> int:
    """One token for 16 x 16 pixels and one behind each row, sides of 1,024 at most (Mistral, Pixtral)."""
    width, height = (max(ceil(side / 16), 1) for side in _fitted(size, 1024.0))
    return (width + 1) * height


def _fixed(tokens: int) -> Formula:
    return lambda size, detail: tokens


#: Families by what their models' names have in them; the first that fits counts.
_FAMILIES: tuple[tuple[re.Pattern[str], Formula], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), formula)
    for pattern, formula in (
        (r"qwen.*vl|qwen.*omni|qwen-?3\.5|qwen-?4", qwen),
        (r"pixtral|mistral-small|mistral-medium", pixtral),
        (r"claude", claude),
        (r"gemini", gemini),
        (r"gemma-?[34]|gemma3n", _fixed(256)),
        (r"llava", _fixed(576)),
        (r"smolvlm|idefics", _fixed(64)),
        (r"gpt-|^o\d|chatgpt", openai_tiles),
    )
)


def formula_of(model: str) -> Formula:
    """The formula of a model's family; OpenAI's, in the middle of all, where the name says nothing."""
    return next((formula for pattern, formula in _FAMILIES if pattern.search(model)), openai_tiles)
