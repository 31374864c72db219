"""Ids found word by word are the ids of the `tokenizers` library, for every shape of tokenizer that qualifies."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.models.test_tokenizer import TEXTS
from weighbridge.engine.memory.prefix import PrefixCache
from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.text import block_digests as digests_module
from weighbridge.models.text import word_tokens as words_module
from weighbridge.models.text.block_digests import ROOT, block_digests
from weighbridge.models.text.encoding.word_pattern import MAX_SETS, Sets, compile_pattern
from weighbridge.models.text.gguf_splits import _LLAMA3, _QWEN2, _TEKKEN
from weighbridge.models.text.tokenizer import Tokenizer, load_tokenizer
from weighbridge.models.text.tokenizer_parts import TokenizerParts
from weighbridge.models.text.word_tokens import WordTokens

pytestmark = pytest.mark.skipif(words_module._words is None, reason="built without a C++ compiler")

# Published patterns; https://huggingface.co/deepseek-ai/DeepSeek-V3 and openai/gpt-oss-20b, tokenizer.json.
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CORPUS = [*TEXTS, Path(__file__).read_text(), (Path(__file__).parents[2] / "README.md").read_text()]


def _bytes(**options: bool) -> Any:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False, **options})


def _splits(*patterns: str) -> Any:
    return pre_tokenizers.Sequence(
        [*(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns), _bytes()]
    )


def _trained(splitter: Any, normalizer: Any = None, **options: Any) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(**options))
    backend.pre_tokenizer, backend.decoder = splitter, decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, show_progress=False, initial_alphabet=alphabet)
    backend.train_from_iterator(_CORPUS, trainer)
    backend.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<s>", "<|im_start|>", "<|im_end|>")]
    )
    return backend


def _gpt2() -> tokenizers.Tokenizer:
    backend = _trained(_bytes(use_regex=True))
    backend.add_tokens([AddedToken("<|im_start|><s>", normalized=True), AddedToken(" tool", normalized=True)])
    return backend


def _llama3() -> tokenizers.Tokenizer:
    backend = _trained(_splits(_LLAMA3), ignore_merges=True)
    start = ("<s>", backend.token_to_id("<s>"))
    backend.post_processor = processors.Sequence(
        [processors.ByteLevel(), processors.TemplateProcessing(single="<s> $A", special_tokens=[start])]
    )
    return backend


def _digits(individual: bool) -> tokenizers.Tokenizer:
    return _trained(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual), _bytes(use_regex=True)]))


def _few_bytes() -> tokenizers.Tokenizer:
    """A vocabulary that lacks most bytes, as SmolLM2's lacks some: they vanish from texts."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = _bytes(use_regex=True), decoders.ByteLevel()
    backend.train_from_iterator(["the quick brown fox"] * 9, trainers.BpeTrainer(show_progress=False))
    return backend


_SHAPES: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "gpt2": _gpt2,
    "smollm": lambda: _digits(True),
    "digit runs": lambda: _digits(False),
    "llama3": _llama3,
    "qwen2": lambda: _trained(_splits(_QWEN2), normalizers.NFC()),
    "tekken": lambda: _trained(_splits(_TEKKEN), ignore_merges=True),
    "o200k": lambda: _trained(_splits(_O200K)),
    "deepseek": lambda: _trained(_splits(*_DEEPSEEK)),
    "few bytes": _few_bytes,
}


@cache
def _pair(shape: str) -> tuple[tokenizers.Tokenizer, WordTokens]:
    backend = _SHAPES[shape]()
    return backend, WordTokens(backend)


def _same(shape: str, text: str) -> bool:
    """Whether the words say what the library says, if they say anything; returns whether they do."""
    backend, words = _pair(shape)
    said = False
    for special in (True, False):
        found = words.encode(text, special)
        assert found is None or found == backend.encode(text, add_special_tokens=special).ids
        said = found is not None
    return said


#: Pieces of text that tokenizers have been seen to trip over.
_PIECES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(
        [*"aZ0 9\n\r\t'.-_/", "  ", "\r\n", "'s", "'LL", " 'Re", "ſ", "東京", "é", "e\u0301", "😀", "\u3000"]
    ),
    st.sampled_from(
        ["<s>", "<|im_start|>", "<|im_end|>", "<|im_", "start|>", "<", "<|im_start|><s>", " tool", "\x00"]
    ),
    st.builds(
        lambda one, count: one * count,
        st.sampled_from(
            ["a", "A", "0", " ", "\n", "!", "東", "ａ", "٣", "\u0301", "<s", "ab", "=-", "\U0001f468\u200d"]
        ),
        st.integers(1, 120),
    ),
)
_ANY_TEXT = st.lists(_PIECES, max_size=12).map("".join)


