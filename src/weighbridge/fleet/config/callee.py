"""What a replica is to a distributed trace: its name there, and whether it may be told of the trace at all."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from weighbridge.fleet.config.spec import STARTED_HERE, ReplicaSpec
from weighbridge.ticket.span import TRACE_HEADERS
from weighbridge.ticket.trace import Callee
from weighbridge.wire.identity.access import is_this_machine

#: What a client wrote down beside the trace that a request belongs to.
BAGGAGE = "baggage"
_TRAVEL = TRACE_HEADERS | {BAGGAGE}
#: Servers that people run themselves.
ENGINES = frozenset({"weighbridge", "vllm", "sglang", "llama-server", "ollama", "tgi"})
#: Well-known names of `gen_ai.provider.name`; a server of another kind goes by its own.
_PROVIDERS = {"gemini": "gcp.gemini", "azure": "azure.ai.openai"}
USUAL_PORTS = {"http": 80, "https": 443}


def callee_of(spec: ReplicaSpec) -> Callee:
    """A replica as the spans of its calls name it."""
    provider = _PROVIDERS.get(spec.dialect, spec.dialect)
    if spec.kind in STARTED_HERE:
        return Callee(spec.name, provider)
    parts = urlsplit(spec.target)
    return Callee(spec.name, provider, parts.hostname or "", parts.port or USUAL_PORTS.get(parts.scheme))


def is_own(spec: ReplicaSpec) -> bool:
    """Whether a replica is an engine of ours, as far as its entry tells: started here, on this machine, or an engine
    that people run themselves."""
    if spec.kind in STARTED_HERE or spec.dialect in ENGINES:
        return True
    return is_this_machine(urlsplit(spec.target).hostname or "")


def may_trace(spec: ReplicaSpec, *, anonymous: bool) -> bool:
    """Whether a replica is told of the trace. `anonymous`: it is not to learn whose the request is."""
    return spec.traces if spec.traces is not None else is_own(spec) and not anonymous


def passed_on(spec: ReplicaSpec, headers: Mapping[str, str], *, anonymous: bool) -> Mapping[str, str]:
    """What of a client's headers goes on to a replica; its baggage only to an engine of ours."""
    if _TRAVEL.isdisjoint(headers):
        return headers
    left = set() if may_trace(spec, anonymous=anonymous) else set(TRACE_HEADERS)
    if anonymous or not is_own(spec):
        left.add(BAGGAGE)
    if left.isdisjoint(headers):
        return headers
    return {name: value for name, value in headers.items() if name not in left}
