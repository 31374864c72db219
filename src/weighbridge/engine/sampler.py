"""From logits to tokens: greedy at full speed, everything else row by row, exact and repeatable.

Order for a row: logit bias, penalties, bans before `min_tokens`, constraint, temperature, min-p, top-k,
top-p, then one draw. The draw's randomness is a hash of (seed, output position), so a request gets the same
tokens whatever else is in the batch and whether or not drafts are verified along the way.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from weighbridge.engine.batch import Batch, Sampled, Slice
from weighbridge.engine.guidance.factory import GuideFactory
from weighbridge.engine.guidance.matcher import Matcher
from weighbridge.engine.request import Embedding, NextToken, Request, SamplingParams, TokenLogprob
from weighbridge.errors import WeighbridgeError

#: Candidates looked at first for top-p; widened only when they hold too little of the mass.
CANDIDATES = 256
#: Seconds that a batch waits at the least for the masks of its constrained outputs.
SHORTEST_PATIENCE = 0.01


class Argmax(Protocol):
    def argmax(self, logits: torch.Tensor) -> npt.NDArray[np.int32]: ...


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a request's parameters mean for every one of its rows, worked out once for all its choices."""

    biased: torch.Tensor  # int64: tokens with a bias
    biases: torch.Tensor  # float32, one for each
    stops: torch.Tensor  # int64: tokens that are banned before `min_tokens`
    in_prompt: torch.Tensor | None  # bool [vocab], where repetition is penalised


@dataclass(slots=True)
class State:
    """What the sampler remembers of a request between iterations; kept in `Request.sampler_state`."""

    seed: int
    matcher: Matcher | None
    wishes: Wishes
    times: torch.Tensor | None = None  # float32 [vocab]: how often each token is in the output, for penalties
    counted: int = 0  # output tokens in `times`