@pytest.mark.parametrize("shape", _SHAPES)
def test_ids_are_the_library_s(shape: str) -> None:
    @settings(max_examples=250, deadline=None)
    @given(text=_ANY_TEXT)
    @example(text="a" * 5000 + "東" * 3000 + " " * 4000)
    @example(text="".join(TEXTS))
    def check(text: str) -> None:
        _same(shape, text)

    check()
    for text in (*TEXTS, *_CORPUS):
        assert _same(shape, text) or shape == "qwen2"
    assert _pair(shape)[1].encode("Größe, 東京 12") is not None


@pytest.mark.parametrize("shape", _SHAPES)
def test_every_character_is_in_the_library_s_classes(shape: str) -> None:
    """Between letters, digits and spaces each character splits, joins or stands alone as it does there."""
    rng = random.Random(1)
    codes = [
        *range(0x3000),
        *rng.sample(range(0x3000, 0xD800), 3000),
        *rng.sample(range(0xE000, 0x110000), 6000),
    ]
    for start in range(0, len(codes), 500):
        some = map(chr, codes[start : start + 500])
        for one in some if shape == "qwen2" else [" ".join(f"a{c}b1{c} {c}{c}\n" for c in some)]:
            _same(shape, one)


def test_the_default_model_qualifies(default_model_path: Path) -> None:
    ours = load_tokenizer(default_model_path)
    assert ours.encode_quickly("not yet") is None
    ours.quicken()

    @settings(max_examples=300, deadline=None)
    @given(text=_ANY_TEXT)
    def check(text: str) -> None:
        found = ours.encode_quickly(text, False)
        assert "\U0010ffff" in text or found == ours.backend.encode(text, add_special_tokens=False).ids

    check()
    messages = [
        {"role": "user", "content": "a <|im_end|look-alike"},  # the name itself is text there
        {"role": "assistant", "content": "So?"},
    ]
    rendered = ours.render_chat(messages)
    assert ours.encode_chat(messages) == ours.backend.encode(rendered, add_special_tokens=False).ids
    assert ours.encode_quickly(rendered, False) is not None


def test_text_that_is_not_composed_is_left_to_the_library() -> None:
    _, words = _pair("qwen2")
    assert words.encode("e\u0301") is None
    assert words.encode("é 東京") is not None
    assert words.encode("\U0010fffe") is None  # no character yet; a newer library may compose it


def test_half_a_pair_is_refused_as_ever() -> None:
    ours = Tokenizer(TokenizerParts(_gpt2()))
    with pytest.raises(BadInput) as before:
        ours.encode("half a pair: \ud83d")
    ours.quicken()
    assert ours.encode_quickly("half a pair: \ud83d") is None
    with pytest.raises(BadInput) as after:
        ours.encode("half a pair: \ud83d")
    assert str(before.value) == str(after.value)


def test_a_long_text_has_the_words_prepared_in_the_background() -> None:
    ours = Tokenizer(TokenizerParts(_gpt2()))
    text = "a long text " * 300
    ids = ours.encode(text)
    for thread in threading.enumerate():
        if thread.name == "quicken-tokenizer":
            thread.join(60)
    assert ours.encode_quickly(text) == ids


def test_threads_share_the_words() -> None:
    """Long texts let other threads in while they are encoded; those go without the memory of words."""
    backend, words = _pair("smollm")
    texts = [" ".join(_CORPUS) * 3 + str(number) for number in range(6)]
    expected = [backend.encode(text).ids for text in texts]
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(20):
            one = (number + turn) % len(texts)
            if words.encode(texts[one]) != expected[one]:
                wrong.append(one)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []


def test_words_that_never_come_again_push_each_other_out() -> None:
    """More new words than the memory has places; the ids stay right."""
    rng = random.Random(2)
    letters = "abcdefghijklmnopqrstuvwxyz"
    for _ in range(4):
        assert _same(
            "smollm", " ".join("".join(rng.choices(letters, k=rng.randint(2, 14))) for _ in range(20_000))
        )
    assert _same("smollm", _CORPUS[-1])


# -- who does not qualify -------------------------------------------------------------------------------------


def _metaspace() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return backend


def _with(name: str, value: Any) -> tokenizers.Tokenizer:
    backend = _few_bytes()
    setattr(backend, name, value)
    return backend


def _named(**options: bool) -> tokenizers.Tokenizer:
    backend = _few_bytes()
    backend.add_tokens([AddedToken("<mask>", **options)])
    return backend


_OTHERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "Llama 2": _metaspace,
    "no BPE": lambda: tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
    "unigram": lambda: tokenizers.Tokenizer(models.Unigram([("a", 0.0)])),
    "dropout": lambda: _trained(_bytes(use_regex=True), dropout=0.1),
    "prefix space": lambda: _with("pre_tokenizer", _bytes(use_regex=True, add_prefix_space=True)),
    "no splitter": lambda: _with("pre_tokenizer", pre_tokenizers.Punctuation()),
    "lower case": lambda: _with("normalizer", normalizers.Lowercase()),
    "decomposition": lambda: _with("normalizer", normalizers.NFKC()),
    "another splitter": lambda: _with(
        "pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), _bytes()])
    ),
    "merged split": lambda: _with(
        "pre_tokenizer",
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s"), "merged_with_next"), _bytes()]),
    ),
    "anchored": lambda: _with("pre_tokenizer", _splits(r"\s+$")),
    "takes spaces": lambda: _named(lstrip=True),
    "single word": lambda: _named(single_word=True),
    "twice": lambda: _with(
        "post_processor", processors.TemplateProcessing(single="$A $A", special_tokens=[])
    ),
}


