"""What is on a replica: each request of ours as the gateway follows it, and what others put there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from weighbridge.fleet.api import Arrival, ExpectedFirst

#: Share of a prompt that counts as still to be computed until its first token comes: about what the believed
#: progress is off by. Without it a replica that is a little late looks idle.
UNPROVEN = 0.2


@dataclass(frozen=True, slots=True)
class Others:
    """What a replica has that is not ours, as of its last report."""

    at: float
    queued_requests: int = 0  # requests there, waiting or running
    prompt_tokens: float = 0.0  # of prompts, still to be computed
    output_tokens: float = 0.0  # expected still
    kv_tokens: int = 0


@dataclass(slots=True, eq=False)
class InFlight:
    """One request on a replica, as the gateway follows it."""

    arrival: Arrival
    sent: float
    streamed: bool
    cached_tokens: int
    uncomputed: float  # prompt tokens believed to be computed still
    work: float  # seconds of prefill that these take
    remaining: float  # output tokens still expected, of all choices
    produced: int = 0  # output tokens so far, of all choices
    started: bool = False  # the first token has come
    revise_at: int = 1  # tokens produced at which `remaining` is estimated anew
    forecast: ExpectedFirst | None = None  # None: nothing was predicted
    level: int = 0  # sequences that were there when it was sent
    #: Since when its stream is watched, and what had been done there until then: tokens, prompts, streams x seconds.
    marked_at: float = 0.0
    marked_tokens: int = 0
    marked_prompts: float = 0.0
    marked_pairs: float = 0.0
    marked_area: float = 0.0
    marked_line: bool = False  # prompts waited then
    late: float = math.inf  # seconds a token that are more than its stream should take
    token_at: float = 0.0  # when its last token came
    watched: bool = True  # its tokens come as the replica sends them, not as its client reads them
    whole_work: float = field(init=False)  # seconds of prefill that it brought
    #: Seconds of it that count as ahead until the first token comes; nothing tells of one not streamed.
    unproven: float = field(init=False)

    def __post_init__(self) -> None:
        self.price(self.work)

    @property
    def fresh(self) -> int:
        """Prompt tokens that were to be computed for it."""
        return self.arrival.weight.prompt_tokens - self.cached_tokens

    @property
    def pairs(self) -> float:
        """What these attend to: pairs of a token of the prompt and one before it, or itself."""
        fresh = self.fresh
        return fresh * self.cached_tokens + 0.5 * fresh * (fresh + 1)

    def mark(self, now: float, tokens: int, prompts: tuple[float, float], area: float, line: bool) -> None:
        """Watch its stream from now on, for the next observation.

        `prompts`: tokens computed until now, and what they attended to.
        """
        self.marked_at, self.marked_tokens = now, tokens
        self.marked_prompts, self.marked_pairs = prompts
        self.marked_area, self.marked_line = area, line

    def price(self, work: float) -> None:
        """Set what the rest of its prompt takes: `work` seconds."""
        self.work = self.whole_work = work
        self.unproven = UNPROVEN * work if self.streamed else 0.0


def sums(own: Sequence[InFlight]) -> tuple[dict[str, int], dict[str, float]]:
    """What the aggregates of a replica's state must be: the counts exactly, the others up to rounding."""
    started = [(r.arrival.weight, r.produced) for r in own if r.started]
    exact = {
        "sequences": sum(r.arrival.weight.choices for r in own),
        "decoding": sum(weight.choices for weight, _ in started),
        "kv_tokens": sum(r.arrival.weight.prompt_tokens + r.produced for r in own),
        "context_tokens": sum(weight.choices * weight.prompt_tokens + out for weight, out in started),
    }
    close = {
        "uncomputed_tokens": sum(r.uncomputed for r in own),
        "prefill_seconds": sum(r.work for r in own),
        "line_work": sum(r.whole_work for r in own if not r.started),
        "remaining_output": sum(r.remaining for r in own),
    }
    return exact, close
