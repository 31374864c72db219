"""How different servers tell their load: Weighbridge, vLLM, SGLang, llama-server, Ollama, TGI, clouds, any OpenAI API.

A dialect knows which page to ask and how to read it, and which to ask where a server was started without that one. What
a server does not tell stays unknown, and the fleet's own account of what it sent stands in for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from weighbridge.cost.step import StepCost
from weighbridge.errors import BadInput
from weighbridge.fleet.api import Report

#: No replica has more requests or tokens, and no part of a step cost is less or more: with such numbers sums and
#: quotients that all replicas share would leave the numbers there are.
MOST_COUNT, LEAST_COST, MOST_COST = 1 << 48, 1e-20, 1e9
#: Experts of one layer: each is looked at for every prediction.
MOST_EXPERTS = 2048

#: One sample of Prometheus' text format: name, labels, value. It ends with its line: where it looked on for the end of
#: labels, a page of lines that open some took the square of its length.
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[^}\n]*\})?[ \t]+([^\s]+)", re.MULTILINE)
_BLOCK_SIZE = re.compile(r'block_size="(\d+)"')
#: OpenAI's o1, o3, o4-mini, gpt-5 and the like, also behind an owner's name and tuned.
_REASONERS = re.compile(r"(?:.*/)?(?:ft:)?(?:o[1-9]|gpt-5)(?![0-9a-z])")
_BLOCKS = re.compile(r'num_gpu_blocks="(\d+)"')


#: A page of load and the time it came, into a report. Raises ValueError when the page is not what it knows.
ReadLoad = Callable[[bytes, float], Report]


@dataclass(frozen=True, slots=True)
class Dialect:
    """`read` turns the page at `path` into a report. `instead`: pages to ask where there is no such page, in order."""

    name: str
    path: str
    read: ReadLoad
    reports_requests: bool  # whether running and queued requests are among what it tells
    takes_salt: bool = False  # whether `cache_salt` keeps the prompts of two requests apart in its cache
    instead: tuple[tuple[str, ReadLoad], ...] = ()
    hint: str = ""  # what its server is to be started with, so that there is the first page
    checks_names: bool = False  # whether it refuses requests for a model that it does not list
    prefix: str = "/v1"  # what its paths begin with, in place of /v1
    key_header: str = ""  # where its key goes; empty: into Authorization, as a bearer token
    headers: tuple[tuple[str, str], ...] = ()  # what it wants with every request
    max_tokens_only: bool = False  # it does not know `max_completion_tokens`, the newer name of `max_tokens`
    speaks_messages: bool = False  # it answers Anthropic's Messages, and no chats
    reasoners: re.Pattern[str] | None = None  # models that refuse the older name: OpenAI's that think first


class Samples:
    """A page of Prometheus metrics. Samples of one name are added up over their labels (ranks, models)."""

    def __init__(self, page: bytes) -> None:
        self._sums: dict[str, float] = {}
        self._labels: dict[str, list[str]] = {}
        for found in _SAMPLE.finditer(page.decode("utf-8", "replace")):
            name, labels, value = found.groups("")
            try:
                number = float(value)
            except ValueError:
                continue
            if math.isfinite(number):
                self._sums[name] = self._sums.get(name, 0.0) + number
                self._labels.setdefault(name, []).append(labels)

    def count(self, *names: str) -> int | None:
        """The first of `names` that is there, never negative; None when none is."""
        value = self.value(*names)
        return None if value is None else max(round(value), 0)

    def value(self, *names: str) -> float | None:
        return next((self._sums[name] for name in names if name in self._sums), None)

    def labels(self, name: str) -> list[str]:
        """Of every sample of that name: of each rank of a server with data parallelism."""
        return self._labels.get(name, [])


def _weighbridge(page: bytes, at: float) -> Report:
    load = _object(page)
    size = int(load["block_size"])
    cost = load.get("step_cost")
    return Report(
        at=at,
        queued_requests=_natural(load, "queued_requests"),
        running_requests=_natural(load, "running_requests"),
        queued_tokens=_natural(load, "queued_tokens"),
        running_tokens=_natural(load, "running_tokens"),
        kv_tokens_used=_natural(load, "kv_blocks_used") * size,
        kv_tokens_total=_natural(load, "kv_blocks_total") * size,
        draining=bool(load.get("draining", False)),
        step_cost=_step_cost(cost) if cost else None,
        max_model_len=_natural(load, "max_model_len") if "max_model_len" in load else None,
        believes_tenants=_flag(load, "believes_tenants"),
    )


def _natural(load: dict[str, Any], name: str) -> int:
    """Return a count of load. A replica that says otherwise is not believed."""
    value = load[name]
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is {value!r}, which is no count")
    return value


def _flag(load: dict[str, Any], name: str) -> bool | None:
    value = load.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, which is neither true nor false")
    return value


def _step_cost(fields: dict[str, float]) -> StepCost:
    cost = StepCost(**{name: float(value) for name, value in fields.items()})
    if not all(value == 0.0 or LEAST_COST <= value <= MOST_COST for value in cost.as_dict().values()):
        raise ValueError("step_cost has a part that is negative or beyond all reason")
    if cost.experts > MOST_EXPERTS * max(cost.expert_layers, 1.0):
        raise ValueError(f"step_cost has more than {MOST_EXPERTS} experts a layer")
    return cost


def _vllm(page: bytes, at: float) -> Report:
    samples = Samples(page)
    running = samples.count("vllm:num_requests_running")
    if running is None:
        raise ValueError("there is no vllm:num_requests_running among its metrics")
    used = samples.value("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
    ranks = samples.labels("vllm:cache_config_info")
    pools = [
        int(size[1]) * int(blocks[1])
        for labels in ranks
        if (size := _BLOCK_SIZE.search(labels)) and (blocks := _BLOCKS.search(labels))
    ]
    total = sum(pools) or None
    return Report(
        at=at,
        queued_requests=samples.count("vllm:num_requests_waiting") or 0,
        running_requests=running,
        kv_tokens_used=round(used * total / len(pools)) if used is not None and total else None,
        kv_tokens_total=total,
    )


def _sglang(page: bytes, at: float) -> Report:
    samples = Samples(page)
    running = samples.count("sglang:num_running_reqs")
    if running is None:
        raise ValueError(
            "there is no sglang:num_running_reqs among its metrics; start it with --enable-metrics"
        )
    used, usage = samples.count("sglang:num_used_tokens"), samples.value("sglang:token_usage")
    total = samples.count("sglang:max_total_num_tokens")
    if total is None and used and usage:
        total = round(used / usage)
    if used is None and total and usage is not None:
        used = round(usage * total)
    return Report(
        at=at,
        queued_requests=samples.count("sglang:num_queue_reqs") or 0,
        running_requests=running,
        kv_tokens_used=used,
        kv_tokens_total=total,
    )


def _llama_server(page: bytes, at: float) -> Report:
    samples = Samples(page)
    running = samples.count("llamacpp:requests_processing")
    if running is None:
        raise ValueError(
            "there is no llamacpp:requests_processing among its metrics; start it with --metrics"
        )
    used, usage = samples.count("llamacpp:kv_cache_tokens"), samples.value("llamacpp:kv_cache_usage_ratio")
    return Report(
        at=at,
        queued_requests=samples.count("llamacpp:requests_deferred") or 0,
        running_requests=running,
        kv_tokens_used=used,
        kv_tokens_total=round(used / usage) if used and usage else None,
    )


def _llama_slots(page: bytes, at: float) -> Report:
    """`/slots` of llama-server: who works. Who waits for a slot is not told."""
    slots = msgspec.json.decode(page)
    if not isinstance(slots, list):
        raise ValueError("/slots is no list")
    return Report(at=at, running_requests=sum(bool(slot["is_processing"]) for slot in slots))


def _tgi(page: bytes, at: float) -> Report:
    samples = Samples(page)
    running = samples.count("tgi_batch_current_size")
    if running is None:
        raise ValueError("there is no tgi_batch_current_size among its metrics")
    return Report(at=at, queued_requests=samples.count("tgi_queue_size") or 0, running_requests=running)


def _answers(page: bytes, at: float) -> Report:
    """Return an empty report: the page is there, so the server is, but it says nothing of its load."""
    return Report(at=at)


def _object(page: bytes) -> dict[str, Any]:
    value = msgspec.json.decode(page)
    if not isinstance(value, dict):
        raise ValueError("it answers with JSON that is no object")
    return value


_LISTED: tuple[tuple[str, ReadLoad], ...] = (("/health", _answers), ("/v1/models", _answers))

DIALECTS = {
    one.name: one
    for one in (
        Dialect("weighbridge", "/v1/load", _weighbridge, True, takes_salt=True, checks_names=True),
        Dialect(
            "vllm",
            "/metrics",
            _vllm,
            True,
            takes_salt=True,
            instead=_LISTED,
            hint="its metrics",
            checks_names=True,
        ),
        Dialect(
            "sglang", "/metrics", _sglang, True, takes_salt=True, instead=_LISTED, hint="--enable-metrics"
        ),
        Dialect(
            "llama-server",
            "/metrics",
            _llama_server,
            True,
            instead=(("/slots", _llama_slots), *_LISTED),
            hint="--metrics",
        ),
        Dialect("ollama", "/api/ps", _answers, False, checks_names=True, max_tokens_only=True),
        Dialect("tgi", "/metrics", _tgi, True, instead=_LISTED, hint="its metrics", max_tokens_only=True),
        Dialect(
            "openai", "/v1/models", _answers, False, instead=(("/health", _answers),), reasoners=_REASONERS
        ),
        Dialect(
            "anthropic",
            "/v1/models",
            _answers,
            False,
            headers=(("anthropic-version", "2023-06-01"),),
            key_header="x-api-key",
            speaks_messages=True,
        ),
        Dialect("gemini", "/v1/models", _answers, False, prefix="/v1beta/openai"),
        Dialect(
            "azure",
            "/v1/models",
            _answers,
            False,
            prefix="/openai/v1",
            key_header="api-key",
            reasoners=_REASONERS,
        ),
    )
}


def dialect(name: str) -> Dialect:
    """Raises BadInput for a name that is not known."""
    try:
        return DIALECTS[name]
    except KeyError:
        known = ", ".join(DIALECTS)
        raise BadInput(f"dialect {name!r} is not known: use one of {known}", param="dialect") from None


#: What pages raise that are none of the kind.
_NO_REPORT = (KeyError, TypeError, AttributeError, OverflowError, RecursionError, msgspec.DecodeError)
_COUNTS = (
    "queued_requests",
    "running_requests",
    "queued_tokens",
    "running_tokens",
    "kv_tokens_used",
    "kv_tokens_total",
    "max_model_len",
)


def read_report(speaks: Dialect, page: bytes, at: float, read: ReadLoad | None = None) -> Report:
    """The report on a page, which `read` reads (None: the dialect). Raises ValueError with what is wrong with it."""
    try:
        report = (read or speaks.read)(page, at)
    except _NO_REPORT as error:
        raise ValueError(f"{speaks.path} is not what a {speaks.name} server answers ({error!r})") from error
    for name in _COUNTS:
        if not 0 <= (getattr(report, name) or 0) <= MOST_COUNT:
            raise ValueError(f"{name} is negative, or beyond all that a replica has")
    return report
