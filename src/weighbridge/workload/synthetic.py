"""Workloads: what a recorded trace or a few options become, as requests in order of time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import count
from math import inf

from weighbridge.errors import BadInput
from weighbridge.workload.arrivals import ARRIVALS, gaps
from weighbridge.workload.lengths import Lengths
from weighbridge.workload.requests import SimulatedRequest, Span, TraceRow, answered

#: Names of spans: blocks of a trace are their own names behind this, everything else is numbered below it.
_TRACE_BLOCKS = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic:
    """A synthetic workload. Written `poisson:rate=5,requests=1000,prompt=lognormal:500:0.8,...`.

    `kind` is how requests arrive or what they are: poisson, gamma (`cv`), constant, bursts (`burst` requests at
    once on average), heavy_tail, shared_prefix (`prefixes` of `prefix` tokens, by Zipf's law), sessions (`turns`
    on average, each behind all that was said, after `think` seconds) or agents (sessions whose steps follow in
    `think` seconds and share one of `prefixes` system prompts).
    """

    kind: str = "poisson"
    rate: float = 1.0  # requests a second, on average
    requests: int = 1000
    prompt: Lengths = field(default_factory=lambda: Lengths("lognormal", (600.0, 0.9), 16_000))
    output: Lengths = field(default_factory=lambda: Lengths("lognormal", (150.0, 0.8), 2000))
    max_tokens: int | None = None  # None: no less than the longest output of the workload
    tenants: int = 1
    cv: float = 3.0
    burst: float = 16.0
    prefixes: int = 32
    prefix: int = 1000
    turns: float = 4.0
    think: float = 10.0
    context: int = 28_000  # conversations end before a prompt grows beyond this

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput(
                f"{self.kind!r} is not a workload; choose from {', '.join(KINDS)}", param="workload"
            )
        for name in ("rate", "requests", "tenants", "cv", "burst", "prefixes", "turns"):
            if not 0 < getattr(self, name) < inf:
                raise BadInput(
                    f"workload: {name} is {getattr(self, name)}, but must be above 0", param="workload"
                )
        if self.turns < 1.0 or not 0.0 <= self.think < inf or self.prefix < 0:
            raise BadInput(
                "workload: turns must be at least 1, think and prefix not negative", param="workload"
            )

    @staticmethod
    def parse(text: str) -> Synthetic:
        """Raises BadInput naming the option that is wrong and those there are."""
        kind, _, rest = text.strip().partition(":")
        values: dict[str, object] = {"kind": kind}
        types = {one.name: one.type for one in fields(Synthetic)}
        for part in filter(None, rest.split(",")):
            name, separator, value = part.strip().partition("=")
            if name not in types or name == "kind" or not separator:
                known = ", ".join(sorted(set(types) - {"kind"}))
                raise BadInput(
                    f"workload option {part!r}: write NAME=VALUE with one of {known}", param="workload"
                )
            values[name] = _option(name, value, str(types[name]))
        defaults = {"heavy_tail": _HEAVY, "agents": _AGENTS}.get(kind, {})
        return Synthetic(**{**defaults, **values})  # type: ignore[arg-type]

    @property
    def shares(self) -> bool:
        """Whether prompts share beginnings, so that prefix caches matter."""
        return self.kind in ("shared_prefix", "sessions", "agents")

    def generate(self, seed: int) -> Iterator[SimulatedRequest]:
        """The same requests for the same seed; made as they are asked for."""
        rng = random.Random(f"workload {seed}")
        return KINDS[self.kind](self, rng)

    @property
    def most_tokens(self) -> int:
        return self.max_tokens or self.output.most


_HEAVY: dict[str, object] = {
    "prompt": Lengths("pareto", (200.0, 1.3), 16_000),
    "output": Lengths("pareto", (60.0, 1.3), 4000),
}
_AGENTS: dict[str, object] = {
    "turns": 8.0,
    "think": 2.0,
    "prefixes": 4,
    "prefix": 2000,
    "prompt": Lengths("lognormal", (400.0, 1.0), 8000),
    "output": Lengths("lognormal", (80.0, 0.6), 1000),
}


_LONGEST = {"prompt": 16_000, "output": 4096}  # tokens, where the distribution has no end of its own


def _option(name: str, value: str, kind: str) -> object:
    if "Lengths" in kind:
        lengths = Lengths.parse(value, _LONGEST[name])
        return replace(lengths, most=max(lengths.most, round(lengths.parameters[0])))
    try:
        return int(value) if "int" in kind else float(value)
    except ValueError:
        raise BadInput(f"workload: {name} is {value!r}, which is not a number", param="workload") from None


# -- recorded ------------------------------------------------------------------------------------------


def from_rows(rows: Sequence[TraceRow], max_tokens: int | None = None) -> list[SimulatedRequest]:
    """A recorded trace as requests. Prompt blocks it names are shared; sessions share nothing unless it does.

    `max_tokens`: what clients allow; None: the row's own, else the longest output of the trace, rounded up to
    a power of two, since no request's own length may be given away.
    """
    longest = max(row.output_tokens for row in rows)
    allowed = max_tokens or 1 << (longest - 1).bit_length()
    names = count(1)
    requests = []
    for number, row in enumerate(rows):
        most = max(row.max_tokens or allowed, row.output_tokens)
        requests.append(
            SimulatedRequest(
                id=f"r{number}",
                at=row.at,
                prompt=_spans(row, names),
                output_tokens=row.output_tokens,
                max_tokens=most,
                answer=next(names),
                tenant=row.tenant,
                priority=row.priority,
                deadline=row.deadline,
                session=row.session,
            )
        )
    return requests


def _spans(row: TraceRow, names: Iterator[int]) -> tuple[Span, ...]:
    """The blocks it names, as far as the prompt goes, and a span of its own for what is beyond them."""
    spans, left = [], row.prompt_tokens
    for block in row.blocks:
        length = min(row.block_tokens, left)
        if length <= 0:
            break
        spans.append(Span(_TRACE_BLOCKS + block, length))
        left -= length
    if left > 0:
        spans.append(Span(next(names), left))
    return tuple(spans)


# -- synthetic -----------------------------------------------------------------------------------------

Generate = Callable[[Synthetic, random.Random], Iterator[SimulatedRequest]]


def _plain(spec: Synthetic, rng: random.Random) -> Iterator[SimulatedRequest]:
    names = count(1)
    arrival = "poisson" if spec.kind == "heavy_tail" else spec.kind
    for number, at in enumerate(_times(spec, arrival, rng, spec.requests, spec.rate)):
        prompt = (Span(next(names), spec.prompt.draw(rng)),)
        yield _request(spec, rng, f"r{number}", at, prompt, next(names), _tenant(spec, rng))


def _shared_prefix(spec: Synthetic, rng: random.Random) -> Iterator[SimulatedRequest]:
    names = count(1 + spec.prefixes)
    popularity = [1.0 / rank for rank in range(1, spec.prefixes + 1)]
    for number, at in enumerate(_times(spec, "poisson", rng, spec.requests, spec.rate)):
        group = rng.choices(range(1, spec.prefixes + 1), popularity)[0]
        prompt = (*_prefix(spec, group), Span(next(names), spec.prompt.draw(rng)))
        yield _request(spec, rng, f"r{number}", at, prompt, next(names), _tenant(spec, rng))


def _sessions(spec: Synthetic, rng: random.Random) -> Iterator[SimulatedRequest]:
    """Whole conversations arrive; each turn follows the one before, so when it comes depends on the fleet."""
    names = count(1 + spec.prefixes)
    number = 0
    for session, at in enumerate(_times(spec, "poisson", rng, spec.requests, spec.rate / spec.turns)):
        context: tuple[Span, ...] = ()
        if spec.kind == "agents":
            context = _prefix(spec, 1 + int(rng.random() * spec.prefixes))
        tenant, previous = _tenant(spec, rng), None
        for _ in range(_turns(spec, rng)):
            if number >= spec.requests:
                return
            prompt = (*context, Span(next(names), spec.prompt.draw(rng)))
            if previous is not None and sum(span.length for span in prompt) > spec.context:
                break
            request = _request(spec, rng, f"r{number}", at, prompt, next(names), tenant)
            think = rng.expovariate(1.0 / spec.think) if spec.think else 0.0
            request = replace(request, session=f"s{session}", follows=previous, think=think)
            yield request
            context, previous = answered(request), request.id
            number += 1


def _turns(spec: Synthetic, rng: random.Random) -> int:
    """Geometric with mean `turns`."""
    turns = 1
    while rng.random() < 1.0 - 1.0 / spec.turns:
        turns += 1
    return turns


def _prefix(spec: Synthetic, group: int) -> tuple[Span, ...]:
    return (Span(group, spec.prefix),) if spec.prefix else ()


def _tenant(spec: Synthetic, rng: random.Random) -> str:
    return "default" if spec.tenants == 1 else f"t{int(rng.random() * spec.tenants)}"


def _times(spec: Synthetic, arrival: str, rng: random.Random, number: int, rate: float) -> Iterator[float]:
    now = 0.0
    steps = gaps(arrival, rng, rate, spec.cv, spec.burst)
    for _ in range(number):
        now += next(steps)
        yield now


def _request(
    spec: Synthetic,
    rng: random.Random,
    name: str,
    at: float,
    prompt: tuple[Span, ...],
    answer: int,
    tenant: str,
) -> SimulatedRequest:
    most = spec.most_tokens
    output = min(spec.output.draw(rng), most)
    return SimulatedRequest(name, at, prompt, output, most, answer, tenant)


KINDS: dict[str, Generate] = {
    **dict.fromkeys(ARRIVALS, _plain),
    "heavy_tail": _plain,
    "shared_prefix": _shared_prefix,
    "sessions": _sessions,
    "agents": _sessions,
}