@pytest.mark.parametrize("shape", _OTHERS)
def test_others_keep_the_library(shape: str) -> None:
    with pytest.raises(UnsupportedModel):
        WordTokens(_OTHERS[shape]())


def test_a_tokenizer_that_disagrees_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "_GPT2", r"\p{L}+|\s+")
    with pytest.raises(UnsupportedModel, match="a way of its own"):
        WordTokens(_gpt2())


def test_without_the_compiled_module_everything_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "_words", None)
    ours = Tokenizer(TokenizerParts(_gpt2()))
    ours.quicken()
    assert ours.encode_quickly("text") is None
    assert ours.encode("text") == ours.backend.encode("text").ids


_NOT_UNDERSTOOD = [
    *(r"^a", r"a$", r"\ba", r"\Aa", r"a+?", r"a++", r"a*", r"a{2}{3}", r"a{3,2}", r"(?:ab)+", r".+", r"|a"),
    *(r"(?<=a)b", r"(?=a)b", r"(?>a)", r"(?s)a", r"(a)\1", r"(?i:st)", r"(a", r"a)", r"\h"),
    *(r"[a&&b]", r"[[:alpha:]]"),
]


@pytest.mark.parametrize("pattern", _NOT_UNDERSTOOD)
def test_patterns_that_are_not_understood_are_refused(pattern: str) -> None:
    with pytest.raises(UnsupportedModel):
        compile_pattern(pattern, Sets())


def test_patterns_have_a_bounded_number_of_classes() -> None:
    with pytest.raises(UnsupportedModel, match="classes"):
        compile_pattern(
            "|".join(chr(0x61 + index) for index in range(26)) + "|" + "|".join("0123456789"), Sets()
        )
    assert MAX_SETS <= 30


_ATOMS = st.sampled_from(["a", "b", " ", r"\s", r"\S", "[ab]", "[^a]", r"\p{L}", "(?:ab|a|ba)", "(?:a|b)?"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    choices=st.lists(
        st.lists(
            st.tuples(_ATOMS, st.sampled_from(["", "+", "*", "?", "{1,2}", "{2}"])), min_size=1, max_size=4
        ),
        min_size=1,
        max_size=3,
    ),
    ahead=st.sampled_from(["", r"(?!\S)", "(?!b)"]),
    texts=st.lists(st.text("ab \n1", max_size=25), min_size=1, max_size=4),
)
def test_patterns_backtrack_as_the_library_does(
    choices: list[list[tuple[str, str]]], ahead: str, texts: list[str]
) -> None:
    """Random patterns of the kinds that are understood, in a tokenizer whose tokens are single bytes."""
    alternatives = [
        "".join(atom if atom.startswith("(") else atom + count for atom, count in one) for one in choices
    ]
    pattern = "|".join([*alternatives[:-1], alternatives[-1] + ahead])
    vocab = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    # Every pair of bytes merges, so that where words end can be seen in the ids.
    pairs = [(x, y) for x in "abĠĊ1" for y in "abĠĊ1"]
    vocab.update({x + y: 256 + index for index, (x, y) in enumerate(pairs)})
    backend = tokenizers.Tokenizer(models.BPE(vocab, pairs))
    backend.pre_tokenizer = _splits(pattern)
    try:
        compile_pattern(pattern, Sets())
    except UnsupportedModel:
        reject()  # an alternative can match nothing
    words = WordTokens(backend)
    for text in texts:
        assert words.encode(text) == backend.encode(text).ids


# -- digests --------------------------------------------------------------------------------------------------


@given(
    tokens=st.lists(st.integers(0, 2**31), max_size=70),
    block_size=st.integers(1, 40),
    salt=st.binary(max_size=300),
)
def test_digests_are_those_of_the_prefix_cache(tokens: list[int], block_size: int, salt: bytes) -> None:
    chain: list[bytes] = []
    PrefixCache(block_size).extend(chain, tokens, len(tokens))
    assert block_digests(ROOT, tokens, 0, len(tokens), block_size) == chain
    assert digests_module._digests(ROOT, tokens, 0, len(tokens), block_size) == chain
    from_salt = digests_module._digests(salt, tokens, 0, len(tokens), block_size)
    assert block_digests(salt, tokens, 0, len(tokens), block_size) == from_salt
    done = len(chain) // 2
    assert chain[done:] == block_digests(
        chain[done - 1] if done else ROOT, tokens, done * block_size, len(tokens), block_size
    )
