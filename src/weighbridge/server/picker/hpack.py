"""Header blocks of HTTP/2 (RFC 7541): any can be read; what is written needs no table.

The code of Huffman's that texts are written in is canonical, so the lengths of its symbols say all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache

Pair = tuple[bytes, bytes]

#: Bytes of the table of what was said before, as both sides begin with it, and of one list of headers with 32 for each.
TABLE, LARGEST_LIST, EACH = 4096, 64 << 10, 32

#: The headers that both sides know from the first, by their numbers from 1.
_KNOWN = (
    b":authority", b":method GET", b":method POST", b":path /", b":path /index.html", b":scheme http",
    b":scheme https", b":status 200", b":status 204", b":status 206", b":status 304", b":status 400",
    b":status 404", b":status 500", b"accept-charset", b"accept-encoding gzip, deflate", b"accept-language",
    b"accept-ranges", b"accept", b"access-control-allow-origin", b"age", b"allow", b"authorization",
    b"cache-control", b"content-disposition", b"content-encoding", b"content-language", b"content-length",
    b"content-location", b"content-range", b"content-type", b"cookie", b"date", b"etag", b"expect", b"expires",
    b"from", b"host", b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since",
    b"last-modified", b"link", b"location", b"max-forwards", b"proxy-authenticate", b"proxy-authorization",
    b"range", b"referer", b"refresh", b"retry-after", b"server", b"set-cookie", b"strict-transport-security",
    b"transfer-encoding", b"user-agent", b"vary", b"via", b"www-authenticate",
)  # fmt: skip
_STATIC: tuple[Pair, ...] = tuple((one.partition(b" ")[0], one.partition(b" ")[2]) for one in _KNOWN)

#: Symbols by the bits of their codes; 256 ends a text, and never comes in one.
_LENGTHS: dict[int, list[int]] = {
    5: [*b"012aceiost"],
    6: [*b" %-./3456789=A_bdfghlmnpru"],
    7: [*b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"],
    8: [*b"&*,;XZ"],
    10: [*b'!"()?'],
    11: [*b"'+|"],
    12: [*b"#>"],
    13: [*b"\0$@[]~"],
    14: [*b"^}"],
    15: [*b"<`{"],
    19: [92, 195, 208],
    20: [128, 130, 131, 162, 184, 194, 224, 226],
    21: [153, 161, 167, 172, 176, 177, 179, 209, 216, 217, 227, 229, 230],
    22: [129, 132, 133, 134, 136, 146, 154, 156, 160, 163, 164, 169, 170, 173, 178, 181, 185, 186, 187, 189, 190, 196,
         198, 228, 232, 233],
    23: [1, 135, 137, 138, 139, 140, 141, 143, 147, 149, 150, 151, 152, 155, 157, 158, 165, 166, 168, 174, 175, 180,
         182, 183, 188, 191, 197, 231, 239],
    24: [9, 142, 144, 145, 148, 159, 171, 206, 215, 225, 236, 237],
    25: [199, 207, 234, 235],
    26: [192, 193, 200, 201, 202, 205, 210, 213, 218, 219, 238, 240, 242, 243, 255],
    27: [203, 204, 211, 212, 214, 221, 222, 223, 241, 244, 245, 246, 247, 248, 250, 251, 252, 253, 254],
    28: [2, 3, 4, 5, 6, 7, 8, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28, 29, 30, 31, 127, 220,
         249],
    30: [10, 13, 22, 256],
}  # fmt: skip


class MalformedBlock(Exception):
    """A header block that cannot be read; what comes after it cannot be either."""


def _codes() -> Iterator[tuple[tuple[int, int], int]]:
    """(bits, code) and the symbol: codes of one length count up, and go on where shorter ones end."""
    code = last = 0
    for bits, symbols in _LENGTHS.items():
        code <<= bits - last
        last = bits
        for symbol in symbols:
            yield (bits, code), symbol
            code += 1


_SYMBOLS = dict(_codes())
_LONGEST_PADDING = 7


def unpacked(data: bytes) -> bytes:
    """A text that was written in Huffman's code. Raises MalformedBlock."""
    return _remembered(data) if len(data) <= _SHORT else _unpacked(data)


