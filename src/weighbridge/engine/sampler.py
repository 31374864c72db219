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

from weighbridge.engine.banned import BannedTokens
from weighbridge.engine.batch import Batch, NothingLeft, Sampled, Slice
from weighbridge.engine.drawing import Ids, Scores, Tally, drawn, penalise, token_logprob
from weighbridge.engine.guidance.factory import GuideFactory
from weighbridge.engine.guidance.matcher import Matcher
from weighbridge.engine.request import Embedding, NextToken, Request, SamplingParams, TokenLogprob
from weighbridge.errors import WeighbridgeError

#: Seconds that a batch waits at the least for the masks of its constrained outputs.
SHORTEST_PATIENCE = 0.01


class Argmax(Protocol):
    def argmax(self, logits: torch.Tensor) -> npt.NDArray[np.int32]: ...


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a request's parameters mean for every one of its rows, worked out once for all its choices."""

    biased: Ids  # tokens with a bias
    biases: Scores  # one for each
    stops: Ids  # tokens that are banned before `min_tokens`
    prompt: Ids  # each token of the prompt once, where repetition is penalised
    in_prompt: npt.NDArray[np.bool_] | None  # [vocab], there
    banned: BannedTokens | None  # what may not come, beside a constraint


@dataclass(slots=True)
class State:
    """What the sampler remembers of a request between iterations; kept in `Request.sampler_state`."""

    seed: int
    matcher: Matcher | None
    wishes: Wishes
    tally: Tally | None = None  # of the output, for penalties
    counted: int = 0  # output tokens in it


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
        """`logits` [rows, vocab]: of each slice in order a row for each token that is scored, then, where it
        samples, one and one more for each of its drafts.

        `states` [embeddings, hidden]: one row per sampling slice whose request embeds, in order. `patience`: seconds
        that the batch may wait for the masks of constrained outputs; whose is not there by then is deferred.
        """
        result = Sampled([[] for _ in batch.slices], [None] * len(batch.slices))
        plain = any(piece.samples and is_plain(piece.request.params) for piece in batch.slices)
        best = self._best(logits) if plain else []
        _await_masks(batch, max(patience, SHORTEST_PATIENCE))
        row = 0
        for index, piece in enumerate(batch.slices):
            if piece.scored:
                result.scores[index] = self._scored(logits[row : row + piece.scored], piece)
                row += piece.scored
            if not piece.samples:
                continue
            rows = range(row, row + piece.sampled_rows)
            row = rows.stop
            if piece.request.ends_with_prompt and not piece.request.embeds:
                if wanted := piece.request.params.chances_of:
                    result.chances[index] = chances(logits[rows.start, : self._vocab_size], wanted)
                continue
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
                if isinstance(error, NothingLeft):
                    result.impossible.add(index)
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
            if count := piece.scored + piece.sampled_rows:
                if not all(finite[row : row + count]):
                    result.tokens[index] = []
                    result.errors[index] = "the model computed values that are not numbers for this request"
                row += count

    def _scored(self, logits: torch.Tensor, piece: Slice) -> list[TokenLogprob]:
        """Log-probabilities of the tokens behind those of these rows, in the model's own distribution."""
        request = piece.request
        following = request.prompt[piece.start + 1 : piece.start + 1 + piece.scored]
        return token_logprobs(logits[:, : self._vocab_size], following, request.params.prompt_logprobs or 0)

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
            scores: Scores = logits[row, : self._vocab_size].float().numpy()
            adjusted = self._adjust(scores.copy(), request, state, tokens)
            if forbidden is not None:
                np.putmask(adjusted, forbidden.numpy(), -np.inf)
            if state.wishes.banned or forbidden is not None:
                _check_any(adjusted)
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
        params, prompt, in_prompt = request.params, _ids(()), None
        if params.repetition_penalty != 1.0:
            prompt = np.unique(_ids(request.prompt))
            in_prompt = np.zeros(self._vocab_size, np.bool_)
            in_prompt[prompt] = True
        biases = np.array(list(params.logit_bias.values()), np.float32)
        banned = BannedTokens.of(params, self._vocab_size)
        return Wishes(
            _ids(params.logit_bias), biases, _ids(request.stop_token_ids), prompt, in_prompt, banned
        )

    def _adjust(self, scores: Scores, request: Request, state: State, fresh: Sequence[int]) -> Scores:
        """Bias, penalties and bans, in place. `fresh` are tokens drawn in this very iteration."""
        params, wishes = request.params, state.wishes
        if len(wishes.biased):
            scores[wishes.biased] += wishes.biases
        if has_penalties(params):
            apply_penalties(scores, request, state, fresh)
        if request.num_output_tokens + len(fresh) < params.min_tokens and len(wishes.stops):
            scores[wishes.stops] = -np.inf
        if wishes.banned:
            start = max(request.num_prompt_tokens, request.num_tokens - wishes.banned.longest)
            wishes.banned.apply(scores, [*request.tokens[start:], *fresh])
        return scores

    def _draw(self, scores: Scores, params: SamplingParams, seed: int, position: int) -> int:
        return int(scores.argmax()) if params.greedy else drawn(scores, params, uniform(seed, position))


