"""Byte-level BPE word by word, with the words seen before remembered: the token ids that `tokenizers` gives, sooner.

A tokenizer of this shape cuts its named tokens out of a text, cuts what is left into words with regular
expressions, and encodes each word on its own (Radford et al. 2019). Text repeats its words (Zipf), so the C++ of
`kernels/native/word_*.cpp` looks most of them up. What each class of characters holds is asked of the very library
that would do the cutting, for each character the first time that it comes. Only tokenizers whose every part is
understood qualify, and they must agree with the library on the texts of `_CHECKS` when they are made.
"""

from __future__ import annotations

import importlib
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Protocol

import msgspec
import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

from weighbridge.errors import UnsupportedModel, said
from weighbridge.models.text.encoding.word_pattern import Program, Sets, compile_pattern, runs_of
from weighbridge.models.text.token_text import byte_alphabet

_words: Any
try:
    _words = importlib.import_module("weighbridge.models.text._words")
except ImportError:  # installed without a C++ compiler
    _words = None

#: How the ByteLevel step splits when it splits by itself.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
#: Stands for the characters that the Digits step cuts at; no regular expression is written like this.
_NUMERIC = "(numeric)"
#: Marks the members of a class when the library is asked. Texts with it are left to the library.
_MARK = "\U0010ffff"
_REFUSED = 1 << 30  # kRefused in word_split.h

_CHECKS = (
    "The quick brown fox can't, they'll, I'D, we've; naïve Größe: 3.14159e-10 or 1234567890 and ½ ² Ⅷ ١٢٣.",
    "  leading, trailing  and   runs\t\tof \n\n\n whitespace \r\n  \u00a0\u3000 end  \n",
    "def f(x: int) -> str:\n\treturn f'{x:>8}'  # camelCase HTTPServer2Go snake_case_10\n    ***!!!///\r\n\r\n",
    "東京タワーに行きました。 中文分词测试，第12章 привет мир שלום مرحبا नमस्ते 안녕하세요 e\u0301 a\u0300\u0301",
    "😀👨‍👩‍👧‍👦🇩🇪 \u0000\u0001\u001f\ufeff\ufffd\u200b <|im_start|>user\nhi<|im_end|> <|im_start <s> [INST]",
    "a" * 100 + "  " * 40 + "0" * 50 + "\n" * 30 + "=" * 70 + "東" * 60 + "ſtuff'ſ 'S ''s",
)


def words_are_compiled() -> bool:
    """Whether this installation has the compiled module that splits and merges."""
    return _words is not None


class _AddedToken(msgspec.Struct):
    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool


class _Model(msgspec.Struct):
    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    type: str = ""
    dropout: float | None = None
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool = False
    ignore_merges: bool = False


class _Json(msgspec.Struct):
    """The parts of tokenizer.json that decide about ids."""

    model: _Model
    added_tokens: list[_AddedToken]
    pre_tokenizer: dict[str, Any] | None
    normalizer: dict[str, Any] | None


class _Class(Protocol):
    def __call__(self, characters: str) -> list[bool]: ...


class WordTokens:
    """The ids of one `tokenizers.Tokenizer`, which must not be changed any more. Safe to share between threads.

    Memory is bounded by the number of characters there are and by 65,536 words, whatever is encoded.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Raises UnsupportedModel for a tokenizer that does not qualify, or without the compiled module."""
        if _words is None:
            raise UnsupportedModel("weighbridge was installed without a C++ compiler")
        try:
            read = msgspec.json.decode(backend.to_str(), type=_Json)
        except msgspec.ValidationError as error:  # no BPE
            raise UnsupportedModel(f"the tokenizer is no byte-level BPE: {said(error)}") from error
        sets = Sets()
        patterns = list(_programs(read.pre_tokenizer, sets))
        self._composed = _composes(read.normalizer)
        self._classes = [_class(source) for source in sets.sources]
        self._encoder = _words.WordEncoder(
            patterns, *_merging(read.model), _named(read.added_tokens), _around(backend)
        )
        self._learn("".join(map(chr, range(128))))
        self._check(backend)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int] | None:
        """Return the ids of `text`, or None when only the library can tell. Raises UnicodeError for half a pair."""
        ids: list[int] | None = self._answer(self._encoder.encode, text, add_special_tokens)
        return ids

    def weigh(
        self, text: str, add_special_tokens: bool, parent: bytes, block_size: int
    ) -> tuple[int, list[bytes]] | None:
        """Return how many ids `encode` gives, and the digests of their full blocks (`block_digests.block_digests`)."""
        weighed: tuple[int, list[bytes]] | None
        weighed = self._answer(self._encoder.weigh, text, add_special_tokens, parent, block_size)
        return weighed

    def _answer(self, ask: Callable[..., Any], text: str, *options: Any) -> Any:
        if self._composed and not text.isascii() and not unicodedata.is_normalized("NFC", text):
            return None
        answer = ask(text, *options)
        if type(answer) is not str:
            return answer
        self._learn(answer)
        return ask(text, *options)

    def _learn(self, characters: str) -> None:
        """Ask the library in which classes these characters are."""
        members = [ask(characters) for ask in self._classes]
        for index, character in enumerate(characters):
            sets = sum(1 << number for number, found in enumerate(members) if found[index])
            # The library may know compositions of characters that are newer than Python's table.
            refused = character == _MARK or (self._composed and unicodedata.category(character) == "Cn")
            self._encoder.learn(ord(character), sets | _REFUSED if refused else sets)

    def _check(self, backend: tokenizers.Tokenizer) -> None:
        for text in _CHECKS:
            for special in (True, False):
                ids = self.encode(text, special)
                if ids is not None and ids != backend.encode(text, add_special_tokens=special).ids:
                    raise UnsupportedModel(f"the tokenizer encodes {text!r} in a way of its own")


