"""From token ids to text: the bytes each token stands for, and text that grows token by token."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import tokenizers

from weighbridge.errors import UnsupportedModel

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_PIECE = "▁"


def byte_alphabet() -> dict[str, int]:
    """Return the printable character that byte-level BPE (Radford et al. 2019) writes for each byte.

    Printable Latin-1 stands for itself; the other 68 bytes take the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unprintable = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in sorted(printable)}
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(unprintable)})
    return alphabet


def _decoder_steps(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _decoder_steps(step)
    else:
        yield decoder


class TokenBytes:
    """The bytes behind each token id, for byte-level BPE and for SentencePiece vocabularies."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Raises UnsupportedModel for a tokenizer whose decoder is neither."""
        self._backend = backend
        self._looked_up: dict[int, bytes] = {}
        steps = list(_decoder_steps(json.loads(_decoder_json(backend))))
        kinds = {step["type"] for step in steps}
        self._alphabet = byte_alphabet() if "ByteLevel" in kinds else None
        #: What a piece that goes on with a word begins with; "": pieces have their spaces with them.
        self._continues = next(
            (step.get("prefix", "##") for step in steps if step["type"] == "WordPiece"), ""
        )
        if self._alphabet is None and not self._continues and not kinds & {"ByteFallback", "Metaspace"}:
            names = ", ".join(sorted(kinds)) or "no decoder"
            raise UnsupportedModel(
                f"the tokenizer decodes with {names}, but byte-level BPE, SentencePiece and WordPiece are supported"
            )
        #: Decoded texts lose one leading space: SentencePiece put it there, or we did before a word.
        self.strips_space = any(_strips(step) for step in steps) or bool(self._continues)

    @property
    def is_byte_level(self) -> bool:
        """Whether every byte of a text is in one token, and nothing else is."""
        return self._alphabet is not None

    def __getitem__(self, token_id: int) -> bytes:
        """Empty for ids that no token has: models pad their vocabulary to round sizes."""
        found = self._looked_up.get(token_id)
        if found is None:
            found = self._looked_up[token_id] = self._look_up(token_id)
        return found

    def all(self, size: int) -> Iterator[bytes]:
        """Of the ids below `size`, in order, and nothing is kept of them."""
        return map(self._look_up, range(size))

    def _look_up(self, token_id: int) -> bytes:
        piece = self._backend.id_to_token(token_id) if token_id >= 0 else None
        if piece is None:
            return b""
        if self._continues:
            goes_on = piece.startswith(self._continues)
            return (piece.removeprefix(self._continues) if goes_on else f" {piece}").encode()
        if self._alphabet is None:
            byte = _BYTE_PIECE.fullmatch(piece)
            return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE_PIECE, " ").encode()
        try:
            return bytes([self._alphabet[character] for character in piece])
        except KeyError:  # an added token, written as it is
            return str(piece).encode()


def _decoder_json(backend: tokenizers.Tokenizer) -> str:
    state = backend.decoder.__getstate__() if backend.decoder is not None else b"null"
    return str(state, "utf-8")


def _strips(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return bool(step.get("prepend_scheme", "always") != "never")
    return bool(step["type"] == "Strip" and step.get("content") == " " and step.get("start", 0) > 0)


class Detokenizer:
    """Text of one sequence, token by token. Never gives out part of a character: it waits for the rest.

    Bytes that are not UTF-8 become U+FFFD, as in a decode of the whole.
    """

    __slots__ = ("_bytes", "_decoder", "_skipped", "_strip")

    def __init__(self, token_bytes: TokenBytes, skipped: frozenset[int], continuing: bool = False) -> None:
        self._bytes = token_bytes
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = token_bytes.strips_space and not continuing

    def push(self, token_id: int) -> str:
        """Return the text that became certain with this token; often empty inside a character of many bytes."""
        if token_id in self._skipped:
            return ""
        data = self._bytes[token_id]
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """Return what is still held back at the end of the sequence: U+FFFD for an unfinished character."""
        return self._decoder.decode(b"", final=True)


def decode(token_ids: Iterable[int], stream: Detokenizer) -> str:
    """Return the whole text of `token_ids` through a fresh `stream`."""
    return "".join([stream.push(token_id) for token_id in token_ids]) + stream.flush()
