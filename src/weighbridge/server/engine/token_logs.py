"""Log-probabilities as clients read them: in OpenAI's two forms, and a prompt's in vLLM's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from weighbridge.engine.request import TokenLogprob
from weighbridge.engine.text import TokenDecoder

#: JSON has no infinity; OpenAI writes this for what cannot happen.
_NEVER = -9999.0


class TokenNames(Protocol):
    """What is asked of a tokenizer about single tokens."""

    def token_bytes(self, token_id: int, /) -> bytes: ...
    def token_text(self, token_id: int, /) -> str: ...
    def is_special(self, token_id: int, /) -> bool: ...
    def stream(self, *, continuing: bool = False) -> TokenDecoder: ...


def finite(logprob: float) -> float:
    return max(logprob, _NEVER)


class ChatLogs:
    """The entries of `logprobs.content` in a chat. `bytes` are the token's own: a character may take several tokens."""

    def __init__(self, tokens: TokenNames) -> None:
        self._tokens = tokens

    def content(self, items: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {
            "content": [
                {**self._one(item.token, item.logprob), "top_logprobs": [self._one(*one) for one in item.top]}
                for item in items
            ]
        }

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        tokens = self._tokens
        text, data = tokens.token_text(token), tokens.token_bytes(token)
        return {"token": text, "logprob": finite(logprob), "bytes": list(data)}


class TextLogs:
    """The lists of a completion's `logprobs`, for one choice: tokens, how likely each was, and where each begins in
    the text. `echo`: the prompt's text, which the answer begins with."""

    def __init__(self, tokens: TokenNames, echo: str = "") -> None:
        self._tokens = tokens
        self._echo = echo
        self._at = 0
        self._stream = tokens.stream()

    def of_prompt(self, prompt: Sequence[int], scores: Iterable[TokenLogprob]) -> dict[str, Any]:
        """Those of the prompt, the first of which has no probability."""
        first: dict[str, list[Any]] = {
            "tokens": [self._name(prompt[0])],
            "token_logprobs": [None],
            "top_logprobs": [None],
        }
        begins = [self._begin(token) for token in prompt]
        self._at, self._stream = len(self._echo), self._tokens.stream(continuing=True)
        rest = self._lists(list(scores))
        return {**{name: first[name] + rest[name] for name in first}, "text_offset": begins}

    def of_output(self, items: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Those of further output."""
        self._at = max(self._at, len(self._echo))
        begins = [self._begin(item.token) for item in items]
        return {**self._lists(items), "text_offset": begins}

    def _lists(self, items: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        return {
            "tokens": [self._name(item.token) for item in items],
            "token_logprobs": [finite(item.logprob) for item in items],
            "top_logprobs": [self._top(item) for item in items],
        }

    def _top(self, item: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens by name, with the one that came; of two of one name the likelier counts."""
        top: dict[str, float] = {}
        for token, logprob in (*item.top, (item.token, item.logprob)):
            top.setdefault(self._name(token), finite(logprob))
        return top

    def _begin(self, token: int) -> int:
        """Where a token begins in the text. A control token has no text, unless the prompt spelled it."""
        begin = self._at
        if self._tokens.is_special(token):
            name = self._tokens.token_text(token)
            self._at += len(name) if self._echo.startswith(name, begin) else 0
        else:
            self._at += len(self._stream.push(token))
        return begin

    def _name(self, token: int) -> str:
        """A token's text; of one that is no text by itself its bytes, as OpenAI writes them."""
        data = self._tokens.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def prompt_logs(
    tokens: TokenNames, prompt: Sequence[int], scores: Sequence[TokenLogprob]
) -> list[Mapping[str, Any] | None]:
    """`prompt_logprobs` as vLLM writes them: for each token but the first, itself and the likeliest in its place."""
    return [None, *(_ranked(tokens, score) for score in scores)] if prompt else []


def _ranked(tokens: TokenNames, score: TokenLogprob) -> dict[str, Any]:
    own = (score.token, score.logprob, score.rank)
    top = [(token, logprob, place) for place, (token, logprob) in enumerate(score.top, 1)]
    return {
        str(token): {"logprob": finite(logprob), "rank": rank, "decoded_token": tokens.token_text(token)}
        for token, logprob, rank in (own, *(one for one in top if one[0] != score.token))
    }
