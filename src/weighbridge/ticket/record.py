"""The ticket: one record per request of what it weighed, what was decided, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from heapq import nsmallest
from operator import itemgetter
from typing import Any

from weighbridge.errors import plainly
from weighbridge.ticket.decisions import Decisions
from weighbridge.ticket.span import SpanName

#: How a leg ended whose answer is not the one: no outcome is that of one that nobody took up.
_CUT_OFF = (None, "abort", "error")
#: Scores of replicas that a ticket keeps beside that of the chosen one.
KEPT_SCORES = 16


def prompt_hash(prompt: bytes, salt: str = "") -> str:
    """Name a prompt without showing it: the same for engine, gateway and route, so that it can be followed.

    `prompt`: the JSON of its messages, prompt or input, as the client wrote it. Under another `salt`, the request's
    `cache_salt`, the same prompt has another name.
    """
    key = blake2b(salt.encode()).digest() if salt else b""
    return blake2b(prompt, digest_size=16, key=key).hexdigest()


@dataclass(slots=True)
class Leg:
    """The part of a request that one model's replicas worked on. A route may need several: a weak answer and the
    one that replaces it, further samples, the loser of a race. Times are seconds since the epoch."""

    model: str
    place: str = ""  # the place of a route, by its name; empty: no route
    placement: str = "edge"
    purpose: str = "answer"  # or "sample": a further answer that the first one is compared with
    replica: str = ""
    replica_ticket: str = ""  # the replica's own, where it has one
    weighed_tokens: int | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    arrived: float = 0.0
    scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    tries: int = 0  # replicas it was sent to, one after the other
    hedged: bool = False
    resumed: int = 0
    usd: float = 0.0
    estimated: bool = False  # the replica did not say what it used, so it was counted
    outcome: str | None = None  # how its answer ended, as in `finish_reason`
    error: str | None = None
    decisions: Decisions = field(default_factory=Decisions)  # of the fleet, about this leg alone
    scores: dict[str, float] = field(default_factory=dict)
    score_unit: str = ""
    candidates: int = 0  # that were compared
    span_id: str = ""  # its own in a distributed trace; empty: none is made

    def as_dict(self, *, in_full: bool = True) -> dict[str, Any]:
        """Plain JSON types. Not `in_full`: without what processes and servers behind this one said."""
        record = {name: getattr(self, name) for name in LEG_FIELDS}
        return record | _words(self.decisions, self.error, in_full)


LEG_FIELDS = tuple(each.name for each in fields(Leg))


@dataclass(slots=True)
class Ticket:
    """Written as the request goes. Times are seconds since the epoch; prompts are never stored, a hash is."""

    id: str
    tenant: str
    model: str
    prompt_hash: str
    prompt_tokens: int
    max_tokens: int
    priority: int = 0
    choices: int = 1
    predicted_output_tokens: float | None = None
    cached_tokens: int = 0
    output_tokens: int = 0
    kv_bytes: int = 0
    arrived: float = 0.0
    scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    finish_reason: str | None = None
    error: str | None = None
    batch_sizes: dict[int, int] = field(default_factory=dict)  # sequences in the step -> steps seen
    steps: int = 0
    experts_touched: int | None = None  # (layer, expert) pairs, added up over its steps; None: a dense model
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    replica: str = "local"
    replica_ticket: str = ""  # the replica's own, where it has one
    placement: str = "edge"
    rule: str | None = None  # the residency rule that applied
    score: float | None = None  # difficulty before answering, in [0, 1]
    threshold: float | None = None  # score from which the cloud was to answer
    confidence: float | None = None  # that the local answer is right, as judged before the first byte left
    degraded: bool = False  # answered by a side that was not the one wanted
    cost_usd: float = 0.0  # all attempts together
    cost_estimated: bool = False  # a side did not say what it used, so it was counted
    counterfactual_usd: float | None = None  # what the other side would have cost
    left_machine: list[str] = field(default_factory=list)  # to whom, how much, what was redacted
    decisions: Decisions = field(default_factory=Decisions)  # what was decided and why, in order
    route: str = ""
    weighed_tokens: int | None = None  # prompt tokens as weighed at the door; `prompt_tokens`: as settled
    exact: bool = True  # the prompt was counted with the model's tokenizer
    attempts: int = 0  # replicas it was sent to, one after the other
    hedged: bool = False  # a second copy was sent
    resumed: int = 0  # times its stream went on at another replica
    scores: dict[str, float] = field(default_factory=dict)  # at the last choice, as `note_scores` keeps them
    score_unit: str = ""
    candidates: int = 0  # that were compared at the last choice
    adapter: str = ""  # the adapter over the model that answered, by its name; empty: none
    prefix: dict[str, Any] | None = None  # where the prompt left the one before it, if that is looked for
    prompt_rules: dict[str, Any] | None = (
        None  # what rules touched in it, and where it would have left the cache
    )
    legs: list[Leg] = field(default_factory=list)  # of a route's request; any other is a leg of its own
    trace: SpanName | None = None  # its span in a distributed trace

    def note_scores(self, scores: Mapping[str, float], chosen: str, unit: str) -> None:
        """Keep what a choice was between: the chosen replica and the best others, lowest first, and how many there
        were. A ticket is no larger in a large fleet."""
        if len(scores) <= KEPT_SCORES:
            best = sorted(scores.items(), key=itemgetter(1))
        else:
            best = nsmallest(KEPT_SCORES, scores.items(), key=itemgetter(1))
        self.scores = {chosen: scores[chosen]} | dict(best) if chosen in scores else dict(best)
        self.score_unit, self.candidates = unit, len(scores)

    def every_leg(self) -> Sequence[Leg]:
        """The legs of the request, in their order. Without a route it is one; none while nobody works on it."""
        if self.legs or not self.replica:
            return self.legs
        return [self.as_leg()]

    def as_leg(self) -> Leg:
        """The ticket of a request at one model, as that model's leg; what was decided stays with the ticket."""
        return Leg(
            self.model,
            placement=self.placement,
            replica=self.replica,
            replica_ticket=self.replica_ticket,
            weighed_tokens=self.weighed_tokens,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
            arrived=self.arrived,
            scheduled=self.scheduled,
            first_token=self.first_token,
            finished=self.finished,
            tries=self.attempts,
            hedged=self.hedged,
            resumed=self.resumed,
            usd=self.cost_usd,
            estimated=self.cost_estimated,
            outcome=self.finish_reason,
            error=self.error,
        )

    def mean_gap(self) -> float | None:
        """Seconds between two tokens of the answer, in the mean; None where they were not seen coming.

        Of a route it is that of the leg which answered: what is held back to be judged leaves in one piece.
        """
        if self.first_token is None:
            return None
        for leg in reversed(self.legs):
            if leg.purpose == "answer" and leg.outcome not in _CUT_OFF:
                return gap_of(leg, self.choices)
        return gap_of(self, self.choices)

    def saved_tokens(self) -> int:
        """About how many cached tokens it has because of rules for prompts: those behind the place where it would have
        left the prompt before it."""
        left_at = (self.prompt_rules or {}).get("left_at")
        return 0 if left_at is None else max(self.cached_tokens - round(left_at * self.prompt_tokens), 0)

    def as_dict(self, *, in_full: bool = True) -> dict[str, Any]:
        """Plain JSON types; durations derived from the times are added in milliseconds. `in_full` as for legs."""
        record = {name: getattr(self, name) for name in _TICKET_FIELDS}
        record |= _words(self.decisions, self.error, in_full)
        record["legs"] = [leg.as_dict(in_full=in_full) for leg in self.every_leg()]
        if self.prompt_rules is not None:
            record["prompt_rules"] = {**self.prompt_rules, "tokens_saved": self.saved_tokens()}
        record["trace"] = None if self.trace is None else self.trace.as_dict()
        record["batch_sizes"] = {str(size): steps for size, steps in self.batch_sizes.items()}
        if self.first_token is not None:
            record["ttft_ms"] = round(between(self.arrived, self.first_token) * 1e3, 3)
        if self.finished is not None:
            record["e2e_ms"] = round(between(self.arrived, self.finished) * 1e3, 3)
        gap = self.mean_gap()
        if gap is not None:
            record["itl_ms"] = round(gap * 1e3, 3)
        return record


def _words(decisions: Decisions, error: str | None, in_full: bool) -> dict[str, Any]:
    shown = str if in_full else plainly
    return {"decisions": [shown(one) for one in decisions], "error": None if error is None else shown(error)}


def between(earlier: float, later: float) -> float:
    """Seconds from one moment of the wall clock to another: none where it was set back meanwhile. What adds them up
    must not go down."""
    return max(later - earlier, 0.0)


def gap_of(part: Leg | Ticket, choices: int) -> float | None:
    """Seconds between two tokens of one of `choices` answers, in the mean; None where that is not known: they came in
    one piece, do not end yet, or are one token."""
    if part.first_token is None or part.finished is None or part.output_tokens <= choices:
        return None
    return between(part.first_token, part.finished) / (part.output_tokens / choices - 1)


_TICKET_FIELDS = tuple(each.name for each in fields(Ticket))
