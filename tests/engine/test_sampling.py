"""The sampler against slow oracles: filters, penalties, seeds, drafts, and rows that went wrong."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from weighbridge.engine.batch import Batch, Slice
from weighbridge.engine.request import Request, SamplingParams
from weighbridge.engine.sampler import Sampler, State, filtered, uniform

VOCABULARY = 50


class Best:
    def argmax(self, logits: torch.Tensor) -> npt.NDArray[np.int32]:
        return logits.float().numpy().argmax(axis=1).astype(np.int32)


def sampler() -> Sampler:
    return Sampler(Best(), None, VOCABULARY, random.Random(0))


def request(prompt: list[int] | None = None, output: list[int] | None = None, **options: Any) -> Request:
    prompt = prompt or [1, 2, 3]
    params = SamplingParams(**{"max_tokens": 100, **options})
    return Request(id="r", prompt=prompt, params=params, arrival=0.0, tokens=prompt + (output or []))


def one(logits: torch.Tensor, r: Request, drafts: tuple[int, ...] = ()) -> list[int]:
    piece = Slice(r, r.num_tokens - 1, 1 + len(drafts), True, drafts)
    return sampler().sample(logits.reshape(1 + len(drafts), -1), Batch([piece])).tokens[0]


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def test_greedy_takes_the_first_of_the_best() -> None:
    logits = rows(1)
    logits[0, [7, 20]] = 99.0
    assert one(logits, request(temperature=0.0)) == [7]


def test_padded_vocabulary_is_never_sampled() -> None:
    logits = torch.cat([rows(1), torch.full((1, 14), 99.0)], dim=1)
    assert one(logits, request(temperature=0.0))[0] < VOCABULARY
    assert one(logits, request(temperature=2.0, seed=3))[0] < VOCABULARY


def naive(scores: torch.Tensor, params: SamplingParams) -> dict[int, float]:
    """Filters one after the other over a full sort: the definition."""
    weights = dict(enumerate(torch.softmax(scores.double(), 0).tolist()))
    if params.min_p > 0:
        most = max(weights.values())
        weights = {token: w for token, w in weights.items() if w >= params.min_p * most}
    ranked = sorted(weights.items(), key=lambda item: -item[1])
    if params.top_k:
        ranked = ranked[: params.top_k]
    total, kept, mass = sum(w for _, w in ranked), [], 0.0
    for token, weight in ranked:
        if mass >= params.top_p * total:
            break
        kept.append((token, weight))
        mass += weight
    whole = sum(w for _, w in kept)
    return {token: w / whole for token, w in kept}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"top_k": 8, "top_p": 0.5},
        {"min_p": 0.02, "top_p": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(5))
def test_filters_keep_what_their_definition_keeps(options: dict[str, Any], seed: int) -> None:
    params = SamplingParams(max_tokens=1, **options)
    scores = rows(1, seed)[0]
    weights, ids = filtered(scores, params)
    tokens = ids.tolist() if ids is not None else range(VOCABULARY)
    share = (weights / weights.sum()).tolist()
    actual = {token: w for token, w in zip(tokens, share, strict=True) if w > 0}
    assert actual == pytest.approx(naive(scores, params), rel=1e-4)


def test_draws_follow_the_distribution() -> None:
    logits = rows(1, 4)
    expected = torch.softmax(logits[0] / 1.5, 0)
    seen = Counter(one(logits, request(temperature=1.5, seed=seed))[0] for seed in range(3000))
    for token, share in enumerate(expected.tolist()):
        assert seen[token] / 3000 == pytest.approx(share, abs=0.03)


def test_penalties_follow_their_formulas() -> None:
    logits = rows(1, 9)
    output = [5, 5, 8]
    r = request(
        [1, 2], output, temperature=0.0, presence_penalty=0.5, frequency_penalty=0.7, repetition_penalty=1.3
    )
    scores = logits[0].clone()
    for token in {1, 2, 5, 8}:
        scores[token] = scores[token] / 1.3 if scores[token] > 0 else scores[token] * 1.3
    for token, times in Counter(output).items():
        scores[token] -= 0.5 + 0.7 * times
    assert one(logits, r) == [int(scores.argmax())]


def test_penalties_grow_with_the_output_and_are_those_of_a_fresh_look() -> None:
    r = request([1, 2], presence_penalty=0.5, frequency_penalty=0.7, repetition_penalty=1.3, seed=5)
    for step in range(40):
        logits = rows(1, step)
        again = request([1, 2], r.tokens[2:], presence_penalty=0.5, frequency_penalty=0.7)
        again.params = r.params
        token = one(logits, r)
        assert one(logits, again) == token
        r.tokens += token


def test_what_a_request_wishes_is_worked_out_once_for_all_its_choices() -> None:
    first = request(logit_bias={1: 2.0, 3: -1.0}, seed=1)
    second = request(logit_bias={1: 2.0, 3: -1.0}, seed=2)
    second.fork_of = first
    s = sampler()
    for r in (first, second):
        s.sample(rows(1), Batch([Slice(r, 2, 1, True)]))
    assert isinstance(first.sampler_state, State)
    assert isinstance(second.sampler_state, State)
    assert second.sampler_state.wishes is first.sampler_state.wishes


def test_bias_and_bans() -> None:
    logits = rows(1)
    best = int(logits[0].argmax())
    assert one(logits, request(temperature=0.0, logit_bias={best: -100.0})) != [best]
    r = request(temperature=0.0, min_tokens=2)
    r.stop_token_ids = frozenset({best})
    assert one(logits, r) != [best]
    r = request(output=[4, 4], temperature=0.0, min_tokens=2)
    r.stop_token_ids = frozenset({best})
    assert one(logits, r) == [best]


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = rows(1, 2)
    r = request(temperature=0.7, seed=1, logprobs=4, top_k=3)
    result = sampler().sample(logits, Batch([Slice(r, 2, 1, True)]))
    expected = torch.log_softmax(logits[0], 0)
    item = result.logprobs[0][0]  # type: ignore[index]
    assert item.logprob == pytest.approx(float(expected[item.token]), abs=1e-5)
    best, ids = expected.topk(4)
    assert [token for token, _ in item.top] == ids.tolist()
    assert [value for _, value in item.top] == pytest.approx(best.tolist(), abs=1e-5)


def test_a_seed_gives_the_same_tokens_in_any_company() -> None:
    logits = rows(3, 6)
    alone = one(logits[1:2], request(temperature=1.0, seed=42))
    others = [request(temperature=0.9), request(temperature=1.0, seed=42), request(temperature=0.0)]
    together = sampler().sample(logits, Batch([Slice(r, 2, 1, True) for r in others]))
    assert together.tokens[1] == alone
    assert uniform(1, 2) == uniform(1, 2) != uniform(1, 3)


def next_logits(tokens: list[int]) -> torch.Tensor:
    """A model: the distribution depends on the last two tokens only."""
    return rows(1, seed=sum(tokens[-2:]))[0]


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 8, "top_p": 0.9}], ids=str
)
def test_drafts_change_nothing_but_the_number_of_steps(options: dict[str, Any]) -> None:
    plain = request(**options)
    while plain.num_output_tokens < 60:
        plain.tokens += one(next_logits(plain.tokens), plain)
    guesser, drafted, steps = random.Random(1), request(**options), 0
    while drafted.num_output_tokens < 60:
        right = plain.tokens[drafted.num_tokens : drafted.num_tokens + 3]
        drafts = tuple(token if guesser.random() < 0.6 else 0 for token in right)
        known = drafted.tokens
        logits = torch.stack([next_logits([*known, *drafts[:k]]) for k in range(len(drafts) + 1)])
        drafted.tokens = known + one(logits, drafted, drafts)
        steps += 1
    assert drafted.tokens[:63] == plain.tokens[:63]
    assert steps < 50


def test_a_row_of_nan_fails_its_own_request_only() -> None:
    logits = rows(3)
    logits[1] = float("nan")
    batch = Batch([Slice(request(temperature=t), 2, 1, True) for t in (0.0, 0.0, 1.0)])
    result = sampler().sample(logits, batch)
    assert set(result.errors) == {1}
    assert result.tokens[1] == []
    assert len(result.tokens[0]) == len(result.tokens[2]) == 1