def is_plain(params: SamplingParams) -> bool:
    """Whether the largest raw logit is the answer."""
    return (
        params.greedy
        and params.guide is None
        and params.logprobs is None
        and not params.logit_bias
        and params.allowed_tokens is None
        and not params.bad_words
        and params.min_tokens == 0
        and not has_penalties(params)
    )


def _check_any(scores: Scores) -> None:
    """Raise NothingLeft where no token may come any more."""
    if not scores.max() > -np.inf:
        raise NothingLeft("what this request forbids and demands leaves no token that could come next")


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


def apply_penalties(scores: Scores, request: Request, state: State, fresh: Sequence[int]) -> None:
    """Penalties for what is in prompt and output. Takes as long at the end of a long output as at its beginning."""
    if state.tally is None:
        state.tally = Tally()
    tally = state.tally
    output = request.tokens[request.num_prompt_tokens + state.counted :]
    state.counted += len(output)
    for token in (*output, *fresh):
        tally.add(token)
    penalise(scores, request.params, tally, state.wishes.in_prompt, state.wishes.prompt)
    for token in reversed(fresh):
        tally.take_back(token)


def _ids(tokens: Iterable[int]) -> Ids:
    return np.array(list(tokens), np.int64)


def _await_masks(batch: Batch, patience: float) -> None:
    """Let the masks come that the batch can wait for. Where all that is left to do waits for one, any will do."""
    states = [piece.request.sampler_state for piece in batch.slices if piece.samples]
    matchers = [state.matcher for state in states if isinstance(state, State) and state.matcher is not None]
    pending: list[Future[Any]] = [matcher.pending for matcher in matchers if not matcher.pending.done()]
    if pending:
        others = len(pending) < len(batch.slices)
        wait(pending, patience, ALL_COMPLETED if others else FIRST_COMPLETED)


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


def chances(logits: torch.Tensor, tokens: Sequence[int]) -> list[float]:
    """How likely each of `tokens` is by one row of `logits` [vocab], at temperature 1. Natural logarithms."""
    scores = logits.double()
    found: list[float] = (scores[torch.tensor(tokens)] - scores.logsumexp(dim=0)).tolist()
    return found


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that depends on nothing but its arguments."""
    data = f"{seed}/{position}".encode()
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def token_logprobs(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """Return how likely each of `tokens` was by its row of `logits` [tokens, vocab], and the `top` likeliest there.

    A token that is among the likeliest has the same number in both places, to the last bit: clients compare them.
    """
    scores = logits.float()
    whole = scores.logsumexp(dim=1)
    chosen = scores.gather(1, torch.tensor(tokens).unsqueeze(1))
    ranks = (scores > chosen).sum(dim=1).add_(1).tolist()
    found = (chosen.squeeze(1) - whole).tolist()
    if not top:
        return [TokenLogprob(*one) for one in zip(tokens, found, [()] * len(ranks), ranks, strict=True)]
    values, ids = scores.topk(min(top, scores.shape[1]), dim=1)
    values -= whole.unsqueeze(1)
    best = [tuple(zip(*one, strict=True)) for one in zip(ids.tolist(), values.tolist(), strict=True)]
    return [TokenLogprob(*one) for one in zip(tokens, found, best, ranks, strict=True)]
