"""The contract between scheduler and runner: what one iteration computes, and what came out of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from weighbridge.cost import attention
from weighbridge.engine.request import Embedding, FinishReason, Request, TokenLogprob


@dataclass(slots=True)
class Slice:
    """Consecutive tokens of one request that run in this iteration: positions [start, start + count).

    `drafts` are proposed tokens behind the request's own; they are the last `len(drafts)` of `count`.
    A slice that reaches the end of the request's tokens samples: one token from the last own position,
    and one more for each draft accepted; or the embedding that the request asks for instead.
    """

    request: Request
    start: int
    count: int
    samples: bool
    drafts: tuple[int, ...] = ()
    scored: int = 0  # its first tokens, that many, tell how likely the token behind each was
    padding: int = 0  # extra tokens to run and drop: what a static batch pays for prompts of unequal length

    @property
    def sampled_rows(self) -> int:
        """How many of its rows are sampled from: behind those that are scored."""
        return 1 + len(self.drafts) if self.samples else 0

    def token_ids(self) -> list[int]:
        own = self.request.tokens[self.start : self.start + self.count - len(self.drafts)]
        return own + list(self.drafts) if self.drafts else own


@dataclass(slots=True)
class Batch:
    """One iteration. `copies` are (source, target) block ids to copy before the forward pass."""

    slices: list[Slice] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    experts_touched: int | None = None  # (layer, expert) pairs, set by the runner; None: a dense model

    @property
    def num_tokens(self) -> int:
        return sum(s.count + s.padding for s in self.slices)

    @property
    def num_sequences(self) -> int:
        return len(self.slices)

    @property
    def work(self) -> tuple[int, int, int, int]:
        """Tokens, sequences, context tokens and prompt pairs: the arguments of `StepCost.seconds`.

        A row that is scored costs what one that is sampled does, so it counts as a sequence.
        """
        tokens = context = pairs = scored = 0
        for piece in self.slices:
            count, end = piece.count, piece.start + piece.count
            tokens += count + piece.padding
            context += end
            scored += piece.scored
            if count > 1:
                pairs += attention(piece.start, count)[1]
        return tokens, len(self.slices) + scored, context, pairs

    @property
    def adapter_work(self) -> float:
        """What adapters multiply beside the base, in tokens of the base."""
        return sum(s.count * s.request.adapter.share for s in self.slices if s.request.adapter is not None)


class NothingLeft(ValueError):
    """What a request forbids and demands leaves no token that could come next."""


@dataclass(slots=True)
class Sampled:
    """What the runner returns, aligned with `Batch.slices`.

    `tokens[i]` is empty for a slice that does not sample, else the accepted drafts followed by one new
    token. `logprobs[i]` is aligned with `tokens[i]` when the request asked for them, else None.
    `scores[i]` are those of the tokens behind the first `scored` ones of a slice.
    `errors` maps a slice's index to what went wrong with that request alone; where it is the request's own doing,
    the index is in `impossible`, too. `embeddings` maps it to what came of a
    sampling slice whose request embeds: it has no tokens; nor has one that asks how likely some tokens are, which is
    in `chances`. `deferred` are sampling slices whose constraint is still
    being worked out: they have no tokens either, and their last own token is computed again in a later iteration.
    `model_seconds` is what the model itself took.
    """

    tokens: list[list[int]]
    logprobs: list[list[TokenLogprob] | None]
    errors: dict[int, str] = field(default_factory=dict)
    impossible: set[int] = field(default_factory=set)
    embeddings: dict[int, Embedding] = field(default_factory=dict)
    chances: dict[int, list[float]] = field(default_factory=dict)
    deferred: set[int] = field(default_factory=set)
    scores: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    model_seconds: float = 0.0

    def fault(self, index: int) -> FinishReason:
        """How a request ends with which something went wrong."""
        return FinishReason.IMPOSSIBLE if index in self.impossible else FinishReason.ERROR

    def problem(self, index: int, piece: Slice) -> str | None:
        """What went wrong with `Batch.slices[index]`, which is `piece`; a slice that samples must bring something."""
        if index in self.errors or index in self.deferred:
            return self.errors.get(index)
        if piece.scored and len(self.scores.get(index, ())) != piece.scored:
            return "the model returned no log-probabilities for this prompt"
        if not piece.samples:
            return None
        if piece.request.embeds:
            return None if index in self.embeddings else "the model returned no embedding for this request"
        if piece.request.ends_with_prompt:
            wanted = piece.request.params.chances_of and index not in self.chances
            return "the model returned no probabilities for this request" if wanted else None
        return None if self.tokens[index] else "the model returned no token for this request"
