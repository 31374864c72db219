"""The tokenizer inside a GGUF file, rebuilt with the `tokenizers` library.

It is rebuilt at every start: for 49,000 tokens that takes 0.1 s, no longer than reading a kept copy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from weighbridge.errors import BadInput, UnsupportedModel, said
from weighbridge.models.files.fields import shown
from weighbridge.models.files.gguf_format import GgufMetadata
from weighbridge.models.text.chat_template import ChatTemplate
from weighbridge.models.text.gguf_splits import DEFAULT, RULES, SplitRule
from weighbridge.models.text.tokenizer_parts import TokenizerParts, wrap_texts

log = logging.getLogger("weighbridge.models")

# Token types of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

#: Characters of a token, and of all tokens, that are tried for pairs to merge: what is tried grows with both.
MAX_PIECE_LENGTH, MAX_PIECES_LENGTH = 1024, 1 << 23

_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def read_gguf_tokenizer(path: Path) -> TokenizerParts:
    """Return the tokenizer and chat template of a GGUF file. Raises UnsupportedModel naming what is unknown."""
    file = GgufMetadata(path)
    backend = convert(file)
    names = {role: name for role, key in _ROLES.items() if (name := _token(file, key)) is not None}
    size, bos = len(file.strings("tokenizer.ggml.tokens")), file.index("tokenizer.ggml.bos_token_id")
    return TokenizerParts(backend, file.end_token_ids(), bos, _template(file, names), size, names)


def convert(file: GgufMetadata) -> tokenizers.Tokenizer:
    """Return a `tokenizers.Tokenizer` that splits and merges as the file says."""
    kind = file.text("tokenizer.ggml.model")
    tokens = file.strings("tokenizer.ggml.tokens")
    if not tokens:
        raise BadInput(f"{file.path.name} has no vocabulary (tokenizer.ggml.tokens)")
    if kind == "gpt2":
        backend, adds_bos = _byte_level(file, tokens)
    elif kind == "llama":
        backend, adds_bos = _sentence_piece(file, tokens), True
    else:
        raise UnsupportedModel(f"GGUF tokenizer model {kind!r} is not supported (gpt2 and llama are)")
    types = file.integers("tokenizer.ggml.token_type")
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in _of_type(tokens, types, _CONTROL)]
    )
    backend.add_tokens(
        [
            AddedToken(token, special=False, normalized=False)
            for token in _of_type(tokens, types, _USER_DEFINED)
        ]
    )
    before = _token(file, "bos") if file.flag("tokenizer.ggml.add_bos_token", adds_bos) else None
    after = _token(file, "eos") if file.flag("tokenizer.ggml.add_eos_token", False) else None
    if before is not None or after is not None:
        wrap_texts(backend, before, after)
    return backend


def _of_type(tokens: list[str], types: list[int], token_type: int) -> Iterator[str]:
    return (token for token, kind in zip(tokens, types, strict=False) if kind == token_type)


def _token(file: GgufMetadata, key: str) -> str | None:
    index, tokens = file.index(f"tokenizer.ggml.{key}_token_id"), file.strings("tokenizer.ggml.tokens")
    return tokens[index] if index is not None and 0 <= index < len(tokens) else None


def _ids(tokens: list[str]) -> dict[str, int]:
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        ids.setdefault(token, index)
    return ids


def _byte_level(file: GgufMetadata, tokens: list[str]) -> tuple[tokenizers.Tokenizer, bool]:
    """Byte-level BPE, and whether its texts start with BOS when the file does not say."""
    rule = _rule(file)
    merges = [_pair(merge) for merge in file.strings("tokenizer.ggml.merges")]
    try:
        model = models.BPE(_ids(tokens), merges, ignore_merges=rule.whole_words)
    except Exception as error:  # the library raises plain Exception
        raise BadInput(
            f"the vocabulary and merges of {file.path.name} do not fit together: {said(error)}"
        ) from error
    backend = Tokenizer(model)
    splits: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    prefix = file.flag("tokenizer.ggml.add_space_prefix", False)
    splits.append(pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    if rule.composed:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend, rule.begins


def _rule(file: GgufMetadata) -> SplitRule:
    """Return how words are split. llama.cpp's own default stands in where a file says nothing, and is said."""
    name = file.text("tokenizer.ggml.pre", "")
    if name and name not in RULES:
        raise UnsupportedModel(
            f"{file.path.name}: GGUF pre-tokenizer {shown(name)} is not supported ({', '.join(sorted(RULES))} are); "
            "the model's Hugging Face directory has a tokenizer.json, which says it by itself"
        )
    if not name:
        log.warning(
            "%s does not say how text is split into words (tokenizer.ggml.pre): split by llama.cpp's default, which "
            "may not be how the model was trained",
            file.path.name,
        )
    return RULES[name] if name else DEFAULT


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _sentence_piece(file: GgufMetadata, tokens: list[str]) -> tokenizers.Tokenizer:
    """SentencePiece BPE (Kudo and Richardson 2018): spaces are "▁", unknown characters become bytes."""
    ids = _ids(tokens)
    stored = file.strings("tokenizer.ggml.merges")
    merges = [_pair(merge) for merge in stored] if stored else _merges_from_scores(file, tokens, ids)
    unknown = _token(file, "unknown") or tokens[0]
    backend = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = file.flag("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _merges_from_scores(file: GgufMetadata, tokens: list[str], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Two tokens merge when together they are a token; the one with the highest score is merged first."""
    scores = file.floats("tokenizer.ggml.scores")
    types = file.integers("tokenizer.ggml.token_type")
    if not len(scores) == len(types) == len(tokens):
        raise BadInput(f"{file.path.name} must have a score and a type for each of its {len(tokens)} tokens")
    length = sum(map(len, tokens))
    if length > MAX_PIECES_LENGTH or max(map(len, tokens)) > MAX_PIECE_LENGTH:
        raise BadInput(
            f"the tokens of {file.path.name} are too long to be merged by their scores: at most {MAX_PIECE_LENGTH} "
            f"characters, {MAX_PIECES_LENGTH} in all"
        )
    pieces = {token for token, kind in zip(tokens, types, strict=True) if kind in (_NORMAL, _USER_DEFINED)}
    ranked = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token) if token in pieces else 0):
            left, right = token[:cut], token[cut:]
            if left in pieces and right in pieces:
                ranked.append((-score, ids[token], ids[left], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _template(file: GgufMetadata, names: dict[str, str]) -> ChatTemplate | None:
    """Templates by name; the default one is stored without a name."""
    key = "tokenizer.chat_template"
    sources = {"default": file.text(key), "tool_use": file.text(f"{key}.tool_use")}
    templates = {name: source for name, source in sources.items() if source}
    return ChatTemplate(templates, names) if "default" in templates else None
