"""OpenAI's requests as types, and what they mean for sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from weighbridge.engine.request import Guide, SamplingParams
from weighbridge.server.settings import ServerSettings
from weighbridge.wire.errors import ApiError

Positive = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[int, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Placement = Literal["only_edge", "prefer_edge", "prefer_cloud", "only_cloud"]


class Extension(Struct, forbid_unknown_fields=True):
    """The body key `weighbridge`."""

    tenant: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] | None = None
    deadline_ms: Annotated[float, Meta(gt=0.0)] | None = None
    placement: Placement | None = None
    max_usd: Annotated[float, Meta(ge=0.0)] | None = None
    speculative: bool | None = None


class StreamOptions(Struct):
    include_usage: bool = False


class JsonSchema(Struct):
    name: str = ""
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Struct):
    """Constraints beyond OpenAI's, named as vLLM names them."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    grammar: str | None = None


class Common(Struct, kw_only=True):
    """Fields of both kinds of completion. Unknown fields are ignored, as OpenAI's clients expect."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Positive | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Fraction | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[NonNegative] | None = None
    ignore_eos: bool | None = None
    min_tokens: NonNegative | None = None
    max_tokens: Positive | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    user: str | None = None
    weighbridge: Extension | None = None


class CompletionRequest(Common, kw_only=True):
    prompt: Any
    logprobs: NonNegative | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Positive | None = None


class Function(Struct):
    name: Annotated[str, Meta(min_length=1)]
    description: str | UnsetType = UNSET
    parameters: dict[str, Any] | UnsetType = UNSET


class Tool(Struct):
    type: Literal["function"]
    function: Function


class NamedFunction(Struct):
    name: str


class NamedTool(Struct):
    function: NamedFunction
    type: Literal["function"] = "function"


class ChatRequest(Common, kw_only=True):
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: NonNegative | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True

    @property
    def wants_tools(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"


class EmbeddingRequest(Struct, kw_only=True):
    """OpenAI's, and as an extension a chat in place of `input`: what a chat completion of it would compute."""

    model: str | None = None
    input: Any = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Positive | None = None
    user: str | None = None
    weighbridge: Extension | None = None

    def chat(self) -> ChatRequest | None:
        """The chat whose prompt is to be embedded; None when it is `input`."""
        if self.messages is None:
            return None
        return ChatRequest(
            messages=self.messages,
            tools=self.tools,
            tool_choice=self.tool_choice,
            chat_template_kwargs=self.chat_template_kwargs,
            add_generation_prompt=self.add_generation_prompt,
        )


class TokenizeRequest(Struct):
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    model: str | None = None


class DetokenizeRequest(Struct):
    tokens: list[NonNegative]
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the values of a request are checked against."""

    settings: ServerSettings
    vocab_size: int


def sampling_params(
    request: Common, max_tokens: int, logprobs: int | None, guide: Guide | None, limits: Limits
) -> SamplingParams:
    """OpenAI's fields as the engine's. Raises ApiError naming the field that is out of range."""
    settings = limits.settings
    if logprobs is not None and logprobs > settings.max_logprobs:
        raise ApiError(
            400, f"logprobs: at most {settings.max_logprobs} alternatives can be had", param="logprobs"
        )
    if request.n is not None and request.n > settings.max_choices:
        raise ApiError(400, f"n: at most {settings.max_choices} choices can be had", param="n")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stop) > 16 or any(not one for one in stop):
        raise ApiError(400, "stop: give at most 16 strings, none of them empty", param="stop")
    ids = frozenset(request.stop_token_ids or ())
    _check_ids(ids, "stop_token_ids", limits)
    if request.min_tokens is not None and request.min_tokens > max_tokens:
        raise ApiError(
            400, f"min_tokens: must not be more than max_tokens ({max_tokens})", param="min_tokens"
        )
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_or(request.temperature, 1.0),
        top_p=_or(request.top_p, 1.0),
        top_k=max(_or(request.top_k, 0), 0),
        min_p=_or(request.min_p, 0.0),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        logit_bias=_logit_bias(request.logit_bias or {}, limits),
        seed=request.seed,
        logprobs=logprobs,
        stop=tuple(stop),
        stop_token_ids=ids,
        ignore_eos=bool(request.ignore_eos),
        min_tokens=_or(request.min_tokens, 0),
        guide=guide,
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _check_ids(ids: frozenset[int], name: str, limits: Limits) -> None:
    for one in ids:
        if not 0 <= one < limits.vocab_size:
            raise ApiError(
                400,
                f"{name}: token id {one} is not in the vocabulary (0 to {limits.vocab_size - 1})",
                param=name,
            )


def _logit_bias(bias: Mapping[str, float], limits: Limits) -> dict[int, float]:
    result = {}
    for key, value in bias.items():
        if not key.isdecimal():
            raise ApiError(400, f"logit_bias: keys are token ids, not {key!r}", param="logit_bias")
        result[int(key)] = value
    _check_ids(frozenset(result), "logit_bias", limits)
    return result


def guide_of(request: Common) -> Guide | None:
    """The constraint a request asks for, if any. Raises ApiError when it asks for two, or for an empty one."""
    guides: list[Guide] = []
    wanted = request.response_format
    if wanted is not None and wanted.type == "json_object":
        guides.append(Guide("json_object", ""))
    if wanted is not None and wanted.type == "json_schema":
        schema = wanted.json_schema.schema if wanted.json_schema else None
        if schema is None:
            raise ApiError(400, "response_format: json_schema.schema is required", param="response_format")
        guides.append(Guide("json_schema", msgspec.json.encode(schema).decode()))
    extra = request.structured_outputs
    if extra is not None:
        if extra.json is not None:
            source = extra.json if isinstance(extra.json, str) else msgspec.json.encode(extra.json).decode()
            guides.append(Guide("json_schema", source))
        if extra.regex is not None:
            guides.append(Guide("regex", extra.regex))
        if extra.grammar is not None:
            guides.append(Guide("lark", extra.grammar))
    if len(guides) > 1:
        raise ApiError(400, "only one constraint on the output can be given", param="structured_outputs")
    return guides[0] if guides else None
