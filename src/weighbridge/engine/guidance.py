"""Structured output: JSON schemas, regular expressions and grammars as masks over the vocabulary (llguidance)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from weighbridge.engine.request import Guide
from weighbridge.errors import BadInput

_ANY_OBJECT = json.dumps({"type": "object"})


class GuideFactory:
    """Makes matchers for one vocabulary. The vocabulary is prepared at first use, which takes about a second."""

    def __init__(self, backend: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._backend = backend
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return LLTokenizer(self._backend.to_str(), n_vocab=self._vocab_size, eos_token=self._eos_token_ids)

    def validate(self, guide: Guide) -> None:
        """Raise BadInput that says what is wrong with a schema, pattern or grammar."""
        error: str = LLMatcher.validate_grammar(_grammar(guide), self._tokenizer)
        if error:
            raise BadInput(
                f"the {guide.kind.replace('_', ' ')} cannot be used: {error.strip()}", param="response_format"
            )

    def matcher(self, guide: Guide) -> Matcher:
        """Return a fresh matcher at the start of the output. Raises BadInput as `validate` does."""
        return Matcher(LLMatcher(self._tokenizer, _grammar(guide)), self._vocab_size)


class Matcher:
    """The state of one constrained output."""

    def __init__(self, inner: LLMatcher, vocab_size: int) -> None:
        self._inner = inner
        if inner.is_error():
            raise BadInput(f"the constraint cannot be used: {inner.get_error()}", param="response_format")
        self._bits = np.zeros(-(-vocab_size // 32), np.int32)
        self._vocab_size = vocab_size

    def allowed(self) -> torch.Tensor:
        """Bool [vocab]: tokens that may come next. Only end-of-sequence is left once the output is complete.

        Raises ValueError when the grammar has failed.
        """
        self._inner.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._inner.is_error():
            raise ValueError(f"the constraint failed: {self._inner.get_error()}")
        bits: npt.NDArray[np.uint8] = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return torch.from_numpy(bits[: self._vocab_size].view(np.bool_).copy())

    def accept(self, token: int) -> None:
        """Move on over `token`. Raises ValueError when the grammar does not allow it."""
        if not self._inner.is_stopped() and not self._inner.consume_token(token):
            raise ValueError(f"token {token} breaks the constraint: {self._inner.get_error()}")


def _grammar(guide: Guide) -> str:
    try:
        if guide.kind == "json_object":
            return str(LLMatcher.grammar_from_json_schema(_ANY_OBJECT))
        if guide.kind == "json_schema":
            return str(LLMatcher.grammar_from_json_schema(guide.source))
        if guide.kind == "regex":
            return str(LLMatcher.grammar_from_regex(guide.source))
        if guide.kind == "lark":
            return str(LLMatcher.grammar_from_lark(guide.source))
    except ValueError as error:
        raise BadInput(
            f"the {guide.kind.replace('_', ' ')} cannot be used: {error}", param="response_format"
        ) from error
    raise BadInput(
        f"constraint {guide.kind!r} is not known: use json_schema, json_object, regex or lark",
        param="response_format",
    )
