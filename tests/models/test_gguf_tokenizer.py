"""Vocabularies inside GGUF files, against the tokenizers that they were written from."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from gguf import GGUFWriter
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.models.test_tokenizer import TEXTS
from tests.tiny import SPECIAL, TEXT
from tests.tiny_gguf import CONTROL, NORMAL, USER_DEFINED, finish, write_byte_level
from weighbridge.errors import UnsupportedModel
from weighbridge.models.text.gguf_splits import RULES
from weighbridge.models.text.tokenizer import load_tokenizer

_ORACLES = {
    "qwen2": transformers.Qwen2Tokenizer,
    "gpt-2": transformers.GPT2Tokenizer,
}


def _trained(pre: Any, normalizer: Any = None) -> Tokenizer:
    """A byte-level BPE over the test texts, split by `pre`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre, decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet)
    backend.train_from_iterator(TEXTS * 4 + TEXT, trainer)
    backend.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    return backend


def _as_gguf(backend: Tokenizer, pre: str, path: Path, **flags: bool) -> Path:
    writer = GGUFWriter(path, "llama")
    write_byte_level(writer, backend, pre)
    for name, value in flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    finish(writer)
    return path


def _split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )


@pytest.mark.parametrize(
    ("pre", "rule"),
    [
        ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False)),
        (
            "smollm",
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
        ),
        ("llama-bpe", "llama-bpe"),
        ("tekken", "tekken"),
        ("qwen2", "qwen2"),
    ],
)
def test_splitting_rules_equal_the_published_ones(pre: str, rule: Any, tmp_path: Path) -> None:
    if isinstance(rule, str):  # as transformers has them from each model's tokenizer.json
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

        rule = _split(GGUF_PRE_TOKENIZER_SPLITS[rule])
    backend = _trained(rule, normalizers.NFC() if pre == "qwen2" else None)
    ours = load_tokenizer(_as_gguf(backend, pre, tmp_path / "t.gguf", add_bos_token=False))
    rng = random.Random(1)
    characters = "".join(TEXTS)
    noise = ["".join(rng.choices(characters, k=40)) for _ in range(200)]
    for text in [*TEXTS, "so <think>hm</think>", *noise]:
        expected = backend.encode(text)
        assert ours.encode(text) == expected.ids, text
        assert ours.decode(expected.ids) == backend.decode(expected.ids)


@pytest.mark.parametrize("name", ["qwen2", "gpt-2"])
def test_whole_tokenizers_equal_transformers_classes(name: str, tmp_path: Path) -> None:
    backend = _trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    state = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    oracle = _ORACLES[name](vocab=state["vocab"], merges=merges)
    ours = load_tokenizer(_as_gguf(backend, name, tmp_path / "t.gguf"))
    for text in TEXTS:
        if "<|" not in text:
            assert ours.encode(text) == oracle.encode(text, add_special_tokens=False), text


def test_reading_one_does_not_import_torch(tmp_path: Path) -> None:
    """A gateway that only counts tokens must not pay for its seconds and 300 MB."""
    path = _as_gguf(_trained(pre_tokenizers.ByteLevel(add_prefix_space=False)), "gpt-2", tmp_path / "t.gguf")
    code = (
        "import sys; from pathlib import Path\n"
        "from weighbridge.fleet.replicas.build import load_tokenizers\n"
        "from weighbridge.fleet.config.spec import FleetSpec, ModelSpec\n"
        "model = ModelSpec('m', (), tokenizer=Path(sys.argv[1]))\n"
        "assert load_tokenizers(FleetSpec(models=(model,)))['m'].encode('one two')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=120)


def test_begin_and_end_of_text_as_the_file_says(tmp_path: Path) -> None:
    backend = _trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    plain = backend.encode("hello").ids
    begin, end = backend.token_to_id("<|endoftext|>"), backend.token_to_id("<|im_end|>")
    for index, (pre, flags, expected) in enumerate(
        [
            ("gpt-2", {}, plain),
            ("gpt-2", {"add_bos_token": True}, [begin, *plain]),
            ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, [begin, *plain, end]),
            ("llama-bpe", {}, [begin, *plain]),
            ("llama-bpe", {"add_bos_token": False}, plain),
        ]
    ):
        ours = load_tokenizer(_as_gguf(backend, pre, tmp_path / f"{index}.gguf", **flags))
        assert ours.encode("hello") == expected
        assert ours.encode("hello", add_special_tokens=False) == plain


def _published() -> list[str]:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    return sorted(set(GGUF_PRE_TOKENIZER_SPLITS) & set(RULES))


@pytest.mark.parametrize("pre", _published())
def test_every_name_of_a_rule_splits_as_transformers_has_it(pre: str) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    ours, theirs = _words(RULES[pre].patterns), _words((GGUF_PRE_TOKENIZER_SPLITS[pre],))
    for text in TEXTS:
        assert ours(text) == theirs(text)


def _words(patterns: tuple[str, ...]) -> Callable[[str], list[str]]:
    splits = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(one), "isolated") for one in patterns])
    return lambda text: [word for word, _ in splits.pre_tokenize_str(text)]


