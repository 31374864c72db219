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
        """Read a workload. Raises BadInput naming the option that is wrong and those there are."""
        kind, _, rest = text.strip().partition(":")
        values: dict[str, object] = {"kind": kind}
        types = {option.name: option.type for option in fields(Synthetic)}
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
        """Yield the same requests for the same seed, made as they are asked for."""
        rng = random.Random(f"workload {seed}")
        return KINDS[self.kind](self, rng)

    @property
    def allowed_tokens(self) -> int:
        return self.max_tokens or self.output.max_tokens


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
        return replace(lengths, max_tokens=max(lengths.max_tokens, round(lengths.parameters[0])))
    try:
        return int(value) if "int" in kind else float(value)
    except ValueError:
        raise BadInput(f"workload: {name} is {value!r}, which is not a number", param="workload") from None


# -- recorded ------------------------------------------------------------------------------------------


def from_rows(rows: Sequence[TraceRow], max_tokens: int | None = None) -> list[SimulatedRequest]:
    """Return a trace as requests. Prompt blocks that it names are shared; sessions share nothing unless they do.

    `max_tokens`: what clients allow; None: the row's own, else the longest output of the trace, rounded up to
    a power of two, since no request's own length may be given away.
    """
    longest = max(row.output_tokens for row in rows)
    allowed = max_tokens or 1 << (longest - 1).bit_length()
    names = count(1)
    requests = []
    for number, row in enumerate(rows):
        requests.append(
            SimulatedRequest(
                id=f"r{number}",
                at=row.at,
                prompt=_spans(row, names),
                output_tokens=row.output_tokens,
                max_tokens=max(row.max_tokens or allowed, row.output_tokens),
                answer=next(names),
                tenant=row.tenant,
                priority=row.priority,
                deadline=row.deadline,
                session=row.session,
            )
        )
    return requests


def _spans(row: TraceRow, names: Iterator[int]) -> tuple[Span, ...]:
    """Return the blocks that a row names, as far as its prompt goes, and a span of its own for the rest."""
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


class _Maker:
    """Makes the requests of a synthetic workload, numbered as they come; the randomness is passed in."""

    def __init__(self, spec: Synthetic, rng: random.Random, prefixes: int = 0) -> None:
        self.number = 0
        self._spec, self._rng = spec, rng
        self._names = count(1 + prefixes)  # of spans; shared prefixes have the first ones

    def prompt(self, before: tuple[Span, ...] = ()) -> tuple[Span, ...]:
        """Return a prompt that nobody else has, behind `before`."""
        return (*before, Span(next(self._names), self._spec.prompt.draw(self._rng)))

    def request(self, at: float, prompt: tuple[Span, ...], tenant: str | None = None) -> SimulatedRequest:
        """Return the next request. `tenant` None: any."""
        answer = next(self._names)
        tenant = _tenant(self._spec, self._rng) if tenant is None else tenant
        allowed = self._spec.allowed_tokens
        output = min(self._spec.output.draw(self._rng), allowed)
        request = SimulatedRequest(f"r{self.number}", at, prompt, output, allowed, answer, tenant)
        self.number += 1
        return request


def _plain(spec: Synthetic, rng: random.Random) -> Iterator[SimulatedRequest]:
    make = _Maker(spec, rng)
    arrival = "poisson" if spec.kind == "heavy_tail" else spec.kind
    for at in _times(spec, arrival, rng, spec.requests, spec.rate):
        yield make.request(at, make.prompt())


def _shared_prefix(spec: Synthetic, rng: random.Random) -> Iterator[SimulatedRequest]:
    make = _Maker(spec, rng, spec.prefixes)
    popularity = [1.0 / rank for rank in range(1, spec.prefixes + 1)]
    for at in _times(spec, "poisson", rng, spec.requests, spec.rate):
        group = rng.choices(range(1, spec.prefixes + 1), popularity)[0]
        yield make.request(at, make.prompt(_prefix(spec, group)))


def _sessions(spec: Synthetic, rng: random.Random) -> Iterator[SimulatedRequest]:
    """Whole conversations arrive; each turn follows the one before, so when it comes depends on the fleet."""
    make = _Maker(spec, rng, spec.prefixes)
    for session, at in enumerate(_times(spec, "poisson", rng, spec.requests, spec.rate / spec.turns)):
        context: tuple[Span, ...] = ()
        if spec.kind == "agents":
            context = _prefix(spec, 1 + int(rng.random() * spec.prefixes))
        tenant, previous = _tenant(spec, rng), None
        for _ in range(_turns(spec, rng)):
            if make.number >= spec.requests:
                return
            prompt = make.prompt(context)
            if previous is not None and sum(span.length for span in prompt) > spec.context:
                break
            request = make.request(at, prompt, tenant)
            think = rng.expovariate(1.0 / spec.think) if spec.think else 0.0
            request = replace(request, session=f"s{session}", follows=previous, think=think)
            yield request
            context, previous = answered(request), request.id


def _turns(spec: Synthetic, rng: random.Random) -> int:
    """Draw a number of turns: geometric with mean `turns`."""
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


KINDS: dict[str, Generate] = {
    **dict.fromkeys(ARRIVALS, _plain),
    "heavy_tail": _plain,
    "shared_prefix": _shared_prefix,
    "sessions": _sessions,
    "agents": _sessions,
}
