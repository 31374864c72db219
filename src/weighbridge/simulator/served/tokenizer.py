"""A tokenizer that needs no vocabulary: three bytes of text are one token, and nothing is lost."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_PAIRS = 1 << 24  # where the tokens of two bytes begin,
_SINGLES = _PAIRS + (1 << 16)  # of one,
END_OF_TEXT = _SINGLES + (1 << 8)  # and the one without any

#: What a simulated answer is made of: three characters each, so one token.
_COMMON = "of to in is it on be at by as he we so or if my do an up no us am go me"
WORDS = tuple(f" {word}" for word in _COMMON.split())


class SimulatedTokenizer:
    """Lossless and stateless: equal beginnings of texts give equal tokens, so prefix caches work as they should.

    Three bytes a token is a little less than what real vocabularies reach on English.
    """

    vocab_size = END_OF_TEXT + 1
    encodes_apart = False
    eos_token_ids = (END_OF_TEXT,)
    supports_tools = shows_tools = False
    template_text = ""
    pairs = None

    def encode(self, text: str, add_special_tokens: bool = True, *, most: int | None = None) -> list[int]:
        data = text.encode("utf-8", "surrogatepass")
        whole = len(data) - len(data) % 3
        ids = [(data[i] << 16) | (data[i + 1] << 8) | data[i + 2] for i in range(0, whole, 3)]
        rest = data[whole:]
        if len(rest) == 2:
            ids.append(_PAIRS + ((rest[0] << 8) | rest[1]))
        elif rest:
            ids.append(_SINGLES + rest[0])
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return b"".join(map(token_bytes, ids)).decode("utf-8", "replace")

    def token_text(self, token: int) -> str:
        return token_bytes(token).decode("utf-8", "replace")

    def encode_chat(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        *,
        most: int | None = None,
    ) -> list[int]:
        """`<|role|>` and the content of each message, a line each, then the assistant's turn."""
        lines = [f"<|{message['role']}|>{_text(message.get('content'))}\n" for message in messages]
        if add_generation_prompt:
            lines.append("<|assistant|>")
        return self.encode("".join(lines))

    def specials_named(self, names: Iterable[str]) -> frozenset[int]:
        """None: text is all that there is."""
        return frozenset()

    def token_bytes(self, token: int) -> bytes:
        return token_bytes(token)

    def is_special(self, token: int) -> bool:
        return False

    def stream(
        self, *, continuing: bool = False, shown: frozenset[int] = frozenset()
    ) -> SimulatedDetokenizer:
        return SimulatedDetokenizer()


class SimulatedDetokenizer:
    """Text of tokens as they come; a character cut by a token's end waits for the next."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int, /) -> str:
        return self._decoder.decode(token_bytes(token))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


def token_bytes(token: int) -> bytes:
    """The bytes that `token` stands for; none for the end of text."""
    if token < _PAIRS:
        return token.to_bytes(3, "big")
    if token < _SINGLES:
        return (token - _PAIRS).to_bytes(2, "big")
    return bytes([token - _SINGLES]) if token < END_OF_TEXT else b""


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")