def _unpacked(data: bytes) -> bytes:
    text, bits, code = bytearray(), 0, 0
    for byte in data:
        for place in range(7, -1, -1):
            code = code << 1 | (byte >> place & 1)
            bits += 1
            symbol = _SYMBOLS.get((bits, code))
            if symbol is not None:
                if symbol > 255:
                    raise MalformedBlock("a text has its end in it")
                text.append(symbol)
                bits = code = 0
    if bits > _LONGEST_PADDING or code != (1 << bits) - 1:
        raise MalformedBlock("a text breaks off")
    return bytes(text)


#: Each connection begins with the same few texts: those of so many bytes are kept.
_SHORT = 128
_remembered = lru_cache(maxsize=512)(_unpacked)


class HeaderReader:
    """Reads the header blocks of one connection, in their order: each may stand on those before it."""

    def __init__(self) -> None:
        self._table: deque[Pair] = deque()  # the newest first
        self._size = 0
        self._most = TABLE

    def read(self, block: bytes) -> list[Pair]:
        """The headers of a block. Raises MalformedBlock."""
        found: list[Pair] = []
        at, size, listed = 0, len(block), 0
        try:
            while at < size:
                first = block[at]
                if first & 0x80:
                    number, at = _number(block, at, 7)
                    pair = self._at(number)
                elif first & 0x40:
                    pair, at = self._literal(block, at, 6)
                    self._enter(pair)
                elif first & 0x20:
                    self._most, at = _number(block, at, 5)
                    if found or self._most > TABLE:
                        raise MalformedBlock("a table is made larger than was allowed, or too late")
                    self._shrink(self._most)
                    continue
                else:
                    pair, at = self._literal(block, at, 4)
                listed += len(pair[0]) + len(pair[1]) + EACH
                if listed > LARGEST_LIST:
                    raise MalformedBlock(f"the headers are larger than {LARGEST_LIST >> 10} KiB")
                found.append(pair)
        except IndexError:
            raise MalformedBlock("a header block breaks off") from None
        return found

    def _at(self, number: int) -> Pair:
        if 0 < number <= len(_STATIC):
            return _STATIC[number - 1]
        if len(_STATIC) < number <= len(_STATIC) + len(self._table):
            return self._table[number - len(_STATIC) - 1]
        raise MalformedBlock(f"there is no header number {number}")

    def _literal(self, block: bytes, at: int, bits: int) -> tuple[Pair, int]:
        number, at = _number(block, at, bits)
        if number:
            name = self._at(number)[0]
        else:
            name, at = _text(block, at)
        value, at = _text(block, at)
        return (name, value), at

    def _enter(self, pair: Pair) -> None:
        size = len(pair[0]) + len(pair[1]) + EACH
        self._shrink(self._most - size)
        if size <= self._most:
            self._table.appendleft(pair)
            self._size += size

    def _shrink(self, most: int) -> None:
        while self._table and self._size > most:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + EACH


def _number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """A whole number whose first byte has so many bits for it, and where it ends."""
    full = (1 << bits) - 1
    number = block[at] & full
    at += 1
    if number < full:
        return number, at
    for shift in (0, 7, 14, 21):
        byte = block[at]
        at += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise MalformedBlock("a number is too large")


def _text(block: bytes, at: int) -> tuple[bytes, int]:
    is_packed = block[at] & 0x80
    length, at = _number(block, at, 7)
    end = at + length
    if end > len(block):
        raise IndexError
    data = block[at:end]
    return (unpacked(data) if is_packed else data), end


def written(headers: Iterable[Pair]) -> bytes:
    """A header block that stands by itself: nothing is put into the reader's table. Texts of up to 126 bytes."""
    block = bytearray()
    for name, value in headers:
        block += b"\0%c%b%c%b" % (len(name), name, len(value), value)
    return bytes(block)