@pytest.mark.parametrize("pre", sorted(RULES))
def test_every_rule_splits_without_losing_a_character(pre: str) -> None:
    words = _words(RULES[pre].patterns)
    for text in TEXTS:
        assert "".join(words(text)) == text


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [  # as llama.cpp splits them
        ("default", "costs $1234 (4.5)", ["costs", " ", "$", "123", "4", " ", "(", "4", ".", "5", ")"]),
        ("deepseek-llm", "Größe 東京12 a\n", ["Gr", "öß", "e", " ", "東京", "12", " a", "\n"]),
        ("deepseek-coder", "x = 12;\n", ["x", " = ", "1", "2", ";", "\n"]),
        ("deepseek-v3", "I'm 12345 東京tower", ["I", "'m", " ", "123", "45", " ", "東京", "tower"]),
        ("viking", "year 2024, ok", ["year", " ", "2", "0", "2", "4", ",", " ok"]),
        ("falcon", "a+b 1234", ["a", "+", "b", " ", "123", "4"]),
    ],
)
def test_rules_of_several_patterns(pre: str, text: str, expected: list[str]) -> None:
    assert _words(RULES[pre].patterns)(text) == expected


def test_a_file_without_a_rule_is_split_by_the_default_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = _trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    named, unnamed = (_as_gguf(backend, pre, tmp_path / f"{pre}.gguf") for pre in ("default", ""))
    first = load_tokenizer(named)
    assert "tokenizer.ggml.pre" not in caplog.text
    second = load_tokenizer(unnamed)
    assert "tokenizer.ggml.pre" in caplog.text
    assert [first.encode(text) for text in TEXTS] == [second.encode(text) for text in TEXTS]


def test_unknown_rules_are_named(tmp_path: Path) -> None:
    backend = _trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    with pytest.raises(UnsupportedModel, match=r"superbpe.*tokenizer\.json"):
        load_tokenizer(_as_gguf(backend, "superbpe", tmp_path / "t.gguf"))
    writer = GGUFWriter(tmp_path / "u.gguf", "llama")
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(["a"])
    finish(writer)
    with pytest.raises(UnsupportedModel, match="rwkv"):
        load_tokenizer(tmp_path / "u.gguf")


# -- SentencePiece ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces() -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE with byte fallback and the settings of Llama's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(
            [line for text in TEXTS[:4] + TEXT for line in text.splitlines() if line] * 20
        ),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        character_coverage=0.98,
        user_defined_symbols=["<think>"],
        minloglevel=3,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _spm_gguf(pieces: sentencepiece.SentencePieceProcessor, path: Path, prefix: bool = True) -> Path:
    writer = GGUFWriter(path, "llama")
    count = pieces.get_piece_size()
    types = []
    for index in range(count):
        piece = pieces.id_to_piece(index)
        kind = NORMAL
        if pieces.is_unknown(index):
            kind = 2
        elif pieces.is_control(index):
            kind = CONTROL
        elif pieces.is_byte(index):
            kind = 6
        elif piece == "<think>":
            kind = USER_DEFINED
        types.append(kind)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([pieces.id_to_piece(index) for index in range(count)])
    writer.add_token_scores([pieces.get_score(index) for index in range(count)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(prefix)
    finish(writer)
    return path


def test_sentencepiece_equals_sentencepiece(pieces: Any, tmp_path: Path) -> None:
    ours = load_tokenizer(_spm_gguf(pieces, tmp_path / "spm.gguf"))
    rng = random.Random(2)
    characters = "".join(TEXTS[:5]).replace("\x00", "")
    noise = ["".join(rng.choices(characters, k=30)) for _ in range(200)]
    for text in [*TEXTS, *noise]:
        text = text.replace("\x00", "")  # which SentencePiece takes for the end
        if not text:
            continue
        expected = pieces.encode(text)
        assert ours.encode(text, add_special_tokens=False) == expected, text
        assert ours.encode(text) == [1, *expected]
        assert ours.decode(expected) == pieces.decode(expected) == text


def test_sentencepiece_streams_and_spaces(pieces: Any, tmp_path: Path) -> None:
    ours = load_tokenizer(_spm_gguf(pieces, tmp_path / "spm.gguf"))
    ids = ours.encode("the 𝄞 clef", add_special_tokens=False)
    stream = ours.stream()
    shown = [stream.push(index) for index in ids]
    assert "".join(shown) + stream.flush() == "the 𝄞 clef"
    assert not any("\ufffd" in piece for piece in shown)
    going_on = ours.stream(continuing=True)
    assert "".join(going_on.push(index) for index in ids).startswith(" the")
    assert ours.token_bytes(pieces.piece_to_id("<0xF0>")) == b"\xf0"
    without = load_tokenizer(_spm_gguf(pieces, tmp_path / "no.gguf", prefix=False))
    assert without.decode(without.encode(" a b", add_special_tokens=False)) == " a b"
