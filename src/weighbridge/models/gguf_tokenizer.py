"""The tokenizer inside a GGUF file, rebuilt with the `tokenizers` library."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from weighbridge.errors import UnsupportedModel
from weighbridge.models.gguf import GgufFile

# Token types of llama.cpp's format.
_CONTROL, _USER_DEFINED = 3, 4

# The splitting rule of each vocabulary, as its authors published it.
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "default": _GPT2_WORDS,
    "gpt-2": _GPT2_WORDS,
    "llama-bpe": _CL100K.format(digits="{1,3}"),
    "qwen2": _CL100K.format(digits=""),
    "smaug-bpe": _CL100K.format(digits="{1,3}"),
    "tekken": _TEKKEN,
}
_SINGLE_DIGITS = frozenset({"smollm", "refact", "starcoder"})
_IGNORE_MERGES = frozenset({"llama-bpe", "tekken"})


def build(file: GgufFile) -> Tokenizer:
    """A `Tokenizer` that encodes and decodes as the file says. Raises UnsupportedModel naming what is unknown."""
    kind = file.value("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(file)
    elif kind == "llama":
        tokenizer = _sentence_piece(file)
    else:
        raise UnsupportedModel(f"GGUF tokenizer model {kind!r} is not supported (gpt2 and llama are)")
    tokens: list[str] = file.array("tokenizer.ggml.tokens")
    special, plain = [], []
    for token, role in zip(tokens, file.array("tokenizer.ggml.token_type"), strict=False):
        if role == _CONTROL:
            special.append(AddedToken(token, special=True, normalized=False))
        elif role == _USER_DEFINED:
            plain.append(AddedToken(token, special=False, normalized=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)
    _add_ends(tokenizer, file, tokens, kind)
    return tokenizer


def _byte_level(file: GgufFile) -> Tokenizer:
    rule = file.value("tokenizer.ggml.pre", "default")
    vocabulary = {token: index for index, token in enumerate(file.array("tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ", 1)) for merge in file.array("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rule in _IGNORE_MERGES))
    if rule in _SINGLE_DIGITS:
        split: Any = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    elif rule in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[rule]), behavior="isolated")
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    else:
        known = ", ".join(sorted({*_SPLITS, *_SINGLE_DIGITS}))
        raise UnsupportedModel(f"GGUF pre-tokenizer {rule!r} is not supported ({known} are)")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, words])
    if rule == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(file: GgufFile) -> Tokenizer:
    """SentencePiece BPE keeps scores instead of merges: a pair may merge when its union is a token."""
    tokens: list[str] = file.array("tokenizer.ggml.tokens")
    scores: list[float] = file.array("tokenizer.ggml.scores")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    ranked: list[tuple[float, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-score, vocabulary[token], left, right))
    ranked.sort(key=lambda entry: entry[:2])
    unknown = tokens[int(file.value("tokenizer.ggml.unknown_token_id", 0))]
    merges = [(left, right) for _, _, left, right in ranked]
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    replace = normalizers.Replace(" ", "▁")
    prefix = bool(file.value("tokenizer.ggml.add_space_prefix", True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace] if prefix else [replace])
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _add_ends(tokenizer: Tokenizer, file: GgufFile, tokens: list[str], kind: str) -> None:
    """Begin- and end-of-sequence tokens around every text, where the file asks for them."""
    before, after = "", ""
    pairs = []
    if file.value("tokenizer.ggml.add_bos_token", kind == "llama"):
        index = int(file.value("tokenizer.ggml.bos_token_id"))
        before, pairs = f"{tokens[index]} ", [(tokens[index], index)]
    if file.value("tokenizer.ggml.add_eos_token", False):
        index = int(file.value("tokenizer.ggml.eos_token_id"))
        after = f" {tokens[index]}"
        pairs.append((tokens[index], index))
    if pairs:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{before}$A{after}", special_tokens=pairs
        )