# -- what the JSON says -------------------------------------------------------------------------------------


def _programs(step: dict[str, Any] | None, sets: Sets) -> Iterator[Program]:
    """One program per step that splits; the last step must turn bytes into their characters."""
    steps = list(_flat(step))
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        raise UnsupportedModel("the tokenizer's words do not end up as bytes")
    for item in steps[:-1]:
        if (
            item["type"] == "Split"
            and item["behavior"] == "Isolated"
            and not item["invert"]
            and "Regex" in item["pattern"]
        ):
            yield compile_pattern(item["pattern"]["Regex"], sets)
        elif item["type"] == "Digits":
            yield runs_of(_NUMERIC, sets, 1 if item["individual_digits"] else -1)
        else:
            raise UnsupportedModel(f"the tokenizer splits with {item['type']}")
    if steps[-1]["use_regex"]:
        yield compile_pattern(_GPT2, sets)


def _flat(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if step is None:
        return
    if step["type"] == "Sequence":
        for item in step["pretokenizers"]:
            yield from _flat(item)
    else:
        yield step


def _composes(normalizer: dict[str, Any] | None) -> bool:
    """Whether texts are brought into Unicode's composed form, the only normalisation that is understood."""
    if normalizer is None:
        return False
    inner = normalizer.get("normalizers", [normalizer])
    if any(item["type"] != "NFC" for item in inner):
        raise UnsupportedModel("the tokenizer normalises texts")
    return bool(inner)


def _merging(model: _Model) -> tuple[list[int], bytes, list[tuple[bytes, int]]]:
    """Return the token of each byte (-1: none), the merges as triples of tokens, the words that are never merged."""
    alphabet = byte_alphabet()
    byte_tokens = [-1] * 256
    for character, byte in alphabet.items():
        byte_tokens[byte] = model.vocab.get(character, -1)
    odd = model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix or model.byte_fallback
    if odd or (model.unk_token is not None and -1 in byte_tokens):
        raise UnsupportedModel("the tokenizer's BPE has more to it than merges of bytes")
    vocab = model.vocab
    try:
        triples = array("I", chain.from_iterable((vocab[a], vocab[b], vocab[a + b]) for a, b in model.merges))
    except (KeyError, OverflowError) as error:
        raise UnsupportedModel(f"a merge of the tokenizer is of no tokens: {said(error)}") from error
    words = (
        [(_bytes_of(word, alphabet), token) for word, token in vocab.items()] if model.ignore_merges else []
    )
    return byte_tokens, triples.tobytes(), [(word, token) for word, token in words if word]


def _bytes_of(word: str, alphabet: dict[str, int]) -> bytes:
    """Return the bytes of a word; none where it is written with other characters, which no text has."""
    try:
        return bytes([alphabet[character] for character in word])
    except KeyError:
        return b""


def _named(tokens: list[_AddedToken]) -> list[list[tuple[str, int]]]:
    """The named tokens in the order in which the library looks for them: those outside of normalisation first."""
    tokens = [token for token in tokens if token.content]
    if any(token.single_word or token.lstrip or token.rstrip for token in tokens):
        raise UnsupportedModel("a named token of the tokenizer depends on what is around it")
    if any(token.normalized and not unicodedata.is_normalized("NFC", token.content) for token in tokens):
        raise UnsupportedModel("a named token of the tokenizer is not in composed form")
    passes = (
        [(item.content, item.id) for item in tokens if item.normalized is normal] for normal in (False, True)
    )
    return [names for names in passes if names]


def _around(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids that `backend` puts before and behind each text."""
    for text in "abcdefgh":
        alone = backend.encode(text, add_special_tokens=False).ids
        ids = backend.encode(text, add_special_tokens=True).ids
        if len(alone) == 1 and ids.count(alone[0]) == 1:
            at = ids.index(alone[0])
            return ids[:at], ids[at + 1 :]
    raise UnsupportedModel("the tokenizer does more than put tokens around texts")


# -- what the library says ----------------------------------------------------------------------------------


def _class(source: str) -> _Class:
    if source == _NUMERIC:
        return _are_numeric
    replaced = normalizers.Replace(Regex(source), _MARK)

    def ask(characters: str) -> list[bool]:
        marked: str = replaced.normalize_str(characters)
        if len(marked) != len(characters):  # two characters together were taken for one
            return [_MARK in replaced.normalize_str(item) for item in characters]
        return [item == _MARK for item in marked]

    return ask


def _are_numeric(characters: str) -> list[bool]:
    cut: Iterable[tuple[str, Any]] = pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str(
        "".join(f"a{item}" for item in characters)
    )
    numeric = {piece for piece, _ in cut if len(piece) == 1 and piece != "a"}
    return [item in numeric for item in characters]
