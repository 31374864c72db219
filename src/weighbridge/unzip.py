"""Bodies that come packed: a client's, and a replica's behind a proxy that packs whatever passes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

#: Bytes that come out at one time: a small body may be a very long one.
PIECE = 1 << 20
#: Bytes that go in at one time: behind each of many short members zlib copies all that is left of them.
WINDOW = 16 << 10
#: Encodings that can be unpacked. What some call deflate has a head and for others it has none.
_KNOWN = ("gzip", "x-gzip", "deflate")


class Unzip:
    """Unpacks a body as it comes."""

    def __init__(self, encoding: str) -> None:
        """Raises ValueError for an encoding that cannot be unpacked."""
        if encoding not in _KNOWN:
            raise ValueError(
                f"the body is packed as {encoding[:40]!r}; only gzip and deflate can be unpacked"
            )
        self._may_be_bare = encoding == "deflate"
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)

    @property
    def complete(self) -> bool:
        """Whether all that was packed has come."""
        return self._unpacker.eof

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What is in `data`, in pieces of at most `PIECE` bytes. Raises ValueError for what is not packed so."""
        for start in range(0, len(data), WINDOW):
            yield from self._pieces(data[start : start + WINDOW])

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._unpacker.eof:  # another member behind the one that has ended
                self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
            try:
                piece = self._unpacker.decompress(data, PIECE)
            except zlib.error as error:
                if not self._may_be_bare:
                    raise ValueError(f"the body cannot be unpacked: {error}") from error
                self._may_be_bare = False
                self._unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
                continue
            self._may_be_bare = False
            unpacker = self._unpacker
            data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            if piece:
                yield piece


def unzip_of(encoding: str | None) -> Unzip | None:
    """What unpacks a body with this `Content-Encoding`; None where it is not packed. Raises ValueError."""
    name = (encoding or "").strip().lower()
    return None if name in ("", "identity") else Unzip(name)
