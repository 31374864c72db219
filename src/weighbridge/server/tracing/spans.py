"""A request that was served as spans: made of its ticket once all is over, by the conventions for generative AI.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/ and .../http/http-spans/. Nothing that a client or a
model wrote is in them: neither prompts and answers nor errors in words, which may quote both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from weighbridge.server.tracing.otlp import SpanKind, TraceSpan, Value
from weighbridge.ticket import Leg, Ticket
from weighbridge.ticket.record import between
from weighbridge.ticket.trace import SentCall, Trace

#: `gen_ai.operation.name` by what is computed.
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
#: Who computes at a server of ours, as `gen_ai.provider.name`.
OWN = "weighbridge"
#: Client errors are no failures of a server.
_SERVER_ERRORS, _ERRORS = 500, 400


@dataclass(slots=True, eq=False)
class Served:
    """A request that a door has answered. `route`: the door's path; `status`: HTTP's; `by_engine`: computed here.

    `ended`: seconds since the epoch. `address`, `port`: where it was asked.
    """

    trace: Trace
    route: str
    status: int
    ended: float
    by_engine: bool
    scheme: str = "http"
    address: str = ""
    port: int | None = None

    @property
    def is_settled(self) -> bool:
        """Whether all of its tickets are."""
        return all(ticket.finished is not None for ticket in self.trace.tickets)


def spans_of(served: Served) -> list[TraceSpan]:
    """The span of the request first, then those below it."""
    spans = [_request(served)]
    for ticket in served.trace.tickets:
        spans += _computed(served, ticket) if served.by_engine else _passed(served, ticket)
    return spans


def _request(served: Served) -> TraceSpan:
    trace, tickets = served.trace, served.trace.tickets
    told: dict[str, Value] = {
        "http.request.method": "POST",
        "http.route": served.route,
        "url.path": served.route,
        "url.scheme": served.scheme,
        "http.response.status_code": served.status,
        **_place(served.address, served.port),
    }
    failed = served.status >= _SERVER_ERRORS or any(one.finish_reason == "error" for one in tickets)
    if failed:
        told["error.type"] = str(served.status) if served.status >= _SERVER_ERRORS else "broken_off"
    if tickets:
        told |= _decided(tickets[0])
    return TraceSpan(
        trace.span, f"POST {served.route}", SpanKind.SERVER, trace.began, served.ended, told, failed=failed
    )


def _decided(ticket: Ticket) -> dict[str, Value]:
    """What a ticket says of the request as a whole."""
    told: dict[str, Value] = {
        "weighbridge.ticket": ticket.id,
        "weighbridge.tenant": _clean(ticket.tenant),
        "weighbridge.model": _clean(ticket.model),
        "weighbridge.priority": ticket.priority,
        "weighbridge.placement": ticket.placement,
    }
    if ticket.finish_reason is not None:
        told["weighbridge.outcome"] = ticket.finish_reason
    if ticket.weighed_tokens is not None:
        told["weighbridge.weighed_tokens"] = ticket.weighed_tokens
    if ticket.cost_usd:
        told["weighbridge.cost_usd"] = float(ticket.cost_usd)
    for name, value in (("confidence", ticket.confidence), ("difficulty", ticket.score)):
        if value is not None:
            told[f"weighbridge.{name}"] = float(value)
    return told


# -- at an engine ------------------------------------------------------------------------------------------


def _computed(served: Served, ticket: Ticket) -> Iterator[TraceSpan]:
    """What an engine did for one prompt: it waited, its prompt was computed, then its answer."""
    end = served.ended if ticket.finished is None else ticket.finished
    name = served.trace.span.child()
    told = {**_asked(served.trace, ticket.model, OWN, ticket), **_used(ticket, ticket.finish_reason)}
    told["weighbridge.steps"] = ticket.steps
    if ticket.preemptions:
        told["weighbridge.preemptions"] = ticket.preemptions
    if ticket.first_token is not None and served.trace.streams:
        told["gen_ai.response.time_to_first_chunk"] = between(ticket.arrived, ticket.first_token)
    failed = ticket.finish_reason == "error"
    if failed:
        told["error.type"] = "error"
    yield TraceSpan(
        name, _title(served.trace, ticket.model), SpanKind.INTERNAL, ticket.arrived, end, told, failed=failed
    )
    began = end if ticket.scheduled is None else ticket.scheduled
    yield TraceSpan(name.child(), "queue", SpanKind.INTERNAL, ticket.arrived, began)
    if ticket.scheduled is None:
        return
    first = end if ticket.first_token is None else ticket.first_token
    yield TraceSpan(name.child(), "prefill", SpanKind.INTERNAL, began, first)
    if ticket.first_token is not None:
        yield TraceSpan(name.child(), "decode", SpanKind.INTERNAL, first, end)


# -- at a gateway ------------------------------------------------------------------------------------------


def _passed(served: Served, ticket: Ticket) -> Iterator[TraceSpan]:
    """What a gateway did: it waited for a place, then called replicas, for each leg of a route."""
    trace = served.trace
    parts: dict[str, Leg | Ticket] = {trace.span.span_id: ticket}
    if not ticket.legs:
        yield _waited(trace, ticket, served.ended)
    for leg in ticket.legs:
        if leg.span_id:
            parts[leg.span_id] = leg
            yield from _leg(served, leg)
    last = {call.span.parent_id: call for call in trace.calls if _is_answer(call)}
    for call in trace.calls:
        part = parts.get(call.span.parent_id)
        yield _called(served, call, part if last.get(call.span.parent_id) is call else None)


def _waited(trace: Trace, ticket: Ticket, ended: float) -> TraceSpan:
    until = ticket.scheduled or ticket.finished or ended
    return TraceSpan(trace.span.child(), "queue", SpanKind.INTERNAL, ticket.arrived, until)


def _leg(served: Served, leg: Leg) -> Iterator[TraceSpan]:
    own, from_ = served.trace.span, leg.arrived or served.trace.began
    name = replace(own, span_id=leg.span_id, parent_id=own.span_id)
    told: dict[str, Value] = {
        "weighbridge.place": leg.place,
        "weighbridge.placement": leg.placement,
        "weighbridge.purpose": leg.purpose,
        "weighbridge.model": leg.model,
        "weighbridge.outcome": leg.outcome or "",
    }
    failed = leg.outcome in ("error", "refused")
    if failed:
        told["error.type"] = str(leg.outcome)
    end = served.ended if leg.finished is None else leg.finished
    yield TraceSpan(name, f"leg {leg.place}", SpanKind.INTERNAL, from_, end, told, failed=failed)
    if leg.scheduled is not None:
        yield TraceSpan(name.child(), "queue", SpanKind.INTERNAL, from_, leg.scheduled)


def _is_answer(call: SentCall) -> bool:
    return call.status is not None and call.status < _ERRORS and not call.error


def _called(served: Served, call: SentCall, part: Leg | Ticket | None) -> TraceSpan:
    """A call to a replica. `part`: the leg, or the request, whose answer it brought; None: it brought none."""
    trace = served.trace
    ticket = trace.tickets[0]
    told = {
        **_asked(trace, call.model, call.to.provider, ticket),
        **_place(call.to.address, call.to.port),
        "weighbridge.replica": _clean(call.to.replica),
        "weighbridge.try": call.number,
    }
    if call.status is not None:
        told["http.response.status_code"] = call.status
    if call.first is not None and trace.streams:
        told["gen_ai.response.time_to_first_chunk"] = max(call.first - call.began, 0.0)
    error = call.error or (str(call.status) if (call.status or 0) >= _ERRORS else "")
    if error:
        told["error.type"] = error
    if part is not None:
        told |= _used(part, part.finish_reason if isinstance(part, Ticket) else part.outcome)
        usd = part.cost_usd if isinstance(part, Ticket) else part.usd
        if usd:
            told["weighbridge.cost_usd"] = float(usd)
    end = served.ended if call.ended is None else call.ended
    failed = bool(error) and error != "cancelled"
    return TraceSpan(
        call.span, _title(trace, call.model), SpanKind.CLIENT, call.began, end, told, failed=failed
    )


# -- words that are shared ---------------------------------------------------------------------------------


def _operation(trace: Trace) -> str:
    return OPERATIONS.get(trace.path, trace.path.rpartition("/")[2] or "chat")


def _title(trace: Trace, model: str) -> str:
    return f"{_operation(trace)} {_clean(model)}".rstrip()


def _asked(trace: Trace, model: str, provider: str, ticket: Ticket) -> dict[str, Value]:
    told: dict[str, Value] = {
        "gen_ai.operation.name": _operation(trace),
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": _clean(model),
        "gen_ai.request.max_tokens": ticket.max_tokens,
        "gen_ai.request.stream": trace.streams,
    }
    if ticket.choices != 1:
        told["gen_ai.request.choice.count"] = ticket.choices
    return told


def _used(part: Leg | Ticket, outcome: str | None) -> dict[str, Value]:
    told: dict[str, Value] = {
        "gen_ai.response.model": _clean(part.model),
        "gen_ai.usage.input_tokens": part.prompt_tokens,
        "gen_ai.usage.output_tokens": part.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": part.cached_tokens,
    }
    if outcome is not None:
        told["gen_ai.response.finish_reasons"] = (outcome,)
    return told


def _place(address: str, port: int | None) -> dict[str, Value]:
    told: dict[str, Value] = {"server.address": address} if address else {}
    if address and port is not None:
        told["server.port"] = port
    return told


def _clean(text: str) -> str:
    """A name as UTF-8 can write it."""
    return text.encode("utf-8", "replace").decode()
