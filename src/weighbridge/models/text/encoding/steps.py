"""Whether the time and memory that a tokenizer.json takes for a text are known to grow with the text alone.

Its normaliser, its cutting into words and its model come from a file, and each can be made to take hours or all memory
(a pattern that backtracks, a replacement of megabytes, doubled by the next one). What is known here to be harmless is
run as it is; of all else nothing is known.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import msgspec
import tokenizers
from tokenizers import models

from weighbridge.models.text.encoding.patterns import is_linear

#: Steps, one after another; characters that a step may write for one; how much longer all of them may make a text.
MOST_STEPS, MOST_WRITTEN, MOST_GROWTH = 32, 64, 1024.0
#: Characters of a word that WordPiece looks up in all its parts, and of a piece of a unigram vocabulary.
LONGEST_WORD, LONGEST_PIECE = 1000, 1024

#: Steps whose time and growth are bounded whatever the file says. Canonical decomposition makes 18 of one at most.
_NORMALIZERS = {
    "NFC": 3.0,
    "NFD": 4.0,
    "NFKC": 18.0,
    "NFKD": 18.0,
    "Lowercase": 3.0,
    "Nmt": 1.0,
    "Strip": 1.0,
    "StripAccents": 1.0,
    "BertNormalizer": 12.0,
    "ByteLevel": 4.0,
}
_CUTTERS = frozenset(
    {
        "ByteLevel",
        "Metaspace",
        "BertPreTokenizer",
        "Whitespace",
        "WhitespaceSplit",
        "Digits",
        "Punctuation",
        "CharDelimiterSplit",
        "UnicodeScripts",
    }
)

Step = Mapping[str, Any]


class _Json(msgspec.Struct):
    normalizer: Any = None
    pre_tokenizer: Any = None
    model: Any = None


def may_load(file: bytes) -> bool:
    """Whether reading a tokenizer.json is known to end: the library runs its steps over its own tokens.

    True where it is none: then the library says so.
    """
    try:
        read = msgspec.json.decode(file, type=_Json)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return True
    return _are_bounded(read.normalizer, read.pre_tokenizer)


def is_bounded(backend: tokenizers.Tokenizer) -> bool:
    """Whether what was loaded is known to take time and memory for a text that grow with the text alone."""
    normalizer, cutter = (
        None if part is None else msgspec.json.decode(part.__getstate__())
        for part in (backend.normalizer, backend.pre_tokenizer)
    )
    return _are_bounded(normalizer, cutter) and _is_bounded(backend)


def _are_bounded(normalizer: Any, cutter: Any) -> bool:
    try:
        normalizers, cutters = list(_flat(normalizer, "normalizers")), list(_flat(cutter, "pretokenizers"))
        if len(normalizers) + len(cutters) > MOST_STEPS:
            return False
        return prod(map(_growth, normalizers)) <= MOST_GROWTH and all(map(_cuts_in_bounds, cutters))
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):  # steps that are none
        return False


def _flat(step: Step | None, inner: str) -> Iterable[Step]:
    if step is None:
        return
    if step["type"] == "Sequence":
        for one in step[inner]:
            yield from _flat(one, inner)
    else:
        yield step


def _growth(step: Step) -> float:
    """How many times as long a normaliser makes a text at most; infinite where nothing is known."""
    kind = step["type"]
    if kind == "Prepend":
        return 1.0 if len(step["prepend"]) <= MOST_WRITTEN else float("inf")
    if kind == "Replace":
        return _replaced(step["pattern"], step["content"])
    if kind == "Precompiled":
        return _longest_mapping(step["precompiled_charsmap"])
    return _NORMALIZERS.get(kind, float("inf"))


def _replaced(pattern: Step, content: str) -> float:
    least = len(pattern["String"]) if "String" in pattern else int(is_linear(pattern["Regex"]))
    return max(len(content) / least, 1.0) if least and len(content) <= MOST_WRITTEN else float("inf")


def _longest_mapping(charsmap: str | None) -> float:
    """SentencePiece's table: the size of a trie, the trie, and all that characters become, ended by zeros."""
    try:
        table = base64.b64decode(charsmap or "", validate=True)
    except binascii.Error:
        return float("inf")
    at = 4 + int.from_bytes(table[:4], "little")
    return float(max(max(map(len, table[at:].split(b"\0"))), 1)) if at <= len(table) else float("inf")


def _cuts_in_bounds(step: Step) -> bool:
    if step["type"] != "Split":
        return step["type"] in _CUTTERS
    pattern = step["pattern"]
    return len(pattern["String"]) > 0 if "String" in pattern else is_linear(pattern["Regex"])


def _is_bounded(backend: tokenizers.Tokenizer) -> bool:
    """Byte pairs are merged in order whatever they are; other models look up parts of words."""
    model = backend.model
    if isinstance(model, models.WordPiece):
        return int(model.max_input_chars_per_word) <= LONGEST_WORD
    if isinstance(model, models.Unigram):
        return max(map(len, backend.get_vocab(with_added_tokens=False)), default=0) <= LONGEST_PIECE
    return isinstance(model, models.BPE | models.WordLevel)
