"""What each endpoint is for, what it is asked with and what it answers: one row an endpoint.

A test fails for an endpoint without a row, and for a row without an endpoint at any door.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weighbridge.fleet.limits.stated import LimitsAsked
from weighbridge.server.batch.records import CreateBatch
from weighbridge.server.console.assets import read_assets
from weighbridge.server.console.markdown import MarkdownText
from weighbridge.server.console.whatif import NamedPlan, WhatIfAsked
from weighbridge.server.decisions.requests import CalibrationRequest
from weighbridge.server.engine.adapters.endpoints import LoadAdapterRequest, UnloadAdapterRequest
from weighbridge.server.gateway.on_demand import ModelToMove
from weighbridge.server.gateway.tenants import NewKey
from weighbridge.server.openapi import answers
from weighbridge.wire.protocols.chat import ChatRequest
from weighbridge.wire.protocols.completions import CompletionRequest
from weighbridge.wire.protocols.decisions import DecisionRequest
from weighbridge.wire.protocols.embeddings import EmbeddingRequest
from weighbridge.wire.protocols.messages import CountRequest, MessagesRequest
from weighbridge.wire.protocols.ollama import (
    NamedModel,
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
)
from weighbridge.wire.protocols.responses import ResponsesRequest
from weighbridge.wire.protocols.scores import ClassifyRequest, RerankRequest, ScoreRequest
from weighbridge.wire.protocols.token_requests import DetokenizeRequest, TokenizeRequest

EVENTS, LINES, TEXT, HTML, BYTES = (
    *("text/event-stream", "application/x-ndjson", "text/plain", "text/html"),
    "application/octet-stream",
)
ASSETS = (HTML, "text/css", "text/javascript", "image/svg+xml")
_COUNT = {"type": "integer", "minimum": 1, "maximum": 100}
_ORDER = {"enum": ["asc", "desc"]}
_SEEN = {"type": "integer", "minimum": 0}
_DAY = {"type": "string", "format": "date"}
#: A name of a model in a path: those that are served.
SERVED: Mapping[str, Any] = {"type": "string"}
#: What every request for tokens leads to, by a header of its answer.
TICKET = "GET /v1/tickets/{ticket}"


@dataclass(frozen=True, slots=True)
class Operation:
    """One row. `form`: what is asked, where it is no JSON. `streams`: the type of body where the request asks for a
    stream; `texts`: those that are no JSON. `leads`: endpoints that take the id of what is answered, and `first_leads`
    that of the first of a list. `holes`: what stands in the path, where it is no id."""

    tag: str
    summary: str
    asks: type | None = None
    answers: type | None = None
    streams: str | None = None
    texts: tuple[str, ...] = ()
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    busy: bool = False  # 503 has the same shape as 200
    form: Mapping[str, Mapping[str, Any]] | None = None
    leads: tuple[str, ...] = ()
    first_leads: tuple[str, ...] = ()
    holes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_TICKETS: Mapping[str, Mapping[str, Any]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 1000},
    **{name: {"type": "string"} for name in ("tenant", "model", "replica", "outcome", "search")},
    "slower_ms": {"type": "number", "minimum": 0},
}


def _page(*more: str) -> dict[str, Mapping[str, Any]]:
    return {"limit": _COUNT, **{name: _ORDER if name == "order" else {"type": "string"} for name in more}}


_HEALTH = Operation("server", "Whether requests are taken now.", None, answers.HealthReport, busy=True)
_LIVE = Operation("server", "Whether this process answers.", None, answers.HealthReport)
_GONE = Operation("Ollama", "Refused: the files of a server are its operator's.", None, answers.Anything)
_LIMITS = Operation("administration", "Set a tenant's limits.", LimitsAsked, answers.Anything)
_REPLICA = Operation(
    "administration", "Change a replica; asks for the administrator's key.", None, answers.Anything
)

OPERATIONS: Mapping[str, Operation] = {
    "POST /v1/chat/completions": Operation(
        "OpenAI", "Answer a chat.", ChatRequest, answers.ChatCompletion, EVENTS
    ),
    "POST /v1/completions": Operation(
        "OpenAI", "Continue a prompt.", CompletionRequest, answers.TextCompletion, EVENTS
    ),
    "POST /v1/embeddings": Operation(
        "OpenAI", "Turn texts into vectors.", EmbeddingRequest, answers.EmbeddingList
    ),
    "POST /v1/score": Operation(
        "readers", "Say how texts stand to each other.", ScoreRequest, answers.ScoreList
    ),
    "POST /v1/rerank": Operation(
        "readers", "Put documents into order.", RerankRequest, answers.RankedDocuments
    ),
    "POST /v2/rerank": Operation(
        "readers", "The same, where Cohere's client asks.", RerankRequest, answers.RankedDocuments
    ),
    "POST /v1/classify": Operation("readers", "Give texts labels.", ClassifyRequest, answers.ScoreList),
    "POST /v1/decisions": Operation(
        "OpenAI",
        "Answer questions about an input with probabilities.",
        DecisionRequest,
        answers.DecisionObject,
    ),
    "POST /v1/decisions/calibrations": Operation(
        "OpenAI",
        "Calibrate the answers to a question by what came true.",
        CalibrationRequest,
        answers.Anything,
    ),
    "GET /v1/decisions/calibrations": Operation(
        "OpenAI", "What answers are calibrated by.", None, answers.Listing
    ),
    "DELETE /v1/decisions/calibrations/{name}": Operation(
        "OpenAI",
        "Forget a calibration.",
        None,
        answers.Deletion,
        query={"model": {"type": "string"}},
    ),
    "POST /v1/responses": Operation(
        "OpenAI",
        "Answer a chat as a response.",
        ResponsesRequest,
        answers.ResponseObject,
        EVENTS,
        leads=(
            "GET /v1/responses/{response}",
            "GET /v1/responses/{response}/input_items",
            "DELETE /v1/responses/{response}",
        ),
    ),
    "GET /v1/responses/{response}": Operation(
        "OpenAI",
        "A response that is kept; with stream=true its events behind starting_after.",
        None,
        answers.ResponseObject,
        EVENTS,
        query={"stream": {"type": "boolean"}, "starting_after": {"type": "integer", "minimum": 0}},
    ),
    "DELETE /v1/responses/{response}": Operation("OpenAI", "Forget a response.", None, answers.Deletion),
    "POST /v1/responses/{response}/cancel": Operation(
        "OpenAI", "End a response that is made in the background.", None, answers.ResponseObject
    ),
    "GET /v1/responses/{response}/input_items": Operation(
        "OpenAI", "What a response was asked.", None, answers.Listing, query=_page("after", "order")
    ),
    "POST /v1/responses/input_tokens": Operation(
        "OpenAI", "How many tokens a prompt has.", ResponsesRequest, answers.ResponseCount
    ),
    "GET /v1/models": Operation(
        "OpenAI",
        "The models that can be asked.",
        None,
        answers.Listing,
        first_leads=("GET /v1/models/{model}",),
    ),
    "GET /v1/models/{model}": Operation(
        "OpenAI", "One of them.", None, answers.ModelCard, holes={"model": SERVED}
    ),
    "POST /v1/models/load": Operation(
        "administration", "Load a model that is loaded on demand.", ModelToMove, answers.Anything
    ),
    "POST /v1/models/unload": Operation(
        "administration", "Unload one, once it has no work.", ModelToMove, answers.Anything
    ),
    "POST /v1/files": Operation(
        "batches",
        "Upload a file of requests.",
        None,
        answers.Anything,
        form={"purpose": {"enum": ["batch", "user_data"]}, "file": {"type": "string", "format": "binary"}},
        leads=("GET /v1/files/{file}", "DELETE /v1/files/{file}", "GET /v1/files/{file}/content"),
    ),
    "GET /v1/files": Operation(
        "batches",
        "Files that are here.",
        None,
        answers.Listing,
        query={
            **_page("after", "order", "purpose"),
            "limit": {"type": "integer", "minimum": 1, "maximum": 10_000},
        },
        first_leads=("GET /v1/files/{file}", "GET /v1/files/{file}/content", "DELETE /v1/files/{file}"),
    ),
    "GET /v1/files/{file}": Operation("batches", "One of them.", None, answers.Anything),
    "DELETE /v1/files/{file}": Operation("batches", "Delete a file.", None, answers.Deletion),
    "GET /v1/files/{file}/content": Operation("batches", "What is in a file.", texts=(BYTES,)),
    "POST /v1/batches": Operation(
        "batches",
        "Answer the requests of a file on what nobody else needs.",
        CreateBatch,
        answers.Anything,
        leads=("GET /v1/batches/{batch}", "POST /v1/batches/{batch}/cancel"),
    ),
    "GET /v1/batches": Operation(
        "batches",
        "Batches, the newest first.",
        None,
        answers.Listing,
        query=_page("after"),
        first_leads=("GET /v1/batches/{batch}",),
    ),
    "GET /v1/batches/{batch}": Operation("batches", "How far a batch is.", None, answers.Anything),
    "POST /v1/batches/{batch}/cancel": Operation(
        "batches", "Answer no more of a batch.", None, answers.Anything
    ),
    "POST /v1/messages": Operation(
        "Anthropic", "Answer a chat as a message.", MessagesRequest, answers.AnthropicMessage, EVENTS
    ),
    "POST /v1/messages/count_tokens": Operation(
        "Anthropic", "How many tokens a prompt has.", CountRequest, answers.AnthropicCount
    ),
    "POST /api/chat": Operation("Ollama", "Answer a chat.", OllamaChatRequest, answers.OllamaAnswer, LINES),
    "POST /api/generate": Operation(
        "Ollama", "Continue a prompt.", OllamaGenerateRequest, answers.OllamaAnswer, LINES
    ),
    "POST /api/embed": Operation(
        "Ollama", "Turn texts into vectors.", OllamaEmbedRequest, answers.OllamaVectors
    ),
    "POST /api/embeddings": Operation(
        "Ollama", "Turn a text into a vector.", OllamaEmbeddingsRequest, answers.OllamaVector
    ),
    "GET /api/tags": Operation("Ollama", "The models that can be asked.", None, answers.OllamaModels),
    "GET /api/ps": Operation("Ollama", "The models in memory: the same.", None, answers.OllamaModels),
    "GET /api/version": Operation("Ollama", "The version of Ollama's API.", None, answers.VersionReport),
    "POST /api/show": Operation("Ollama", "What a model is.", NamedModel, answers.Anything),
    "POST /api/pull": Operation(
        "Ollama", "Bring a model of the catalogue here.", NamedModel, answers.Anything, LINES
    ),
    "POST /api/create": _GONE,
    "POST /api/copy": _GONE,
    "POST /api/push": _GONE,
    "DELETE /api/delete": _GONE,
    "POST /tokenize": Operation("tokens", "A text or a chat as tokens.", TokenizeRequest, answers.TokenIds),
    "POST /detokenize": Operation("tokens", "Tokens as a text.", DetokenizeRequest, answers.PlainText),
    "GET /v1/streams/{stream}": Operation(
        "streams",
        "A stream that outlives its connection, behind the event that Last-Event-ID names.",
        texts=(EVENTS,),
    ),
    "DELETE /v1/streams/{stream}": Operation(
        "streams", "End and forget such a stream.", None, answers.Anything
    ),
    "GET /v1/usage": Operation(
        "figures",
        "What was used and what it cost.",
        None,
        answers.Anything,
        query={
            **{"from": _DAY, "to": _DAY, "by": {"enum": ["day", "month"]}},
            **{"tenant": {"type": "string"}, "model": {"type": "string"}},
        },
    ),
    "GET /v1/tickets": Operation(
        "figures",
        "What was decided about recent requests.",
        None,
        answers.Listing,
        query=_TICKETS,
        first_leads=(TICKET,),
    ),
    TICKET: Operation("figures", "What was decided about one, and why.", None, answers.Anything),
    "GET /v1/load": Operation("figures", "How busy it is, in tokens.", None, answers.LoadTold),
    "GET /metrics": Operation("figures", "For Prometheus.", texts=(TEXT,)),
    "GET /v1/experts": Operation("figures", "Which experts of a mixture are used.", None, answers.Anything),
    "POST /v1/experts/reset": Operation("administration", "Count experts anew.", None, answers.Anything),
    "POST /v1/load_lora_adapter": Operation(
        "administration", "Serve a LoRA adapter.", LoadAdapterRequest, answers.Anything
    ),
    "POST /v1/unload_lora_adapter": Operation(
        "administration",
        "Let a LoRA adapter go, once its requests are done.",
        UnloadAdapterRequest,
        answers.Anything,
        query={"timeout": {"type": "number", "minimum": 0}},
    ),
    "GET /admin/changes": Operation(
        "administration",
        "What was changed at run time, by whom and when.",
        None,
        answers.Listing,
        query=_page(),
    ),
    "POST /admin/reload": Operation(
        "administration",
        "Read the configuration again: replicas come, go and change.",
        None,
        answers.Anything,
    ),
    "GET /admin/replicas": Operation("administration", "All replicas of a gateway.", None, answers.Anything),
    "POST /admin/replicas": Operation("administration", "Add a replica.", None, answers.Anything),
    "DELETE /admin/replicas/{replica}": _REPLICA,
    "POST /admin/replicas/{replica}/drain": _REPLICA,
    "POST /admin/replicas/{replica}/undrain": _REPLICA,
    "GET /admin/tenants": Operation(
        "administration", "Tenants with their keys, limits and what they use.", None, answers.Listing
    ),
    "POST /admin/tenants/{tenant}/keys": Operation(
        "administration",
        "Make a key for a tenant. It is told once, here.",
        NewKey,
        answers.Anything,
    ),
    "DELETE /admin/tenants/{tenant}/keys/{key}": Operation(
        "administration", "Let a key in no more.", None, answers.Anything
    ),
    "PUT /admin/tenants/{tenant}/limits": _LIMITS,
    "DELETE /admin/tenants/{tenant}/limits": Operation(
        "administration", "Give a tenant the limits that the configuration says.", None, answers.Anything
    ),
    "GET /health": _HEALTH,
    "GET /health/ready": _HEALTH,
    "GET /health/live": _LIVE,
    "GET /health/startup": _LIVE,
    "GET /version": Operation("server", "The version.", None, answers.VersionReport),
    "GET /": Operation("server", "The console.", texts=(HTML,)),
    "GET /console/{asset}": Operation(
        "server", "A file of the console.", texts=ASSETS, holes={"asset": {"enum": sorted(read_assets())}}
    ),
    "GET /console/api/session": Operation(
        "server", "Who the console's reader is, and what is open to them.", None, answers.Anything
    ),
    "GET /console/api/now": Operation(
        "figures",
        "What is going on, with the last ten minutes: what the console shows.",
        None,
        answers.Anything,
        query={"since": _SEEN, "iteration": _SEEN},
    ),
    "POST /console/api/markdown": Operation(
        "server", "A text as HTML that may stand in a page.", MarkdownText, answers.Anything
    ),
    "POST /console/api/simulate": Operation(
        "figures", "The last minutes again, with other replicas.", WhatIfAsked, answers.Anything
    ),
    "POST /console/api/plan": Operation(
        "figures", "What of a model fits where.", NamedPlan, answers.Anything
    ),
    "GET /console/api/catalogue": Operation(
        "figures", "Models and devices that can be planned with.", None, answers.Anything
    ),
    "GET /docs": Operation("server", "This interface as a page.", texts=(HTML,)),
    "GET /openapi.json": Operation("server", "This document.", None, answers.Anything),
}
