"""Constraints: tried where that may fail, compiled once, bounded in time and bytes; masks that nobody waits for."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import jsonschema
import numpy as np
import numpy.typing as npt
import pytest
import torch
from llguidance import LLMatcher
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from weighbridge.engine.batch import Batch, Slice
from weighbridge.engine.guidance import factory as factory_module
from weighbridge.engine.guidance.factory import GuideFactory
from weighbridge.engine.guidance.grammar import LIMITS, grammar_of
from weighbridge.engine.guidance.matcher import Mask
from weighbridge.engine.guidance.trial import Trial
from weighbridge.engine.guidance.vocabulary import Vocabulary, shared
from weighbridge.engine.request import Guide, Request, SamplingParams
from weighbridge.engine.sampler import Sampler
from weighbridge.errors import BadInput, QueueFull

END = 256


def alphabet() -> Tokenizer:
    """A vocabulary of the 256 bytes, and one token that ends a text."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: index for index, character in enumerate(characters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return backend


@pytest.fixture(scope="module")
def backend() -> Tokenizer:
    return alphabet()


@pytest.fixture
def guides(backend: Tokenizer) -> Iterator[GuideFactory]:
    factory = GuideFactory(backend, END + 1, [END])
    yield factory
    factory.close()


def schema_of(value: object) -> Guide:
    return Guide("json_schema", json.dumps(value))


def properties(count: int, **more: object) -> dict[str, Any]:
    kinds = ("string", "integer")
    return {
        "type": "object",
        "properties": {f"property_{i}": {"type": kinds[i % 2]} for i in range(count)},
        **more,
    }


def written(guides: GuideFactory, guide: Guide, seed: int, backend: Tokenizer, limit: int = 400) -> str:
    """A random output that keeps to the constraint; prefers its end, so that it comes to one."""
    matcher, rng, tokens = guides.matcher(guide), random.Random(seed), []
    for _ in range(limit):
        matcher.pending.result()
        forbidden = matcher.forbidden()
        assert forbidden is not None
        allowed = torch.nonzero(~forbidden).flatten().tolist()
        if END in allowed:
            break
        closing = [token for token in allowed if backend.id_to_token(token) in '"}]']
        tokens.append(rng.choice(closing or allowed))
        matcher.accept(tokens[-1])
    return str(backend.decode(tokens))


@pytest.mark.parametrize("seed", range(5))
def test_what_is_written_keeps_the_schema(guides: GuideFactory, backend: Tokenizer, seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "sure": {"type": "boolean"}},
        "required": ["colour", "sure"],
        "additionalProperties": False,
    }
    jsonschema.validate(json.loads(written(guides, schema_of(schema), seed, backend)), schema)


@pytest.mark.parametrize("required", [True, False])
def test_a_schema_of_1800_properties_is_used(
    guides: GuideFactory, backend: Tokenizer, required: bool
) -> None:
    names = [f"property_{i}" for i in range(1800)]
    more = {"required": names, "additionalProperties": False} if required else {}
    matcher = guides.matcher(schema_of(properties(1800, **more)))
    for token in backend.encode('{"property_').ids:
        matcher.pending.result()
        forbidden = matcher.forbidden()
        assert forbidden is not None
        assert not forbidden[token]
        matcher.accept(token)


