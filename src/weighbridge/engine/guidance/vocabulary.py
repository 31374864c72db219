"""What constraints know of a model's tokens: a tree of their bytes, and how a forced text is cut into tokens."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from weighbridge.errors import UnsupportedModel
from weighbridge.models.text.token_text import TokenBytes, byte_alphabet

#: Tokens that a string of JSON may hold wherever it is are looked at once, and not for each mask. Others of the
#: library's slices made no mask faster, and each is another tree of tens of MB for 150,000 tokens.
_SLICES = LLTokenizer.general_slices()[-1:]
#: What the library begins tokens with that are no text.
_MARK = b"\xff"
_ANY_TEXT = r"(?s:.*)"
#: Ends the texts of a vocabulary that is only asked of what is in it.
_END = "<the end of a text>"


class Vocabulary(msgspec.Struct, frozen=True):
    """What a tokenizer for constraints is made of."""

    tokenizer: str  # the JSON of a `tokenizers.Tokenizer`
    size: int
    eos_token_ids: list[int]

    def load(self) -> LLTokenizer:
        """Return the prepared vocabulary; takes about 10 us a token, and holds the interpreter meanwhile."""
        return LLTokenizer(
            self.tokenizer, n_vocab=self.size, eos_token=self.eos_token_ids, slices=list(_SLICES)
        )


def shared(backend: Tokenizer, size: int, eos_token_ids: Sequence[int]) -> LLTokenizer | None:
    """Return what `Vocabulary.load` does, without words and merges of its own: a third of the memory; None where the
    library alone knows what bytes tokens are. Texts are cut by `backend`, which must stay as it is."""
    try:
        tokens = TokenBytes(backend)
    except UnsupportedModel:
        return None
    if not tokens.is_byte_level or not eos_token_ids:
        return None
    made = _Tokens([*tokens.all(size)], backend, eos_token_ids[0])
    text = _added_text(backend)
    for index, token in backend.get_added_tokens_decoder().items():
        made.tokens[index] = (b"" if index in text else _MARK) + token.content.encode()
    wrapper = TokenizerWrapper(made)
    prepared = LLTokenizer(wrapper, n_vocab=size, eos_token=list(eos_token_ids), slices=list(_SLICES))
    made.tokens = wrapper.tokens = []  # the tree has them
    return prepared


class _Tokens:
    """What the library asks of a tokenizer."""

    bos_token_id: int | None = None

    def __init__(self, tokens: list[bytes], backend: Tokenizer, eos_token_id: int) -> None:
        self.tokens = tokens
        self.eos_token_id = eos_token_id
        self._backend = backend

    def __call__(self, text: bytes) -> list[int]:
        ids: list[int] = self._backend.encode(text.decode(), add_special_tokens=False).ids
        return ids


def _added_text(backend: Tokenizer) -> frozenset[int]:
    """Which added tokens the library takes for text: it is asked, with a vocabulary of them and the bytes alone."""
    added = backend.get_added_tokens_decoder()
    alone = Tokenizer(models.BPE({character: index for index, character in enumerate(byte_alphabet())}, []))
    alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alone.decoder = decoders.ByteLevel()
    for token in added.values():
        (alone.add_special_tokens if token.special else alone.add_tokens)([token])
    alone.add_special_tokens([_END])
    end = alone.get_vocab_size() - 1
    asked = LLTokenizer(alone.to_str(), n_vocab=end + 1, eos_token=[end], slices=[])
    matcher = LLMatcher(asked, LLMatcher.grammar_from_regex(_ANY_TEXT))
    allowed = int.from_bytes(matcher.compute_bitmask(), "little")
    places = ((index, alone.token_to_id(token.content)) for index, token in added.items())
    return frozenset(index for index, at in places if at is not None and allowed >> at & 1)
