"""A tokenizer.json whose patterns take for ever, or whose steps write without end, costs a text of its own no more than
a bound; what people serve is known to have one, and runs as it is."""

from __future__ import annotations

import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from weighbridge.engine.guidance.factory import GuideFactory
from weighbridge.engine.request import Guide
from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.forks import ForkingProcess, OutOfMemory, OutOfTime
from weighbridge.models.text.encoding import forked
from weighbridge.models.text.encoding.patterns import is_linear
from weighbridge.models.text.encoding.steps import is_bounded, may_load
from weighbridge.models.text.gguf_splits import RULES
from weighbridge.models.text.tokenizer import Tokenizer, load_tokenizer

Json = dict[str, Any]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FAMILIES = {
    "GPT-2": (GPT2,),
    "Llama 3": (LLAMA3,),
    "Qwen2": (QWEN2,),
    "o200k": (O200K,),
    "DeepSeek-V3": (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK),
}
#: Of every file that names a rule. The end of a line behind spaces alone is looked for once for each space.
RULES_PATTERNS = sorted({pattern for rule in RULES.values() for pattern in rule.patterns} - {r"\s+$"})

#: What a backtracking engine needs for ever, or the square of the text's length, and texts that show it.
ENDLESS = {
    r"(a+)+b": "a" * 60,
    r"(?:a|a)*b": "a" * 60,
    r"(\w+\s?)+$": "a" * 60 + "!",
    r"\s+$": " " * 100_000 + "x",
    r"a*b": "a" * 200_000,
    r"\s*[\r\n]+": " " * 200_000,
    r"(?:a?){30}a{30}": "a" * 30,
    r"a?" * 40 + "a{40}": "a" * 40,
    r"\s*[\r\n]+|\s|\s+": " " * 200_000,
    r"\s*\s*\s*\s*x|\s+": " " * 20_000,
    r"[ab]*a[ab]{16}c|.": "ab" * 100_000,
}


@pytest.mark.parametrize("pattern", [one for patterns in FAMILIES.values() for one in patterns])
def test_patterns_of_families_are_known_to_be_linear(pattern: str) -> None:
    assert is_linear(pattern)


def test_all_patterns_that_files_name_are_known_to_be_linear_but_one() -> None:
    assert len(RULES_PATTERNS) > 15
    assert [one for one in RULES_PATTERNS if not is_linear(one)] == []


@pytest.mark.parametrize("pattern", ENDLESS)
def test_patterns_that_are_not_are_told_apart(pattern: str) -> None:
    assert not is_linear(pattern)


#: Runs of what the patterns name, ends of runs, and what none of them takes.
PIECES = ("a", "A", "1", " ", "\n", "!", "東", "ۮ", "\u0301", "aA", "A1", " \n", "'s", " a")


#: Characters of a text, and seconds of processor time for it: it takes some 10 ms, and by its square 15 s.
LONG, BOUND_S = 32_000, 1.5


@pytest.mark.parametrize("pattern", sorted({*RULES_PATTERNS, GPT2, O200K}))
def test_what_is_called_linear_is_quick_on_long_runs_of_everything(pattern: str) -> None:
    """By processor time of the library itself."""
    cut = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated").pre_tokenize_str
    for piece in PIECES:
        for end in ("!", "x"):
            began = time.thread_time()
            cut(piece * (LONG // len(piece)) + end)
            assert time.thread_time() - began < BOUND_S, (piece, end)


def split(*patterns: str) -> Json:
    steps: list[Json] = [
        {"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False}
        for one in patterns
    ]
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*steps, last]}


def loaded(folder: Path, parsed: Json, **parts: Any) -> Tokenizer:
    fields = copy.deepcopy(parsed) | parts
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    return load_tokenizer(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_encoded_here(tmp_path: Path, parsed: Json, family: str) -> None:
    made = loaded(tmp_path, parsed, pre_tokenizer=split(*FAMILIES[family]))
    assert not made.encodes_apart
    made.quicken()
    assert made.encode_quickly("Hello, world!  12345\n\n") is not None


def test_gemmas_and_the_packaged_tokenizer_are_encoded_here(
    tmp_path: Path, parsed: Json, whole: Path
) -> None:
    assert not load_tokenizer(whole).encodes_apart
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    cut = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    assert not loaded(tmp_path, parsed, normalizer=spaces, pre_tokenizer=cut).encodes_apart


needs_forks = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="a process that is never forked has no bound"
)


@needs_forks
@pytest.mark.parametrize("pattern", [r"(a+)+b", r"\s+$"])
def test_a_text_that_would_take_for_ever_is_refused_and_the_next_one_is_not(
    tmp_path: Path, parsed: Json, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "CPU_SECONDS", 0.3)
    monkeypatch.setattr(forked, "CPU_SECONDS_A_CHARACTER", 1e-7)
    made = loaded(tmp_path, parsed, pre_tokenizer=split(pattern))
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert made.encodes_apart
    for text in ("hello world", "", "aab  ab\n" * 50):
        assert made.encode(text) == plain.encode(text).ids
    began = time.process_time()
    with pytest.raises(BadInput, match=r"takes more than 0\.3 s|cannot encode this text: .*limit") as raised:
        made.encode(ENDLESS[pattern])
    assert "\n" not in str(raised.value)
    assert time.process_time() - began < 0.2, "this process itself has nothing to do with it"
    assert made.encode("hello world") == plain.encode("hello world").ids
    with pytest.raises(BadInput, match="not valid Unicode"):
        made.encode("half \ud800 a pair")


@needs_forks
def test_a_chat_and_pairs_are_held_to_the_same_bounds(
    tmp_path: Path, parsed: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "CPU_SECONDS", 0.3)
    monkeypatch.setattr(forked, "CPU_SECONDS_A_CHARACTER", 1e-7)
    endless = ENDLESS[r"\s+$"]
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{% for one in messages %}<s>{{ one.content }}</s>{% endfor %}"})
    )
    names = {one["content"] for one in parsed["added_tokens"]}
    made = loaded(tmp_path, parsed, pre_tokenizer=split(r"\s+$"))
    control = sorted(names)[0]
    for content in (endless, endless + control):
        with pytest.raises(BadInput, match="takes more than"):
            made.encode_chat([{"role": "user", "content": content}])
    assert made.encode_chat([{"role": "user", "content": f"hi {control}"}])
    with pytest.raises(BadInput, match="takes more than"):
        made.pairs.encode(endless, "b")
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    plain.encode_special_tokens = True
    assert made.pairs.encode("hi", "there") == plain.encode("hi", "there").ids