class Sampler:
    """Chooses tokens for the sampling slices of a batch. `vocab_size` bounds ids when logits are padded wider."""

    def __init__(
        self, kernels: Argmax, guides: GuideFactory | None, vocab_size: int, rng: random.Random
    ) -> None:
        self._kernels = kernels
        self._guides = guides
        self._vocab_size = vocab_size
        self._rng = rng

    @torch.inference_mode()
    def sample(
        self,
        logits: torch.Tensor,
        batch: Batch,
        states: torch.Tensor | None = None,
        patience: float = SHORTEST_PATIENCE,
    ) -> Sampled:
        """`logits` [rows, vocab]: one row per sampling slice in order, and one more for each of its drafts.

        `states` [embeddings, hidden]: one row per sampling slice whose request embeds, in order. `patience`: seconds
        that the batch may wait for the masks of constrained outputs; whose is not there by then is deferred.
        """
        result = Sampled([[] for _ in batch.slices], [None] * len(batch.slices))
        best = self._best(logits)
        _await_masks(batch, max(patience, SHORTEST_PATIENCE))
        row = 0
        for index, piece in enumerate(batch.slices):
            if not piece.samples:
                continue
            rows = range(row, row + 1 + len(piece.drafts))
            row = rows.stop
            try:
                if piece.request.embeds:
                    assert states is not None
                    scores = logits[rows.start, : self._vocab_size]
                    result.embeddings[index] = embedding_of(states[len(result.embeddings)], scores)
                elif is_plain(piece.request.params):
                    result.tokens[index] = _accept(piece.drafts, best, rows)
                else:
                    result.tokens[index], result.logprobs[index] = self._sample_slice(logits, rows, piece)
                    if not result.tokens[index]:
                        result.deferred.add(index)
            except (ValueError, WeighbridgeError) as error:
                result.tokens[index] = []
                result.errors[index] = str(error)
        self._refuse_broken(logits, batch, result)
        return result

    def _best(self, logits: torch.Tensor) -> list[int]:
        if logits.shape[0] == 0:
            return []
        if logits.shape[1] > self._vocab_size:
            logits = logits[:, : self._vocab_size].contiguous()
        best: list[int] = self._kernels.argmax(logits).tolist()
        return best

    def _refuse_broken(self, logits: torch.Tensor, batch: Batch, result: Sampled) -> None:
        """A row of NaN ends its own request only. The first logit is enough: a NaN spreads over its row."""
        if not logits.shape[0]:
            return
        finite = torch.isfinite(logits[:, 0].float()).tolist()
        if all(finite):
            return
        row = 0
        for index, piece in enumerate(batch.slices):
            if piece.samples:
                count = 1 + len(piece.drafts)
                if not all(finite[row : row + count]):
                    result.tokens[index] = []
                    result.errors[index] = "the model computed values that are not numbers for this request"
                row += count

    def _sample_slice(
        self, logits: torch.Tensor, rows: range, piece: Slice
    ) -> tuple[list[int], list[TokenLogprob] | None]:
        """Return the tokens of one slice, as far as their masks are there in time, and their log-probabilities."""
        request = piece.request
        state = self._state(request)
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        for step, row in enumerate(rows):
            forbidden = None
            if state.matcher is not None:
                forbidden = state.matcher.forbidden()
                if forbidden is None:
                    break
            scores = logits[row, : self._vocab_size].float()
            adjusted = self._adjust(scores.clone(), request, state, tokens)
            if forbidden is not None:
                adjusted.masked_fill_(forbidden, -torch.inf)
            token = self._draw(adjusted, request.params, state.seed, request.num_output_tokens + step)
            tokens.append(token)
            if request.params.logprobs is not None:
                logprobs.append(token_logprob(scores, token, request.params.logprobs))
            if state.matcher is not None:
                state.matcher.accept(token)
            if step < len(piece.drafts) and token != piece.drafts[step]:
                break
        return tokens, logprobs if request.params.logprobs is not None else None

    def _state(self, request: Request) -> State:
        state = request.sampler_state
        if not isinstance(state, State):
            params = request.params
            seed = self._rng.getrandbits(64) if params.seed is None else params.seed
            matcher = None
            if params.guide is not None:
                if self._guides is None:
                    raise ValueError("structured output needs a tokenizer, which this engine was not given")
                matcher = self._guides.matcher(params.guide)
            state = request.sampler_state = State(seed, matcher, self._wishes(request))
        return state

    def _wishes(self, request: Request) -> Wishes:
        """What `request` wants of every row; further choices share what the first one has."""
        if request.fork_of is not None and isinstance(request.fork_of.sampler_state, State):
            return request.fork_of.sampler_state.wishes
        params, in_prompt = request.params, None
        if params.repetition_penalty != 1.0:
            in_prompt = torch.zeros(self._vocab_size, dtype=torch.bool)
            in_prompt[_ids(request.prompt)] = True
        biases = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
        return Wishes(_ids(params.logit_bias), biases, _ids(request.stop_token_ids), in_prompt)

    def _adjust(
        self, scores: torch.Tensor, request: Request, state: State, fresh: Sequence[int]
    ) -> torch.Tensor:
        """Bias, penalties and bans, in place. `fresh` are tokens drawn in this very iteration."""
        params, wishes = request.params, state.wishes
        if len(wishes.biased):
            scores.index_add_(0, wishes.biased, wishes.biases)
        if has_penalties(params):
            apply_penalties(scores, request, state, fresh)
        if request.num_output_tokens + len(fresh) < params.min_tokens and len(wishes.stops):
            scores[wishes.stops] = -torch.inf
        return scores

    def _draw(self, scores: torch.Tensor, params: SamplingParams, seed: int, position: int) -> int:
        if params.greedy:
            return int(scores.argmax())
        probabilities, ids = filtered(scores / params.temperature, params)
        cumulative = torch.cumsum(probabilities.double(), 0)
        target = uniform(seed, position) * float(cumulative[-1])
        chosen = int(torch.searchsorted(cumulative, target, right=True))
        chosen = min(chosen, len(cumulative) - 1)
        return int(ids[chosen]) if ids is not None else chosen


def is_plain(params: SamplingParams) -> bool:
    """Whether the largest raw logit is the answer."""
    return (
        params.greedy
        and params.guide is None
        and params.logprobs is None
        and not params.logit_bias
        and params.min_tokens == 0
        and not has_penalties(params)
    )


def has_penalties(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
    )


def _accept(drafts: Sequence[int], best: Sequence[int], rows: range) -> list[int]:
    """Greedy verification: drafts as long as they are what would have been chosen, and the first that is not."""
    tokens = []
    for step, row in enumerate(rows):
        tokens.append(best[row])
        if step < len(drafts) and best[row] != drafts[step]:
            break
    return tokens


