"""How long one engine iteration takes: the one formula that scheduler, admission, balancer and planner share."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from weighbridge.cost.experts import ExpertUse


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured iteration. `tokens` that go through an adapter as well count a little more than one."""

    tokens: float
    sequences: int
    context_tokens: int
    seconds: float
    experts: float | None = None  # distinct (layer, expert) pairs touched; None: a dense model
    prompt_pairs: int = 0


def attention(start: int, count: int) -> tuple[int, int]:
    """What attention does for tokens [start, start + count) of a sequence: `context_tokens` and `prompt_pairs`.

    The keys and values that are there are read once, for the last of the tokens and all others with it; every
    other token is a query more, over as many keys as come before it.
    """
    return start + count, (count - 1) * start + count * (count - 1) // 2


#: For `StepCost.per_prompt_pair`: whatever a context token costs.
AS_CONTEXT = -1.0


@dataclass(frozen=True, slots=True)
class StepCost:
    """Roofline of one iteration: overhead + max(weights streamed, tokens computed) + attention + sequences.

    Seconds: per iteration (`overhead`), per pass over the weights (`memory`), per token, per context token that a
    sequence reads, per sequence in the batch (sampling, detokenising, delivery), per expert that the batch
    touches (0: a dense model), per (query, key) pair that a prompt chunk computes beyond its reading. Reading is
    bound by bandwidth and the pairs of a chunk by arithmetic: on two cores a pair of a chunk costs a quarter of a
    token read, on a GPU a hundredth. The rest say how many experts are touched; they are the fields of `ExpertUse`.
    """

    overhead: float
    memory: float
    per_token: float
    per_context_token: float
    per_sequence: float
    per_expert: float = 0.0
    experts: float = 0.0
    expert_layers: float = 0.0
    expert_top_k: float = 0.0
    expert_skew: float = 0.0
    expert_overlap: float = 0.0
    per_prompt_pair: float = AS_CONTEXT

    def __post_init__(self) -> None:
        if self.per_prompt_pair < 0.0:
            object.__setattr__(self, "per_prompt_pair", self.per_context_token)

    def seconds(
        self,
        tokens: float,
        sequences: float,
        context_tokens: float,
        prompt_pairs: float = 0,
        experts: float | None = None,
    ) -> float:
        """Predicted seconds of an iteration.

        `tokens` run through the linear layers, `sequences` take part; `context_tokens` and `prompt_pairs` are
        sums of `attention` over them (of decodes: their context lengths, and none).
        `experts`: distinct (layer, expert) pairs touched, where that is known; else their expected number.
        """
        memory, compute = self.memory, self.per_token * tokens
        seconds = (
            self.overhead
            + (memory if memory > compute else compute)
            + self.per_context_token * context_tokens
            + self.per_prompt_pair * prompt_pairs
            + self.per_sequence * sequences
        )
        if self.per_expert:
            touched = self.expert_use.touched(tokens, sequences) if experts is None else experts
            seconds += self.per_expert * touched
        return seconds

    def predict(self, sample: Sample) -> float:
        """Predicted seconds of a measured iteration."""
        return self.seconds(
            sample.tokens, sample.sequences, sample.context_tokens, sample.prompt_pairs, sample.experts
        )

    def decode_seconds(self, sequences: float, context_tokens: float) -> float:
        """Seconds of an iteration that gives each of `sequences` one token and computes no prompt."""
        if self.per_expert:
            return self.seconds(sequences, sequences, context_tokens)
        memory, compute = self.memory, self.per_token * sequences  # `seconds`, written flat
        return (
            self.overhead
            + (memory if memory > compute else compute)
            + self.per_context_token * context_tokens
            + self.per_sequence * sequences
        )

    def prefill_work(self, tokens: float, cached: float = 0.0) -> float:
        """Seconds that `tokens` prompt tokens behind `cached` ones add to the iterations they run in.

        What those iterations take beside, weights and experts read included, is the line's: see `line_seconds`.
        """
        pairs = tokens * cached + 0.5 * tokens * (tokens + 1)
        return self.per_token * tokens + self.per_prompt_pair * pairs

    def token_work(self, keys: float) -> float:
        """Seconds that a prompt token adds which attends to `keys` keys: for a whole prompt, to their mean."""
        return self.per_token + self.per_prompt_pair * keys

    def line_seconds(
        self, work: float, tokens: float, streams: float, context_tokens: float, width: int, block: int
    ) -> float:
        """Seconds until a line of prompts is computed: `tokens` of them, `work` seconds (see `prefill_work`).

        They are computed in iterations of `width` tokens, at least `block` of them the prompts', which also advance
        all `streams`; before them comes half of the iteration that runs now.
        """
        per_token, memory = self.per_token, self.memory
        compute = per_token * streams
        beside = (
            self.overhead
            + compute
            + self.per_context_token * context_tokens
            + self.per_sequence * (streams + 1)
        )
        free = width - streams
        room = per_token * (free if free > block else block)
        full = int(work / room) if room else 0  # iterations that are filled up; one more has the rest
        idle = memory - compute if memory > compute else 0.0  # weights streamed beyond what streams compute
        seconds = (work if work > idle else idle) + beside * (1 + full)
        if streams:
            seconds += 0.5 * (beside + idle)
        if self.per_expert:
            rest = max(tokens - full * max(free, block), 1.0)
            seconds += self._line_expert_seconds(full, rest, streams, width)
        return seconds

    def _line_expert_seconds(self, full: int, rest: float, streams: float, width: int) -> float:
        """Seconds in which the iterations of a line read experts: `full` ones, and one with `rest` prompt tokens.

        Batches of about one size count as one, so that a balancer asks for few of them.
        """
        use, beside = self.expert_use, _coarse(streams)
        touched = use.touched(beside + _coarse(rest), beside + 1)
        if full:
            touched += full * use.touched(width, beside + 1)
        if beside:
            touched += 0.5 * use.touched(beside, beside)
        return self.per_expert * touched

    def prompt_share(self, streams: int, context_tokens: int, width: int) -> float:
        """Share of an iteration of `width` tokens that goes to prompts and not to the `streams` in it."""
        room = self.per_token * (width - streams if width > streams else 1)
        if not room:
            return 1.0
        beside = (
            self.overhead
            + (self.per_token + self.per_sequence) * streams
            + self.per_context_token * context_tokens
        )
        if self.per_expert:
            beside += self.per_expert * self.expert_use.touched(width, streams + 1)
        return room / (room + beside)

    @property
    def expert_use(self) -> ExpertUse:
        return ExpertUse(
            self.experts, self.expert_layers, self.expert_top_k, self.expert_skew, self.expert_overlap
        )

    def with_expert_use(self, use: ExpertUse) -> StepCost:
        """The same times over another spread of the tokens."""
        return replace(
            self,
            experts=use.experts,
            expert_layers=use.layers,
            expert_top_k=use.top_k,
            expert_skew=use.skew,
            expert_overlap=use.overlap,
        )

    def scaled(self, factor: float) -> StepCost:
        """The same machine running `factor` times slower."""
        return replace(
            self,
            overhead=self.overhead * factor,
            memory=self.memory * factor,
            per_token=self.per_token * factor,
            per_context_token=self.per_context_token * factor,
            per_sequence=self.per_sequence * factor,
            per_expert=self.per_expert * factor,
            per_prompt_pair=self.per_prompt_pair * factor,
        )

    def prefill_seconds(self, tokens: int, cached: int = 0, chunk: int = 2048) -> float:
        """Time to compute `tokens` prompt tokens behind `cached` ones alone, in steps of `chunk`."""
        total, done = 0.0, cached
        while done < cached + tokens:
            step = min(chunk, cached + tokens - done)
            total += self.seconds(step, 1, *attention(done, step))
            done += step
        return total

    def largest_chunk(
        self,
        target: float,
        start: int,
        limit: int,
        tokens: int,
        sequences: int,
        context_tokens: int,
        prompt_pairs: int = 0,
    ) -> int:
        """Most prompt tokens (<= limit) at offset `start` that keep an iteration within `target` seconds.

        The iteration already holds `tokens`, `sequences`, `context_tokens` and `prompt_pairs`. Monotone, so bisect,
        from where the quadratic of a dense model's time has its root: mostly the answer, or next to it.
        """

        def fits(chunk: int) -> bool:
            context, pairs = attention(start, chunk) if chunk else (0, 0)
            context, pairs = context_tokens + context, prompt_pairs + pairs
            return self.seconds(tokens + chunk, sequences + 1, context, pairs) <= target

        low, high = 0, limit
        left = target - self.overhead - self.per_sequence * (sequences + 1) - self.per_token * tokens
        left -= self.per_context_token * context_tokens + self.per_prompt_pair * prompt_pairs
        guess = min(self._chunk_within(left, start), limit)
        if not fits(guess):
            high = max(guess - 1, 0)
        elif guess == limit or not fits(guess + 1):
            return guess
        else:
            low = guess
        while low < high:
            middle = (low + high + 1) // 2
            if fits(middle):
                low = middle
            else:
                high = middle - 1
        return low

    def _chunk_within(self, seconds: float, start: int) -> int:
        """About how many tokens at offset `start` take `seconds`, where computing and not memory bounds them."""
        left = seconds - (self.per_context_token - self.per_prompt_pair) * start
        linear = self.per_token + self.per_context_token + self.per_prompt_pair * (start - 0.5)
        root = math.sqrt(max(linear * linear + 2.0 * self.per_prompt_pair * left, 0.0))
        return int(2.0 * left / (linear + root)) if left > 0.0 and linear > 0.0 else 0

    def as_dict(self) -> dict[str, float]:
        """Every field; those about experts only where there are some, a prompt pair's only if it differs."""
        fields = {name: value for name, value in asdict(self).items() if self.experts or "expert" not in name}
        if self.per_prompt_pair == self.per_context_token:
            del fields["per_prompt_pair"]
        return fields


def _coarse(count: float) -> int:
    """About `count`, one of few values: exact up to 64, within a thirtieth above."""
    whole = round(count)
    shift = max(whole.bit_length() - 6, 0)
    return whole >> shift << shift


#: Before anything is measured: a 135M-parameter model on two modern server cores.
DEFAULT_STEP_COST = StepCost(
    overhead=0.003,
    memory=0.012,
    per_token=0.0007,
    per_context_token=1.0e-6,
    per_sequence=0.00005,
    per_prompt_pair=2.5e-7,
)