@needs_forks
def test_constraints_take_the_vocabulary_without_its_patterns(tmp_path: Path, parsed: Json) -> None:
    made = loaded(tmp_path, parsed, pre_tokenizer=split(r"(a+)+b"))
    assert may_load(made.vocabulary().to_str().encode())
    guides = GuideFactory(made.vocabulary(), made.vocab_size, made.eos_token_ids)
    try:
        assert guides.compiled(Guide("regex", "a{60}")).result(60)
    finally:
        guides.close()


@needs_forks
def test_steps_that_write_without_end_are_held_to_a_bound_of_memory(tmp_path: Path, parsed: Json) -> None:
    double = {"type": "Replace", "pattern": {"String": "q"}, "content": "qq"}
    made = loaded(tmp_path, parsed, normalizer={"type": "Sequence", "normalizers": [double] * 30})
    assert made.encodes_apart
    with pytest.raises(BadInput, match="takes more than"):
        made.encode("q")
    assert made.encode("b")


@needs_forks
def test_a_file_that_takes_for_ever_to_load_is_named(
    tmp_path: Path, parsed: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library runs its normaliser over the named tokens of the file while it loads."""
    monkeypatch.setattr(forked, "LOADING_SECONDS", 0.5)
    token = {**parsed["added_tokens"][0], "id": 9999, "content": " " * 400_000 + "x", "normalized": True}
    slow = {"type": "Replace", "pattern": {"Regex": r"\s+$"}, "content": "b"}
    with pytest.raises(UnsupportedModel, match="to load it takes more than") as raised:
        loaded(tmp_path, parsed, normalizer=slow, added_tokens=[*parsed["added_tokens"], token])
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": "x"}},
        {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "x" * 65}},
        {"normalizer": {"type": "Prepend", "prepend": "x" * 1_000}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "not base64"}},
        {"normalizer": {"type": "OfTomorrow"}},
        {"pre_tokenizer": {"type": "OfTomorrow"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}] * 33}},
        {"pre_tokenizer": split("(a+)+b")},
    ],
)
def test_steps_of_which_nothing_is_known_are_no_bounded_ones(part: Json) -> None:
    assert not may_load(json.dumps(part).encode())


def test_models_that_look_up_parts_of_words_are_held_to_words_that_end() -> None:
    words = tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]", max_input_chars_per_word=10**6)
    assert not is_bounded(tokenizers.Tokenizer(words))
    pieces = tokenizers.models.Unigram([("a", 0.0), ("a" * 2_000, 0.0)], 0, False)
    assert not is_bounded(tokenizers.Tokenizer(pieces))
    assert is_bounded(tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")))
    assert is_bounded(tokenizers.Tokenizer(tokenizers.models.Unigram([("a", 0.0)], 0, False)))


@needs_forks
def test_a_fork_is_ended_at_its_bounds_and_the_process_lives_on() -> None:
    forks = ForkingProcess("tests.models.forked_work", lambda: b"given")
    try:
        for _ in range(2):
            assert forks.ask(b"hello", cpu_seconds=5.0, max_bytes=1 << 26) == b"given hello"
            with pytest.raises(OutOfTime):
                forks.ask(b"spin", cpu_seconds=0.2, max_bytes=1 << 26)
            with pytest.raises(OutOfMemory):
                forks.ask(b"grow", cpu_seconds=5.0, max_bytes=1 << 26)
    finally:
        forks.close()
