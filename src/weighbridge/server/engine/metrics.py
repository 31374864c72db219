"""Prometheus metrics of the server and its engine. Label values are bounded: routes, statuses, reasons."""

from __future__ import annotations

import logging
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector

from weighbridge.engine.api import Engine, EngineStep
from weighbridge.server.engine.experts import ExpertCollector, telemetry_of
from weighbridge.server.watching.watchdog import stall_histogram
from weighbridge.ticket import Ticket, TicketStore
from weighbridge.ticket.record import between

log = logging.getLogger("weighbridge.requests")

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKENS = (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 32768)

_GAUGES = {
    "queued_requests": "Requests waiting",
    "running_requests": "Requests in the batch",
    "queued_tokens": "Tokens of work waiting",
    "running_tokens": "Tokens of work left in the batch",
    "kv_blocks_used": "KV blocks that running requests hold",
    "kv_blocks_cached": "KV blocks kept for prefix hits",
    "kv_blocks_free": "KV blocks without content",
    "kv_blocks_total": "KV blocks in all",
}


class EngineMetrics:
    """Hears every iteration and every finished request; `exposition` is what `/metrics` answers."""

    def __init__(self, engine: Engine, tickets: TicketStore, json_logs: bool = False) -> None:
        self._engine = engine
        self.tickets = tickets
        self._json_logs = json_logs
        self.heard: list[Callable[[Ticket], None]] = []  # what else hears of finished requests
        self.stepped: list[Callable[[EngineStep], None]] = []  # and of iterations
        registry = self.registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"weighbridge_{name}", text, buckets=buckets, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"weighbridge_{name}", text, labels, registry=registry)

        self.time_to_first_token = histogram("time_to_first_token_seconds", "Arrival to first token")
        self.time_per_output_token = histogram(
            "time_per_output_token_seconds", "Mean gap of a request's tokens"
        )
        self.end_to_end = histogram("request_seconds", "Arrival to last token")
        self.queue_time = histogram("queue_seconds", "Arrival to first iteration")
        self.step_seconds = histogram("step_seconds", "One engine iteration")
        self.step_tokens = histogram("step_tokens", "Tokens computed by one iteration", _TOKENS)
        self.prompt_tokens = histogram("prompt_tokens", "Prompt tokens of a request", _TOKENS)
        self.output_tokens = histogram("output_tokens", "Output tokens of a request", _TOKENS)
        self.finished = counter("requests_finished", "Requests by how they ended", "reason")
        self.cached_tokens = counter("prefix_cache_hit_tokens", "Prompt tokens served from the prefix cache")
        self.computed_prompts = counter("prompt_tokens_seen", "Prompt tokens of finished requests")
        self.preemptions = counter("preemptions", "Times a request gave way and was computed again")
        self.drafted = counter("draft_tokens", "Tokens proposed by speculation")
        self.accepted = counter("accepted_draft_tokens", "Proposed tokens that were right")
        self.stalls = stall_histogram(registry)
        self._own_time = self.stalls.labels("engine")
        self.http_requests = counter("http_requests", "HTTP requests", "route", "status")
        experts = telemetry_of(engine)
        if experts is not None:
            registry.register(ExpertCollector(experts))
        self._token_bytes = Gauge(
            "weighbridge_kv_bytes_per_token",
            "Bytes of the KV cache that a token takes, by what keys and values are kept in",
            ["dtype"],
            registry=registry,
        )
        self._gauges = {
            name: Gauge(f"weighbridge_{name}", text, registry=registry) for name, text in _GAUGES.items()
        }

    def register(self, collector: Collector) -> None:
        """Tell of something else too."""
        self.registry.register(collector)

    def on_step(self, step: EngineStep) -> None:
        self.step_seconds.observe(step.seconds)
        self.step_tokens.observe(step.tokens)
        for stepped in self.stepped:
            stepped(step)

    def on_turn(self, seconds: float) -> None:
        self._own_time.observe(max(seconds, 0.0))

    def on_finished(self, ticket: Ticket) -> None:
        self.finished.labels(ticket.finish_reason or "unknown").inc()
        self.prompt_tokens.observe(ticket.prompt_tokens)
        self.output_tokens.observe(ticket.output_tokens)
        self.cached_tokens.inc(ticket.cached_tokens)
        self.computed_prompts.inc(ticket.prompt_tokens)
        self.preemptions.inc(ticket.preemptions)
        self.drafted.inc(ticket.drafted_tokens)
        self.accepted.inc(ticket.accepted_tokens)
        self._observe_times(ticket)
        self.tickets.finish(ticket)
        for heard in self.heard:
            heard(ticket)
        if self._json_logs:
            log.info("finished", extra={"ticket": ticket})

    def on_refused(self, ticket: Ticket) -> None:
        """Count a request that was never queued, and write it down: nothing was used, and no time was taken."""
        self.finished.labels("refused").inc()
        self.tickets.finish(ticket)

    def _observe_times(self, ticket: Ticket) -> None:
        if ticket.scheduled is not None:
            self.queue_time.observe(between(ticket.arrived, ticket.scheduled))
        if ticket.finished is None:
            return
        self.end_to_end.observe(between(ticket.arrived, ticket.finished))
        if ticket.first_token is not None:
            self.time_to_first_token.observe(between(ticket.arrived, ticket.first_token))
        gap = ticket.mean_gap()
        if gap is not None:
            self.time_per_output_token.observe(gap)

    def exposition(self) -> bytes:
        load = self._engine.load()
        for name, gauge in self._gauges.items():
            gauge.set(getattr(load, name))
        if load.kv_dtype:
            self._token_bytes.labels(load.kv_dtype).set(load.kv_bytes_per_token)
        page: bytes = generate_latest(self.registry)
        return page