ENDLESS = {
    "50,000 alternatives": Guide("lark", "start: " + " | ".join(f'"word{i * 7919}"' for i in range(50_000))),
    "pattern properties": schema_of(
        {"type": "object", "patternProperties": {f"^p{i}.*x{i}$": {"type": "string"} for i in range(1500)}}
    ),
    "an intersection": Guide(
        "lark", "start: T\nT: " + " & ".join(f"/(?s:.*)a.{{{i}}}b(?s:.*)/" for i in range(1, 40))
    ),
    "too long": Guide("regex", "a" * (3 << 20)),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_takes_too_long_to_compile_is_refused(backend: Tokenizer, name: str) -> None:
    """The CPU time is bounded, not the wall clock: a slower machine refuses more, and no machine waits for long."""
    guides = GuideFactory(backend, END + 1, [END], cpu_seconds=0.3)
    try:
        with pytest.raises(BadInput, match=r"cannot be used: .*(smaller|simpler|at most)") as caught:
            guides.compiled(ENDLESS[name]).result()
        assert caught.value.param == "response_format"
        assert guides.compiled(Guide("regex", "a+")).result().size > 0  # and the next one is tried as before
    finally:
        guides.close()


@pytest.mark.parametrize(
    "guide",
    [
        Guide("regex", "("),
        Guide("lark", "start: nothing"),
        Guide("json_schema", '{"type": 5}'),
        Guide("json_schema", "[" * 100_000),
        Guide("json_schema", "nonsense"),
        Guide("poem", "x"),
    ],
    ids=lambda guide: f"{guide.kind} {guide.source[:20]}",
)
def test_what_is_no_constraint_is_refused(guides: GuideFactory, guide: Guide) -> None:
    with pytest.raises(BadInput):
        guides.compiled(guide).result()


def test_a_process_that_went_away_is_started_again(guides: GuideFactory) -> None:
    guides.compiled(Guide("regex", "a")).result()
    _, trial = guides.prepare()
    assert trial.forks._process is not None
    trial.forks._process.popen.kill()
    trial.forks._process.popen.wait()
    with pytest.raises(Exception, match="try again"):
        guides.compiled(Guide("regex", "b")).result()
    guides.compiled(Guide("regex", "b")).result()


def test_sixteen_choices_compile_once(guides: GuideFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Guide] = []
    run = Trial.run

    def counted(self: Trial, guide: Guide) -> Any:
        tried.append(guide)
        return run(self, guide)

    monkeypatch.setattr(Trial, "run", counted)
    guide = schema_of(properties(300))
    promises = [guides.compiled(guide) for _ in range(16)]
    assert len({id(promise.result()) for promise in promises}) == 1
    matchers = [guides.matcher(Guide(guide.kind, guide.source)) for _ in range(16)]
    assert all(matcher.pending.done() for matcher in matchers)
    assert tried == [guide]


def test_compiled_constraints_are_bounded_in_bytes(
    guides: GuideFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory_module, "CACHED_BYTES", 1 << 20)
    for index in range(40):
        guides.compiled(Guide("regex", f"a{index}+")).result()
    guides.compiled(Guide("regex", "last")).result()
    assert 1 <= len(guides._kept) <= 16
    assert guides._kept_bytes == sum(compiled.size for compiled in guides._kept.values()) <= 1 << 20


def test_so_many_wait_to_be_compiled_and_no_more(
    guides: GuideFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    run = Trial.run

    def late(self: Trial, guide: Guide) -> Any:
        gate.wait()
        return run(self, guide)

    monkeypatch.setattr(Trial, "run", late)
    monkeypatch.setattr(factory_module, "MAX_WAITING", 3)
    promises = [guides.compiled(Guide("regex", f"{index}+")) for index in range(3)]
    with pytest.raises(QueueFull):
        guides.compiled(Guide("regex", "one more"))
    assert guides.compiled(Guide("regex", "2+")) is promises[2]
    gate.set()
    for promise in promises:
        promise.result()
    guides.compiled(Guide("regex", "one more")).result()


# -- masks that are not there in time -----------------------------------------------------------------------


class Best:
    def argmax(self, logits: torch.Tensor) -> npt.NDArray[np.int32]:
        return logits.float().numpy().argmax(axis=1).astype(np.int32)


def request(guide: Guide | None) -> Request:
    return Request("r", [1, 2, 3], SamplingParams(max_tokens=9, temperature=0.0, guide=guide), 0.0)


def test_an_output_whose_mask_is_late_is_deferred_and_the_others_go_on(guides: GuideFactory) -> None:
    sampler = Sampler(Best(), guides, END + 1, random.Random(0))
    late, other = request(Guide("regex", "ab")), request(None)
    batch = Batch([Slice(late, 2, 1, True), Slice(other, 2, 1, True)])
    logits = torch.randn(2, END + 1, generator=torch.Generator().manual_seed(1))
    guides.compiled(Guide("regex", "ab")).result()
    first = sampler.sample(logits, batch)
    assert not first.deferred
    matcher = late.sampler_state.matcher  # type: ignore[attr-defined]
    computed, matcher._next = matcher._next, Future[Mask]()  # a mask that does not come
    late.tokens += first.tokens[0]
    result = sampler.sample(logits, batch, patience=0.0)
    assert (result.deferred, result.tokens[0], len(result.tokens[1])) == ({0}, [], 1)
    assert result.problem(0, batch.slices[0]) is None
    matcher._next = computed
    computed.result()
    again = sampler.sample(logits, batch)
    assert not again.deferred
    assert [late.tokens[3], *again.tokens[0]] == guides._backend.encode("ab").ids


def test_a_constraint_that_fails_ends_its_own_request(guides: GuideFactory) -> None:
    sampler = Sampler(Best(), guides, END + 1, random.Random(0))
    broken, other = request(Guide("regex", "(")), request(None)
    batch = Batch([Slice(broken, 2, 1, True), Slice(other, 2, 1, True)])
    logits = torch.zeros(2, END + 1)
    result = sampler.sample(logits, batch)
    while result.deferred:
        result = sampler.sample(logits, batch)
    assert set(result.errors) == {0}
    assert len(result.tokens[1]) == 1


def words() -> Tokenizer:
    """Words of several bytes, half characters, tokens that are no text, and named ones that are."""
    backend = alphabet()
    state = json.loads(backend.to_str())
    vocabulary = state["model"]["vocab"]
    pieces = [
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "the"),
        ("Ã", "©"),
        ("{", '"'),
        ('"', ":"),
        ("1", "2"),
        ("Ċ", "Ċ"),
    ]
    state["model"]["merges"] = [list(pair) for pair in pieces]
    state["added_tokens"] = []
    for left, right in pieces:
        vocabulary[left + right] = len(vocabulary)
    made = Tokenizer.from_str(json.dumps(state))
    made.add_special_tokens(["<end>", "<|turn|>", "[CONTROL]"])
    made.add_tokens(["<tool_call>", "  ", "naïve", "[plain]"])
    return made


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", r"(?s:.)*"),
        ("regex", r"[a-z é]{1,9}(<tool_call>|naïve|  |\[CONTROL\])+"),
        (
            "json_schema",
            '{"type":"object","properties":{"the":{"type":"string"},"n":{"type":"number"}},"required":["the","n"]}',
        ),
    ],
)
def test_a_shared_vocabulary_masks_as_the_librarys_own(kind: str, source: str) -> None:
    """Bytes and marks of tokens are ours there; the library reads them from a tokenizer's JSON."""
    backend = words()
    size = backend.get_vocab_size() + 7  # a model pads its matrix
    end = backend.token_to_id("<end>")
    ours = shared(backend, size, [end])
    assert ours is not None
    theirs = Vocabulary(backend.to_str(), size, [end]).load()
    grammar = grammar_of(Guide(kind, source))
    draw = random.Random(source)
    for _ in range(40):
        pair = [LLMatcher(one, grammar, limits=LIMITS) for one in (ours, theirs)]
        for _ in range(30):
            masks = [one.compute_bitmask() for one in pair]
            assert masks[0] == masks[1]
            allowed = int.from_bytes(masks[0], "little")
            if pair[0].is_stopped() or not allowed:
                break
            token = draw.choice([index for index in range(size) if allowed >> index & 1])
            assert [one.consume_token(token) for one in pair] == [True, True]


def test_the_library_knows_tokens_that_are_no_bytes() -> None:
    backend = Tokenizer(models.BPE({"▁a": 0, "b": 1, "</s>": 2}, [], byte_fallback=False))
    backend.decoder = decoders.Metaspace()
    assert shared(backend, 3, [2]) is None
