"""Tokenizers that are none, or somebody else's: one sentence, whichever part of the file is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import make_tiny
from tests.tiny_gguf import finish, write_gguf
from weighbridge.engine.build import build_replica
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import BadInput
from weighbridge.models.text.tokenizer import MAX_VOCABULARY, load_tokenizer

Json = dict[str, Any]


def one_sentence(error: BaseException) -> None:
    assert len(str(error)) < 600
    assert "\n" not in str(error)


def add(fields: Json, **token: Any) -> None:
    fields["added_tokens"].append({**fields["added_tokens"][0], "content": "<odd>", "special": True, **token})


MISTAKES: dict[str, Callable[[Json], object]] = {
    "no model": lambda fields: fields.pop("model"),
    "no merges": lambda fields: fields["model"].pop("merges"),
    "merges of nothing": lambda fields: fields["model"].update(merges=[["no", "such"]]),
    "merges of one": lambda fields: fields["model"].update(merges=["alone"]),
    "merges of numbers": lambda fields: fields["model"].update(merges=[[1, 2]]),
    "a prefix that is too long": lambda fields: fields["model"].update(continuing_subword_prefix="a" * 99),
    "a vocabulary that is a list": lambda fields: fields["model"].update(vocab=["a"]),
    "an empty vocabulary": lambda fields: fields["model"].update(vocab={}, merges=[]),
    "a negative id": lambda fields: fields["model"]["vocab"].update(odd=-1),
    "an id that is a text": lambda fields: fields["model"]["vocab"].update(odd="1"),
    "a huge id": lambda fields: fields["model"]["vocab"].update(odd=2**32 - 1),
    "an id beyond 32 bits": lambda fields: fields["model"]["vocab"].update(odd=2**40),
    "an added token that is a text": lambda fields: fields["added_tokens"].append("<odd>"),
    "a step of no kind": lambda fields: fields.update(pre_tokenizer={"type": "NoSuchStep"}),
    "a pattern that is none": lambda fields: fields.update(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
    ),
    "no decoder": lambda fields: fields.update(decoder=None),
    "a decoder that is a number": lambda fields: fields.update(decoder=5),
    "a version of tomorrow": lambda fields: fields.update(version="2.0"),
    "another kind of model": lambda fields: fields.update(model={"type": "WordPiece"}),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_tokenizer_with_a_mistake_is_one_sentence(tmp_path: Path, parsed: Json, name: str) -> None:
    fields = copy.deepcopy(parsed)
    MISTAKES[name](fields)
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(BadInput, match="tokenizer") as raised:
        load_tokenizer(tmp_path)
    one_sentence(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "nul", "[" * 100_000, '{"model":' * 10_000, "\0\0"])
def test_json_that_is_no_tokenizer_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BadInput) as raised:
        load_tokenizer(tmp_path)
    one_sentence(raised.value)


def test_a_tokenizer_without_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to("/dev/zero")
    with pytest.raises(BadInput, match="no file of at most 256 MiB"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"chat_template": 5}, "chat_template is 5"),
        ({"chat_template": {"default": "x"}}, "chat_template is {'default'"),
        ({"chat_template": ["x"]}, "must list objects"),
        ({"chat_template": [{"name": ["x"], "template": "y"}]}, "must list objects"),
        ({"chat_template": [{"name": "x"}]}, "must list objects"),
        ({"chat_template": "{% for %}"}, "mistake on line 1"),
        ({"bos_token": "<none>", "add_bos_token": True}, "no such token"),
    ],
)
def test_settings_of_the_wrong_type_are_named(
    tmp_path: Path, parsed: Json, settings_: Json, words: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings_))
    with pytest.raises(BadInput, match=words) as raised:
        load_tokenizer(tmp_path)
    one_sentence(raised.value)


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"])
def test_a_template_is_no_other_file_of_the_machine(tmp_path: Path, parsed: Json, name: str) -> None:
    (tmp_path / "key.pem").write_text("the secret of the machine")
    model = tmp_path / "model"
    (model / name).parent.mkdir(parents=True)
    (model / "tokenizer.json").write_text(json.dumps(parsed))
    (model / name).symlink_to("../" * (1 + name.count("/")) + "key.pem")
    with pytest.raises(BadInput, match="a link out of the model's directory") as raised:
        load_tokenizer(model)
    assert "secret" not in str(raised.value)
    (model / name).unlink()
    (model / "own.txt").write_text("{{ messages[0].content }}")
    (model / name).symlink_to("../" * name.count("/") + "own.txt")
    assert load_tokenizer(model).render_chat([{"role": "user", "content": "hi"}]) == "hi"


def test_a_template_in_the_cache_of_a_hub_is_the_models_own(tmp_path: Path, parsed: Json) -> None:
    model = tmp_path / "models--a--b" / "snapshots" / "1234"
    blobs = tmp_path / "models--a--b" / "blobs"
    model.mkdir(parents=True)
    blobs.mkdir()
    (model / "tokenizer.json").write_text(json.dumps(parsed))
    (blobs / "cafe").write_text("{{ messages[0].content }}")
    (model / "chat_template.jinja").symlink_to("../../blobs/cafe")
    assert load_tokenizer(model).render_chat([{"role": "user", "content": "hi"}]) == "hi"


def test_a_template_that_is_no_text_is_named(tmp_path: Path, parsed: Json) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match=r"chat_template\.jinja cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("ends", [[-1], [2**70], [True], ["2"], [[2]], 10**9, {"a": 1}])
def test_ends_that_no_token_has_are_left_out(tmp_path: Path, parsed: Json, ends: object) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert load_tokenizer(tmp_path).eos_token_ids == (2, 0)  # their names end a turn, whatever the files say


def test_sparse_ids_count_up_to_the_highest(tmp_path: Path, parsed: Json) -> None:
    fields = copy.deepcopy(parsed)
    fields["model"]["vocab"]["odd"] = 5_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.size_without_added) == (5_001, 5_001)
    fields["model"]["vocab"]["odd"] = MAX_VOCABULARY
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(BadInput, match=f"a token with the id {MAX_VOCABULARY}"):
        load_tokenizer(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**33) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_part_of_any_type_is_read_or_refused(whole: Path, parsed: Json, data: st.DataObject) -> None:
    """Whatever a part holds: a tokenizer that works, or BadInput."""
    fields = copy.deepcopy(parsed)
    fields["added_tokens"] = fields["added_tokens"][:4]
    inner, place = fields, data.draw(st.sampled_from(sorted(fields)))
    while isinstance(inner[place], dict | list) and inner[place] and data.draw(st.booleans()):
        inner = inner[place]
        places = sorted(inner)[:20] if isinstance(inner, dict) else range(min(len(inner), 20))
        place = data.draw(st.sampled_from(places))
    inner[place] = data.draw(json_values)
    directory = whole.parent / "odd"
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(fields))
    try:
        tokenizer = load_tokenizer(directory)
        tokenizer.quicken()
        ids = tokenizer.encode("Hello <|im_end|> wörld")
        assert all(0 <= index < tokenizer.vocab_size for index in ids)
    except BadInput as error:
        one_sentence(error)


@pytest.mark.parametrize("index", [10**6, 2**32 - 1])
def test_a_token_around_texts_that_no_vocabulary_has_is_named(
    tmp_path: Path, parsed: Json, index: int
) -> None:
    """Else each request would fail, and not the start."""
    fields = copy.deepcopy(parsed)
    odd = {"id": "<odd>", "ids": [index], "tokens": ["<odd>"]}
    single = [{"SpecialToken": {"id": "<odd>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    fields["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<odd>": odd},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(BadInput, match=f"puts a token with the id {index} around texts") as caught:
        load_tokenizer(tmp_path)
    one_sentence(caught.value)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path / "llama", num_hidden_layers=1, vocab_size=300)
    with pytest.raises(BadInput, match=r"token ids up to 393, the model only to 299.*different models"):
        build_replica(directory, "m", EngineSettings(kv_cache_memory=1 << 20))


# -- in GGUF ------------------------------------------------------------------------------------------------


def write_vocabulary(
    path: Path, kind: str, tokens: list[str], merges: list[str] | None, scores: list[float] | None
) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    if merges is not None:
        writer.add_token_merges(merges)
    if scores is not None:
        writer.add_token_scores(scores)
        writer.add_token_types([1] * len(scores))
    writer.add_eos_token_id(2**31)
    finish(writer)
    return path


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("merges", [["no such"], ["alone"], [""], ["a b c"]])
def test_merges_of_nothing_are_one_sentence(tmp_path: Path, kind: str, merges: list[str]) -> None:
    path = write_vocabulary(tmp_path / "m.gguf", kind, ["a", "b", "ab"], merges, None)
    with pytest.raises(BadInput, match=r"vocabulary and merges|cannot be used") as raised:
        load_tokenizer(path)
    one_sentence(raised.value)


@pytest.mark.parametrize(
    ("tokens", "scores", "words"),
    [
        (["a", "b"], [1.0], "a score and a type for each of its 2 tokens"),
        (["a", "b" * 1_000_000], [1.0, 2.0], "too long to be merged"),
        (["b" * 1_000] * 9_000, [1.0] * 9_000, "too long to be merged"),
    ],
)
def test_odd_scores_are_one_sentence(
    tmp_path: Path, tokens: list[str], scores: list[float], words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        load_tokenizer(write_vocabulary(tmp_path / "m.gguf", "llama", tokens, None, scores))


def test_ends_of_a_gguf_that_no_token_has_are_left_out(whole: Path, tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "m.gguf", "gpt2", ["a", "b", "ab"], ["a b"], None)
    assert load_tokenizer(path).eos_token_ids == ()
    assert load_tokenizer(write_gguf(whole, tmp_path / "whole.gguf")).eos_token_ids == (2, 0)
