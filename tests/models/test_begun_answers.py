"""Templates of one's own, answers that have begun, and tools told in words: as transformers has it, where it does."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import CHAT_TEMPLATE, save_tokenizer
from weighbridge.errors import BadInput
from weighbridge.models.text.generic_tools import in_words
from weighbridge.models.text.template_files import KNOWN
from weighbridge.models.text.tokenizer import Tokenizer, load_tokenizer

transformers = pytest.importorskip("transformers", reason="the oracle is transformers")

USER = {"role": "user", "content": "Weigh <|im_end|> it"}
TRIMMING = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
TOOL = {"type": "function", "function": {"name": "weigh", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(found)
    return found


@pytest.fixture(scope="module")
def tokenizers_of(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Any]]:
    """Ours and transformers', of a template that keeps space and one that trims it."""
    found = {}
    for name, template in (("keeping", CHAT_TEMPLATE), ("trimming", TRIMMING)):
        path = tmp_path_factory.mktemp("templates") / f"{name}.jinja"
        path.write_text(template)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        theirs.chat_template = template
        found[name] = load_tokenizer(folder, chat_template=str(path)), theirs
    return found


@pytest.mark.parametrize("name", ["keeping", "trimming"])
@given(begun=st.text(st.sampled_from("ab \n{}<>"), min_size=1, max_size=12))
def test_an_answer_that_has_begun_is_rendered_as_transformers_does(
    name: str, begun: str, tokenizers_of: dict[str, tuple[Tokenizer, Any]]
) -> None:
    ours, theirs = tokenizers_of[name]
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": begun}]
    expected = theirs.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    chat[-1]["prefix"] = True
    assert ours.render_chat(chat) == expected
    assert ours.encode_chat(chat) == theirs(expected, add_special_tokens=False)["input_ids"]


def test_what_an_answer_that_has_begun_spells_is_text(folder: Path) -> None:
    ours = load_tokenizer(folder)
    ids = ours.encode_chat([USER, {"role": "assistant", "content": "a<|im_start|>b\ufdd2", "prefix": True}])
    end = ours.backend.token_to_id("<|im_end|>")
    assert ids.count(end) == 1  # that of the user's turn
    assert ours.decode(ids, False).endswith("a<|im_start|>b\ufdd2")


def test_a_template_that_leaves_answers_out_cannot_go_on(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "users.jinja"
    path.write_text("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    ours = load_tokenizer(folder, chat_template=str(path))
    with pytest.raises(BadInput, match="does not show the last message"):
        ours.encode_chat([USER, {"role": "assistant", "content": "a", "prefix": True}])


@pytest.mark.parametrize("name", KNOWN)
def test_templates_that_are_known_by_name_show_every_turn_once(folder: Path, name: str) -> None:
    ours = load_tokenizer(folder, chat_template=name)
    turns = [("system", "Ss"), ("user", "Uu"), ("assistant", "Aa"), ("user", "Vv")]
    text = ours.render_chat([{"role": role, "content": content} for role, content in turns])
    places = [text.index(content) for _, content in turns]
    assert places == sorted(places)
    assert all(text.count(content) == 1 for _, content in turns)
    begun = ours.render_chat([USER, {"role": "assistant", "content": "Bb", "prefix": True}])
    assert begun.endswith("Bb")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ bos_token }}\n{% for m in messages %}\n{{ m.content }\n", "line 3.*m.content"),
        ("a\n{% if x %}", "line 2"),
        ("a\nb\n{{ messages[0].content.missing() }}", r"line 3"),
        ("{{ raise_exception('no thanks') }}", "no thanks"),
    ],
)
def test_a_template_with_a_mistake_is_refused_with_its_line(
    folder: Path, tmp_path: Path, source: str, says: str
) -> None:
    path = tmp_path / "mistake.jinja"
    path.write_text(source)
    with pytest.raises(BadInput, match=says):
        load_tokenizer(folder, chat_template=str(path))


def test_a_template_that_is_not_there_is_said_with_those_that_are(folder: Path) -> None:
    with pytest.raises(BadInput, match="neither a file nor one of chatml"):
        load_tokenizer(folder, chat_template="chatlm")


CALL = {"id": "c1", "type": "function", "function": {"name": "weigh", "arguments": '{"kg": 3}'}}
AGENT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How heavy?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "3 kg"},
    {"role": "user", "content": "And now?"},
]


def test_tools_and_turns_about_them_are_told_in_words_where_the_template_has_no_place(folder: Path) -> None:
    ours = load_tokenizer(folder)
    assert not ours.supports_tools
    text = ours.render_chat(AGENT, [TOOL])
    assert '{"name": "weigh", "parameters": {"type": "object"}}' in text
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou can call")
    assert '<|im_start|>assistant\n{"name": "weigh", "arguments": {"kg": 3}}<|im_end|>' in text
    assert "<|im_start|>user\nResult of weigh:\n3 kg\n\nAnd now?<|im_end|>" in text
    assert ours.encode_chat(AGENT, [TOOL]) == ours.encode(text, False)
    plain = [turn for turn in AGENT if turn["role"] in ("system", "user")]
    assert "call" not in ours.render_chat(plain)


@given(
    st.lists(st.sampled_from(["system", "user", "assistant", "tool", "call"]), min_size=1, max_size=8),
    st.booleans(),
    st.booleans(),
)
def test_no_word_is_lost_and_results_never_stand_alone(
    kinds: list[str], offered: bool, has_system: bool
) -> None:
    turns: list[dict[str, Any]] = []
    for number, kind in enumerate(kinds):
        turn = {"role": "assistant" if kind == "call" else kind, "content": f"<{number}>"}
        turns.append(turn | ({"tool_calls": [CALL]} if kind == "call" else {}))
    told = in_words(turns, [TOOL] if offered else None, has_system=has_system)
    text = "".join(turn["content"] for turn in told)
    assert [text.count(f"<{number}>") for number in range(len(kinds))] == [1] * len(kinds)
    assert ("You can call" in text) == offered
    assert not any(turn["role"] == "tool" or turn.get("tool_calls") for turn in told)
    assert not any(a["role"] == b["role"] == "user" for a, b in pairwise(told))
