"""The OpenAI endpoints: from a decoded request to generations in the engine."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from weighbridge.engine.api import Engine, Generation
from weighbridge.engine.request import Guide, SamplingParams
from weighbridge.server.answer import Answer, Running
from weighbridge.server.auth import tenant_of_key
from weighbridge.server.engine.formats import ChatFormat, Format, TextFormat
from weighbridge.server.engine.tool_calls import forced_call_guide, tool_names, tools_for_template
from weighbridge.server.protocol import (
    ChatRequest,
    Common,
    CompletionRequest,
    Extension,
    Limits,
    guide_of,
    sampling_params,
)
from weighbridge.server.settings import ServerSettings
from weighbridge.ticket import TicketStore
from weighbridge.wire.body import decode, read_body
from weighbridge.wire.errors import ApiError

#: Texts longer than this are tokenised in a thread, so that the event loop goes on.
LONG_TEXT = 20_000


class ChatTokenizer(Protocol):
    """What the server needs of a tokenizer."""

    vocab_size: int

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
    def token_text(self, token: int) -> str: ...
    def encode_chat(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> list[int]: ...
    @property
    def supports_tools(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and how the request is to be treated."""

    tenant: str
    priority: int
    deadline_ms: float | None
    speculative: bool
    ticket_id: str | None = None  # proposed by the client, so that it can ask before an answer has begun


@dataclass(slots=True)
class Api:
    """Everything an endpoint needs."""

    engine: Engine
    tokenizer: ChatTokenizer
    settings: ServerSettings
    tickets: TicketStore
    validate_guide: Callable[[Guide], None]

    @property
    def limits(self) -> Limits:
        return Limits(self.settings, self.tokenizer.vocab_size)

    async def chat(self, request: Request) -> Response:
        tenant = tenant_of_key(request, self.settings)
        body = decode(await read_body(request, self.settings.max_body), ChatRequest)
        self.check_model(body.model)
        caller = caller_of(request, body.weighbridge, body.user, tenant)
        guide = forced_call_guide(body) or guide_of(body)
        prompt = await self.chat_prompt(body)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        params = await self._params(
            body, body.max_completion_tokens or body.max_tokens, logprobs, guide, prompt
        )
        form = ChatFormat(self._model, self.tokenizer.token_text, logprobs is not None, tool_names(body))
        return self._answer(body, [prompt], params, caller, [form])

    async def completions(self, request: Request) -> Response:
        tenant = tenant_of_key(request, self.settings)
        body = decode(await read_body(request, self.settings.max_body), CompletionRequest)
        self.check_model(body.model)
        if body.suffix:
            raise ApiError(
                400, "suffix: inserting between prompt and suffix is not supported", param="suffix"
            )
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise ApiError(
                400, "best_of: must equal n; sampling more than is returned is not supported", param="best_of"
            )
        caller = caller_of(request, body.weighbridge, body.user, tenant)
        prompts = await self.tokenised(prompts_of(body.prompt, self.limits))
        params = await self._params(
            body, body.max_tokens or 16, body.logprobs, guide_of(body), max(prompts, key=len)
        )
        forms: list[Format] = [
            TextFormat(
                self._model,
                self.tokenizer.token_text,
                body.logprobs is not None,
                self.tokenizer.decode(prompt) if body.echo else "",
                index * (body.n or 1),
            )
            for index, prompt in enumerate(prompts)
        ]
        return self._answer(body, prompts, params, caller, forms)

    @property
    def _model(self) -> str:
        return self.engine.model_name

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self._model:
            message = f"the model {name!r} does not exist here; this server has {self._model!r}"
            raise ApiError(404, message, code="model_not_found", param="model")

    async def chat_prompt(self, body: ChatRequest) -> list[int]:
        """Token ids of a chat. Raises ApiError for tools or messages that the model's template cannot show."""
        if body.wants_tools and not self.tokenizer.supports_tools and body.tool_choice in (None, "auto"):
            raise ApiError(400, "tools: this model's chat template has no place for tools", param="tools")
        messages = [checked_message(message, index) for index, message in enumerate(body.messages)]
        options = body.chat_template_kwargs or {}
        size = sum(len(str(message.get("content"))) for message in messages)

        def encode() -> list[int]:
            return self.tokenizer.encode_chat(
                messages, tools_for_template(body), body.add_generation_prompt, **options
            )

        return await asyncio.to_thread(encode) if size > LONG_TEXT else encode()

    async def tokenised(self, prompts: Sequence[str | list[int]]) -> list[list[int]]:
        """Token ids of all prompts; much text is encoded in a thread."""
        encode = self.tokenizer.encode

        def tokenise() -> list[list[int]]:
            return [encode(one) if isinstance(one, str) else one for one in prompts]

        size = sum(len(one) for one in prompts if isinstance(one, str))
        return await asyncio.to_thread(tokenise) if size > LONG_TEXT else tokenise()

    async def _params(
        self,
        body: Common,
        max_tokens: int | None,
        logprobs: int | None,
        guide: Guide | None,
        prompt: list[int],
    ) -> SamplingParams:
        if guide is not None:
            await asyncio.to_thread(self.validate_guide, guide)
        room = max(self.engine.max_model_len - len(prompt), 1)
        wanted = max_tokens if max_tokens is not None else min(room, self.settings.default_max_tokens)
        return sampling_params(body, wanted, logprobs, guide, self.limits)

    def _answer(
        self,
        body: Common,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        caller: Caller,
        forms: Sequence[Format],
    ) -> Answer:
        generations = [Generation(prompt, params, choices=body.n or 1) for prompt in prompts]
        running = self.submit(generations, caller, forms)
        usage = body.stream_options is not None and body.stream_options.include_usage
        return Answer(running, bool(body.stream), usage)

    def submit(
        self, generations: Sequence[Generation], caller: Caller, forms: Sequence[Format]
    ) -> list[Running]:
        """Queue every generation on behalf of `caller`, or none when one is refused. Raises what `submit` does."""
        running: list[Running] = []
        ticket_id = caller.ticket_id
        if ticket_id is not None and self.tickets.get(ticket_id) is not None:
            ticket_id = None
        try:
            for generation, form in zip(generations, forms, strict=True):
                stream = self.engine.submit(
                    replace(
                        generation,
                        tenant=caller.tenant,
                        priority=caller.priority,
                        deadline_ms=caller.deadline_ms,
                        speculative=caller.speculative,
                        ticket_id=ticket_id if not running else None,
                    )
                )
                self.tickets.add(stream.ticket)
                running.append(Running(stream, form, generation.choices))
        except Exception:
            for one in running:
                one.stream.close()
            raise
        return running