def apply_penalties(scores: torch.Tensor, request: Request, state: State, fresh: Sequence[int]) -> None:
    """Repetition (Keskar et al. 2019) over prompt and output; presence and frequency over the output, as OpenAI.

    Takes as long at the end of a long output as at its beginning.
    """
    params = request.params
    if state.times is None:
        state.times = torch.zeros(len(scores))
    times = state.times
    output = request.tokens[request.num_prompt_tokens + state.counted :]
    state.counted += len(output)
    for token in output:
        times[token] += 1
    if fresh:
        times = times.clone()
        for token in fresh:
            times[token] += 1
    if state.wishes.in_prompt is not None:
        seen, penalty = state.wishes.in_prompt | (times > 0), params.repetition_penalty
        scores.copy_(torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores))
    if params.presence_penalty or params.frequency_penalty:
        scores -= params.presence_penalty * (times > 0) + params.frequency_penalty * times


def _ids(tokens: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(tokens), dtype=torch.int64)


def _await_masks(batch: Batch, patience: float) -> None:
    """Let the masks come that the batch can wait for. Where all that is left to do waits for one, any will do."""
    states = [piece.request.sampler_state for piece in batch.slices if piece.samples]
    matchers = [state.matcher for state in states if isinstance(state, State) and state.matcher is not None]
    pending: list[Future[Any]] = [matcher.pending for matcher in matchers if not matcher.pending.done()]
    if pending:
        others = len(pending) < len(batch.slices)
        wait(pending, patience, ALL_COMPLETED if others else FIRST_COMPLETED)


def filtered(scores: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Unnormalised probabilities of the tokens that min-p, top-k and top-p leave, and their ids.

    Ids None: every token, in order. min-p keeps what has at least that share of the likeliest token's
    probability; top-p then keeps the fewest of the likeliest that hold at least `top_p` of what is left.
    """
    weights = torch.softmax(scores, 0)
    if params.min_p > 0.0:
        weights = weights.masked_fill(weights < params.min_p * weights.max(), 0.0)
    limit = min(params.top_k, len(weights)) if params.top_k > 0 else 0
    if not limit and params.top_p >= 1.0:
        return weights, None
    best, ids = torch.topk(weights, limit) if limit else _most_likely(weights, params.top_p)
    if params.top_p < 1.0:
        cumulative = torch.cumsum(best, 0)
        total = cumulative[-1] if limit else weights.sum()
        keep = int((cumulative - best < params.top_p * total).sum())
        best, ids = best[: max(keep, 1)], ids[: max(keep, 1)]
    return best, ids


def _most_likely(weights: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Enough of the likeliest tokens, best first, to hold `top_p` of the mass."""
    total, count = float(weights.sum()), CANDIDATES
    while count < len(weights):
        best, ids = torch.topk(weights, count)
        if float(best.sum()) >= top_p * total:
            return best, ids
        count *= 8
    return torch.sort(weights, descending=True)


def token_logprob(scores: torch.Tensor, token: int, top: int) -> TokenLogprob:
    """Log-probability under the model's own distribution: before bias, penalties and temperature."""
    logprobs = torch.log_softmax(scores, 0)
    best, ids = torch.topk(logprobs, min(top, len(logprobs))) if top else (logprobs[:0], logprobs[:0])
    pairs = tuple((int(i), float(v)) for i, v in zip(ids.tolist(), best.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs[token]), pairs)


def embedding_of(state: torch.Tensor, scores: torch.Tensor) -> Embedding:
    """Of a prompt whose last position has the hidden state `state` [hidden] and the logits `scores` [vocab]."""
    vector = torch.nn.functional.normalize(state.float(), dim=0)
    return Embedding(vector.numpy(), next_token_of(scores.float().numpy()))


def next_token_of(logits: npt.NDArray[np.float32]) -> NextToken:
    """In numpy: on one row it is several times quicker than torch, whose every pass wakes a pool of threads."""
    best = int(logits.argmax())
    below = logits - logits[best]
    weights = np.exp(below)
    total = float(weights.sum())
    entropy = math.log(total) - float(weights @ below) / total
    below[best] = -math.inf
    return NextToken(entropy, -math.log(total), -float(below.max()))


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that depends on nothing but its arguments."""
    data = f"{seed}/{position}".encode()
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
