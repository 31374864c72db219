"""What a server is and can, found out by asking it; and the entry of weighbridge.yaml that says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import msgspec
import yaml

from weighbridge.errors import WeighbridgeError
from weighbridge.fleet.abilities.ability import ENDPOINTS, Ability, Needs
from weighbridge.fleet.abilities.refusal import RefusalKind, read_refusal
from weighbridge.fleet.abilities.told import KNOWN_OF, NOTHING_TOLD, Told, is_named
from weighbridge.fleet.api import Report
from weighbridge.fleet.load.dialects import DIALECTS, dialect
from weighbridge.fleet.replica import ReplicaError
from weighbridge.fleet.replicas.http import HttpEndpoint, HttpReplica

#: Clouds, by the end of their hosts' names.
_HOSTS = {
    "generativelanguage.googleapis.com": "gemini",
    "api.anthropic.com": "anthropic",
    ".openai.azure.com": "azure",
    ".cognitiveservices.azure.com": "azure",
}
#: A page that only one kind of server has, and what must be in it.
_SIGNS: tuple[tuple[str, str, Callable[[Mapping[str, Any]], bool]], ...] = (
    ("weighbridge", "/v1/load", lambda page: "queued_requests" in page),
    ("llama-server", "/props", lambda page: "default_generation_settings" in page),
    ("sglang", "/model_info", lambda page: "is_generation" in page),
    ("sglang", "/get_model_info", lambda page: "is_generation" in page),  # of older ones
    ("ollama", "/api/tags", lambda page: isinstance(page.get("models"), list)),
    ("tgi", "/info", lambda page: "model_id" in page),
)
#: What servers call themselves as owners of their models.
_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama-server", "weighbridge": "weighbridge"}

_SAY = [{"role": "user", "content": "Say A."}]
_TOOL = {
    "type": "function",
    "function": {"name": "weigh", "parameters": {"type": "object", "properties": {}}},
}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
#: Requests that cost a token or a few, by the ability that they try.
_TRIALS: Mapping[Ability, tuple[str, dict[str, Any]]] = {
    Ability.CHAT: ("/v1/chat/completions", {"messages": _SAY, "max_tokens": 1}),
    Ability.COMPLETIONS: ("/v1/completions", {"prompt": "A", "max_tokens": 1}),
    Ability.EMBEDDINGS: ("/v1/embeddings", {"input": "A"}),
    Ability.TOOLS: ("/v1/chat/completions", {"messages": _SAY, "max_tokens": 1, "tools": [_TOOL]}),
    Ability.SCHEMA: (
        "/v1/chat/completions",
        {
            "messages": _SAY,
            "max_tokens": 1,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}},
        },
    ),
    Ability.LOGPROBS: ("/v1/chat/completions", {"messages": _SAY, "max_tokens": 1, "logprobs": True}),
}
#: Of these an answer proves nothing: the wish may have been left out without a word.
_SILENT = frozenset({Ability.TOOLS, Ability.SCHEMA})


@dataclass(frozen=True, slots=True)
class ProbedServer:
    """What was found. `tried`: what requests showed that no page tells. `needs_key`: it refused to say more."""

    url: str
    dialect: str
    model: str
    told: Told = NOTHING_TOLD
    report: Report | None = None
    load_page: str = ""
    tried: Mapping[Ability, bool] = field(default_factory=dict)
    needs_key: bool = False
    notes: tuple[str, ...] = ()

    @property
    def abilities(self) -> dict[Ability, bool]:
        return {**KNOWN_OF.get(self.dialect, {}), **self.told.can, **self.tried}

    @property
    def is_unknown(self) -> bool:
        """Whether nothing says that it is a server of models at all; one that asks for a key may be."""
        return not (self.needs_key or self.told.models or self.report is not None or self.abilities)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        report = self.report
        load = None
        if report is not None:
            load = {
                "page": self.load_page,
                "running_requests": report.running_requests,
                "queued_requests": report.queued_requests,
                "kv_tokens_used": report.kv_tokens_used,
                "kv_tokens_total": report.kv_tokens_total,
            }
        return {
            "url": self.url,
            "dialect": self.dialect,
            "version": self.told.version,
            "model": self.model,
            "models": list(self.told.models),
            "context": self.told.context,
            "seats": self.told.seats,
            "abilities": {one.value: has for one, has in sorted(self.abilities.items())},
            "load": load,
            "needs_key": self.needs_key,
            "notes": list(self.notes),
            "configuration": self.configuration(),
        }

    @property
    def served_as(self) -> str:
        """A name for its model that clients can say."""
        return _short(self.model) or "my-model"

    def configuration(self) -> str:
        """The part of weighbridge.yaml that this server needs."""
        models = {self.served_as: {"replicas": [self.entry()]}}
        return str(yaml.safe_dump({"models": models}, sort_keys=False, width=120))

    def entry(self) -> dict[str, Any]:
        """The replica that this server is, as weighbridge.yaml says it."""
        entry: dict[str, Any] = {"url": self.url, "dialect": self.dialect}
        if self.model and self.model != self.served_as:
            entry["model"] = self.model
        if self.needs_key:
            entry["key_env"] = "MY_API_KEY"
        untold = {one.value: has for one, has in self.tried.items() if one not in self.told.can}
        if untold:
            entry["abilities"] = untold
        return entry


async def probe_server(endpoint: HttpEndpoint, wanted: str = "", *, trial: bool = False) -> ProbedServer:
    """Ask a server what it is. `wanted`: the model to look at; `trial`: send it requests too, of a token or a few.

    `endpoint.dialect` is a guess that is tried first. Raises WeighbridgeError when nothing answers.
    """
    kind, needs_key = await _kind_of(endpoint)
    speaks = dialect(kind)
    endpoint = replace(endpoint, dialect=speaks, model=wanted, prefix=speaks.prefix)
    replica = HttpReplica("the server", endpoint)
    try:
        report = await _report(replica)
        told = report.told if report is not None and report.told is not None else NOTHING_TOLD
        model = wanted or next(iter(told.models), "")
        if model != wanted:  # some pages are asked by the name of a model
            await replica.close()
            replica = HttpReplica("the server", replace(endpoint, model=model))
            report = await _report(replica)
            told = report.told if report is not None and report.told is not None else told
        tried = await _tried(replica, model, told) if trial and model else {}
        page = replica.load_page
    finally:
        await replica.close()
    notes = _notes(kind, page, told, wanted, report, needs_key)
    return ProbedServer(endpoint.base, kind, model, told, report, page, tried, needs_key, notes)


async def _report(replica: HttpReplica) -> Report | None:
    try:
        return await replica.probe()
    except ReplicaError:
        return None


async def _kind_of(endpoint: HttpEndpoint) -> tuple[str, bool]:
    """The dialect, and whether it asks for a key that it was not given. Raises WeighbridgeError for silence."""
    host = urlsplit(endpoint.base).hostname or ""
    cloud = next((kind for end, kind in _HOSTS.items() if host.endswith(end)), None)
    replica, statuses = HttpReplica("the server", endpoint), []
    try:
        if cloud is not None:
            status, _ = await replica.page(DIALECTS[cloud].prefix + "/models")
            return cloud, status in (401, 403)
        for kind, path, is_sign in _SIGNS:
            status, body = await replica.page(path)
            statuses.append(status)
            page = _object(body)
            if status == 200 and page is not None and is_sign(page):
                return kind, False
        status, body = await replica.page("/v1/models")
        statuses.append(status)
        listed = _object(body) or {}
        owners = [str(one.get("owned_by", "")) for one in listed.get("data", ()) if isinstance(one, dict)]
        kind = next((_OWNERS[owner] for owner in owners if owner in _OWNERS), "openai")
        return kind, status in (401, 403)
    except ReplicaError as error:
        raise WeighbridgeError(f"nothing answers at {endpoint.base}: {error}") from error
    finally:
        await replica.close()


def _object(body: bytes) -> Mapping[str, Any] | None:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


async def _tried(replica: HttpReplica, model: str, told: Told) -> dict[Ability, bool]:
    """What a request for each shows, of what no page tells."""
    found: dict[Ability, bool] = {}
    for ability, (path, body) in _TRIALS.items():
        if ability in told.can or (ability not in ENDPOINTS.values() and found.get(Ability.CHAT) is False):
            continue
        call = msgspec.json.encode({"model": model, **body})
        try:
            status, answer = await replica.page(replica.endpoint.path(path), call)
        except ReplicaError:
            continue
        has = _shown(ability, path, status, answer)
        if has is not None:
            found[ability] = has
    return found


def _shown(ability: Ability, path: str, status: int, body: bytes) -> bool | None:
    """What an answer to a trial says; None: nothing."""
    if status == 200:
        return None if ability in _SILENT else True
    needs: Needs = frozenset({ability})
    refusal = read_refusal(status, body, path, needs)
    if refusal is None or refusal.kind is RefusalKind.MODEL:
        return None
    return False if refusal.lacks & needs or refusal.kind is RefusalKind.UNCLEAR else None


def _notes(
    kind: str, page: str, told: Told, wanted: str, report: Report | None, needs_key: bool
) -> tuple[str, ...]:
    """What an operator should know beyond the figures."""
    speaks, notes = DIALECTS[kind], []
    if needs_key:
        notes.append("it asks for a key: give one with --key")
    elif report is None:
        notes.append(f"it does not answer at {page}: it is still starting, or no {kind} server")
    elif page != speaks.path:
        notes.append(
            f"it has no {speaks.path}, so {page} is read; start it with {speaks.hint} to have its load told"
        )
    if wanted and told.models and not is_named(wanted, told.models):
        notes.append(f"it does not list {wanted!r}")
    if not speaks.reports_requests and report is not None:
        notes.append("it tells nothing of its load: only what is sent through the gateway is known")
    return tuple(notes)


def _short(model: str) -> str:
    """A name that clients can say, for a path or an id with its owner: `/models/Qwen3-8B.gguf` is `qwen3-8b`."""
    last = re.split(r"[/\\]", model.removesuffix(".gguf"))[-1].removesuffix(":latest")
    return re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-.")
