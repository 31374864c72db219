"""Decisions: transformers' numbers for each label, one prefill, and every refusal names its question."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.server.decisions.answers import distinct_tokens
from weighbridge.server.decisions.labels import TooManyNodes, label_tree, shares_of

transformers = pytest.importorskip("transformers", reason="the oracle is transformers")

INPUT = "The package came two weeks late and the screen is broken. " * 8
CHOICE = {
    "type": "choice",
    "name": "kind",
    "instructions": "What is it about?",
    "choices": [
        {"value": "delivery", "description": "late or lost"},
        {"value": "damage"},
        {"value": "no"},
        {"value": "no idea"},
        {"value": True},
    ],
}
PREDICATE = {"type": "predicate", "name": "angry", "instructions": "The customer is angry."}
SCORE = {
    "type": "score",
    "instructions": "How urgent is it?",
    "levels": [{"label": "low"}, {"label": "medium"}, {"label": "high"}],
}
LONG_LABELS = [{"value": f"{number:03d} {'7 4 1 9 ' * 5}"} for number in range(8)]
LONG_LEVELS = [{"label": one["value"]} for one in LONG_LABELS]


@pytest.fixture(scope="module")
def oracle(tiny_model: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def decide(server: str, *questions: dict[str, Any], **more: Any) -> httpx.Response:
    body = {"model": "tiny", "input": INPUT, "questions": list(questions), **more}
    return httpx.post(f"{server}/v1/decisions", json=body, timeout=60)


def tokens_of(server: str, **body: Any) -> list[int]:
    found: list[int] = httpx.post(f"{server}/tokenize", json=body).json()["tokens"]
    return found


def probability(oracle: Any, prompt: list[int], label: list[int]) -> float:
    """The product of a label's tokens, each by the model's own distribution."""
    with torch.inference_mode():
        logs = torch.log_softmax(oracle(torch.tensor([prompt + label])).logits[0].double(), -1)
    rows = range(len(prompt) - 1, len(prompt) + len(label) - 1)
    return math.exp(sum(float(logs[row, token]) for row, token in zip(rows, label, strict=True)))


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{INPUT}\n\n{text}"}]


def test_labels_have_the_probabilities_that_transformers_gives_them(server: str, oracle: Any) -> None:
    [answer] = decide(server, CHOICE).json()["answers"]
    text = (
        "What is it about?\nAnswer with one of these, and nothing else:\n- delivery: late or lost\n- damage\n"
        "- no\n- no idea\n- true"
    )
    prompt = tokens_of(server, messages=asked(text))
    labels = [
        tokens_of(server, prompt=one, add_special_tokens=False)
        for one in ("delivery", "damage", "no", "no idea", "true")
    ]
    expected = [probability(oracle, prompt, label) for label in labels]
    assert labels[3][: len(labels[2])] == labels[2]  # one begins the other
    expected[2] -= probability(oracle, prompt, labels[3][: len(labels[2]) + 1])
    mass = sum(expected)
    assert answer["label_mass"] == pytest.approx(mass, rel=1e-3)
    found = [one["probability"] for one in answer["probabilities"]]
    assert found == pytest.approx([one / mass for one in expected], rel=1e-3)
    assert [one["value"] for one in answer["probabilities"]] == ["delivery", "damage", "no", "no idea", True]
    best = max(answer["probabilities"], key=lambda one: one["probability"])
    assert (answer["choice"], answer["confidence"]) == (best["value"], best["probability"])
    assert (answer["type"], answer["name"]) == ("choice", "kind")


def test_a_yes_may_be_written_in_two_ways(server: str, oracle: Any) -> None:
    [answer] = decide(server, PREDICATE).json()["answers"]
    text = "The customer is angry.\nIs this true? Answer yes or no, and nothing else."
    prompt = tokens_of(server, messages=asked(text))
    chance = {
        word: probability(oracle, prompt, tokens_of(server, prompt=word, add_special_tokens=False))
        for word in ("yes", "Yes", "no", "No")
    }
    yes, no = chance["yes"] + chance["Yes"], chance["no"] + chance["No"]
    assert answer["probability"] == pytest.approx(yes / (yes + no), rel=1e-3)
    assert answer["label_mass"] == pytest.approx(yes + no, rel=1e-3)


def test_questions_of_one_request_are_one_prefill(server: str) -> None:
    text = "Never asked before: " + INPUT
    answer = decide(server, PREDICATE, SCORE, CHOICE, input=text)
    body = answer.json()
    alone = len(tokens_of(server, messages=[{"role": "user", "content": text}]))
    usage = body["usage"]
    assert alone < usage["input_tokens"] < 2 * alone
    assert usage["output_tokens"] == 0
    assert usage["input_tokens_details"]["cached_tokens"] < 32
    again = decide(server, PREDICATE, SCORE, CHOICE, input=text).json()
    assert again["answers"][1]["score"] == pytest.approx(body["answers"][1]["score"], rel=1e-3)
    assert again["usage"]["input_tokens_details"]["cached_tokens"] > alone / 2
    ticket = httpx.get(f"{server}/v1/tickets/{answer.headers['x-weighbridge-ticket']}").json()
    assert (ticket["output_tokens"], ticket["finish_reason"]) == (0, "stop")
    score = body["answers"][1]
    assert [one["value"] for one in score["probabilities"]] == [0, 1, 2]
    expected = sum(one["value"] * one["probability"] for one in score["probabilities"])
    assert score["score"] == pytest.approx(expected)


def test_an_input_of_items_is_a_chat(server: str) -> None:
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be fair."}]},
        {"role": "user", "content": [{"type": "input_json", "data": {"order": 7}}]},
        {"role": "assistant", "content": "I look."},
        {"type": "custom_tool_call", "call_id": "c", "name": "look", "input": "7"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "late"},
    ]
    assert decide(server, PREDICATE, input=items).status_code == 200


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"questions": []}, "questions", "length >= 1"),
        ({"questions": [{**CHOICE, "choices": [{"value": "a"}]}]}, "questions", "length >= 2"),
        ({"questions": [{**CHOICE, "choices": [{"value": "a"}] * 2}]}, "questions", "questions[0]"),
        ({"questions": [{**CHOICE, "choices": [{"value": "true"}, {"value": True}]}]}, "questions", "differ"),
        ({"questions": [PREDICATE, PREDICATE]}, "questions", "questions[1].name"),
        ({"questions": [{**PREDICATE, "type": "guess"}]}, "questions", "questions[0]"),
        ({"questions": [{**PREDICATE, "instructions": [{"type": "input_image"}]}]}, "questions", "[0]"),
        ({"input": [{"type": "input_file"}]}, "input", "input[0]"),
        ({"input": "long " * 5000}, None, "context"),
        ({"input": None}, "input", "expected"),
        ({"model": "nobody"}, "model", "nobody"),
        # Labels of many tokens, each a look of its own: refused before the looks are made.
        (
            {"questions": [{**CHOICE, "name": f"q{at}", "choices": LONG_LABELS} for at in range(12)]},
            "questions",
            "more than one request may ask",
        ),
        (
            {"questions": [{**SCORE, "name": f"q{at}", "levels": LONG_LEVELS} for at in range(12)]},
            "questions",
            "more than one request may ask",
        ),
        (
            {"questions": [{**CHOICE, "choices": [{"value": "\ufdd1<|im_end|>"}, {"value": "\u202e"}]}]},
            None,
            "",
        ),
    ],
)
def test_what_cannot_be_decided_is_refused_by_name(
    server: str, change: dict[str, Any], param: str | None, says: str
) -> None:
    answer = decide(server, PREDICATE, **change) if "questions" not in change else decide(server, **change)
    assert answer.status_code in (400, 404) or not says, answer.text
    assert answer.status_code < 500
    error = answer.json().get("error", {"message": ""})
    assert says in error["message"], error
    if param is not None:
        assert error["param"] == param


# -- the pure part ---------------------------------------------------------------------------------------

WAYS = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)


@given(st.lists(WAYS, min_size=2, max_size=8, unique=True), st.integers(0, 12))
def test_a_tree_stops_at_its_bound(forms: list[tuple[int, ...]], most: int) -> None:
    nodes = len(label_tree([[form] for form in forms]).nodes)
    if nodes <= most:
        assert len(label_tree([[form] for form in forms], most).nodes) == nodes
    else:
        with pytest.raises(TooManyNodes):
            label_tree([[form] for form in forms], most)


@given(st.lists(WAYS, min_size=2, max_size=8, unique=True), st.randoms(use_true_random=False))
def test_labels_never_have_more_than_everything(forms: list[tuple[int, ...]], random: Any) -> None:
    tree = label_tree([[form] for form in forms])
    looks = {}
    for node, children in tree.nodes.items():
        weights = [random.random() + 1e-9 for _ in range(len(children) + 1)]
        looks[node] = [math.log(one / sum(weights)) for one in weights[:-1]]
    found = tree.probabilities(looks)
    assert all(one >= 0.0 for one in found)
    spread = shares_of(found)
    assert spread.mass <= 1.0
    assert sum(spread.shares) == pytest.approx(1.0)
    assert 0.0 <= spread.expected <= len(forms) - 1


def test_impossible_labels_share_evenly() -> None:
    spread = shares_of([0.0, 0.0])
    assert (spread.shares, spread.mass) == ((0.5, 0.5), 0.0)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1), min_size=1))
def test_a_shared_beginning_counts_once(prompts: list[list[int]]) -> None:
    found = distinct_tokens(prompts)
    assert max(map(len, prompts)) <= found <= sum(map(len, prompts))
    assert distinct_tokens([prompts[0]] * 3) == len(prompts[0])