def checked_message(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message a template can read. Raises ApiError naming what is missing."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise ApiError(
            400, f"messages[{index}]: the field 'role' is required and must be a string", param="messages"
        )
    if not isinstance(content, str | list) and not (content is None and role == "assistant"):
        message_text = f"messages[{index}].content: must be a string or a list of parts"
        raise ApiError(400, message_text, param="messages")
    if not message.get("tool_calls"):
        return {**message, "content": content or ""}
    return {
        **message,
        "content": content or "",
        "tool_calls": [_parsed(call) for call in message["tool_calls"]],
    }


def _parsed(call: Any) -> Any:
    """Templates expect the arguments of earlier calls as objects, OpenAI sends them as text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    except ValueError:
        return call


def prompts_of(prompt: Any, limits: Limits, field: str = "prompt") -> list[str | list[int]]:
    """One prompt or several, as text or token ids. Raises ApiError naming what is wrong, and in which of them."""
    if isinstance(prompt, str):
        return [_not_empty(prompt, field, field)]
    if not isinstance(prompt, list) or not prompt:
        message = f"{field}: must be a string, token ids, or a non-empty list of either"
        raise ApiError(400, message, param=field)
    if all(isinstance(one, str) for one in prompt):
        return [_not_empty(one, f"{field}[{index}]", field) for index, one in enumerate(prompt)]
    if all(isinstance(one, list) for one in prompt):
        return [_token_ids(one, limits, f"{field}[{index}]", field) for index, one in enumerate(prompt)]
    return [_token_ids(prompt, limits, field, field)]


def _not_empty(prompt: str, place: str, field: str) -> str:
    if not prompt:
        raise ApiError(400, f"{place}: must not be empty", param=field)
    return prompt


def _token_ids(ids: list[Any], limits: Limits, place: str, field: str) -> list[int]:
    if not ids:
        raise ApiError(400, f"{place}: must not be empty", param=field)
    for one in ids:
        if type(one) is not int or not 0 <= one < limits.vocab_size:
            message = f"{place}: {one!r} is not a token id (0 to {limits.vocab_size - 1})"
            raise ApiError(400, message, param=field)
    return ids


def caller_of(
    request: Request, extension: Extension | None, user: str | None, key_tenant: str | None
) -> Caller:
    """Extensions from the body, else from `x-weighbridge-*` headers. A key's tenant cannot be overridden."""
    extension = extension or Extension()
    headers = {
        name.removeprefix("x-weighbridge-").replace("-", "_"): value
        for name, value in request.headers.items()
        if name.startswith("x-weighbridge-")
    }
    placement = extension.placement or headers.get("placement")
    if placement == "only_cloud":
        raise ApiError(
            400, "placement: this server has no cloud; use only_edge or prefer_edge", param="weighbridge"
        )
    priority = extension.priority
    if priority is None:
        priority = int(_number(headers, "priority", 0.0))
    deadline = extension.deadline_ms or _number(headers, "deadline_ms", None)
    speculative = extension.speculative
    if speculative is None:
        speculative = headers.get("speculative", "").lower() in ("1", "true")
    tenant = key_tenant or extension.tenant or headers.get("tenant") or user or "default"
    proposed = headers.get("ticket", "")
    ticket_id = proposed if re.fullmatch("[0-9a-f]{32}", proposed) else None
    return Caller(tenant[:200], priority, deadline, speculative, ticket_id)


def _number(headers: dict[str, str], name: str, default: Any) -> Any:
    if name not in headers:
        return default
    try:
        value = float(headers[name])
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e12 or (name == "deadline_ms" and value <= 0):
        raise ApiError(400, f"header x-weighbridge-{name.replace('_', '-')}: {headers[name]!r} is not usable")
    return value
