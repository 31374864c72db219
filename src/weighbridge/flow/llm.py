"""`llm(...)`: a chat model behind any OpenAI-compatible URL, as steps of a flow."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from weighbridge.cost.price import Price
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.flow.client import ChatClient, ChatStream, Endpoint, LlmError
from weighbridge.flow.execution import Execution, charge, first_success
from weighbridge.flow.gate import queue_usd
from weighbridge.flow.json_stream import JsonEnd
from weighbridge.flow.plan import PlanRunner
from weighbridge.flow.prefetch import prefetch
from weighbridge.flow.step import Effect, Options, Step, current_execution
from weighbridge.flow.tools import answer_schema, tool_schema

if TYPE_CHECKING:
    from weighbridge.flow.run import Run

T = TypeVar("T")
Prompt = str | Sequence[Any]

#: Statuses that may be different next time.
PASSING = (0, 408, 409, 425, 429, 500, 502, 503, 504)


@dataclass(slots=True)
class ToolCall:
    """A call that the model wants made."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(slots=True)
class Reply:
    """What a model answered."""

    text: str
    calls: list[ToolCall] = field(default_factory=list)
    finish_reason: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    def start(self, *tools: Step[..., Any]) -> list[Awaitable[Any]]:
        """Call the tools the model asked for. Reads that were prefetched are there already.

        Raises WeighbridgeError for a tool that is not among `tools`.
        """
        known = {tool.name: tool for tool in tools}
        for call in self.calls:
            if call.name not in known:
                raise WeighbridgeError(
                    f"the model called {call.name!r}; it may call: {', '.join(known) or 'nothing'}"
                )
        return [known[call.name](**call.arguments) for call in self.calls]

    @property
    def message(self) -> dict[str, Any]:
        """The reply as a message, to go on from."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": msgspec.json.encode(call.arguments).decode(),
                    },
                }
                for call in self.calls
            ]
        return message


class Llm:
    """A model to talk to. Calls are steps: they start at once in a flow, and are shared, cancelled, journaled."""

    def __init__(
        self, endpoints: list[Endpoint], model: str | None, options: Options, **settings: Any
    ) -> None:
        self._endpoints = endpoints
        self._model = model
        self._options = options
        self._price: Price = settings.pop("price")
        self._hedge: float = settings.pop("hedge")
        self._defaults: dict[str, Any] = settings.pop("parameters")
        self.name: str = settings.pop("name")
        self._reply: Step[..., Reply] = Step(self._ask, options, self.name)
        self._text: Step[..., str] = Step(self._ask_text, options, f"{self.name}.text")
        self._planned: Step[..., str] = Step(self._ask_plan, options, f"{self.name}.plan")
        self._typed: dict[Any, Step[..., Any]] = {}

    def __call__(
        self, prompt: Prompt, *, tools: Sequence[Step[..., Any]] = (), **parameters: Any
    ) -> Awaitable[Reply]:
        """Chat with tools. Calls of `pure` and `read` tools start as soon as their arguments have come whole."""
        return self._reply(_messages(prompt), list(tools), parameters)

    def text(self, prompt: Prompt, **parameters: Any) -> Awaitable[str]:
        """The answer's text."""
        return self._text(_messages(prompt), parameters)

    async def plan(
        self, prompt: Prompt, tools: Sequence[Step[..., Any]], **parameters: Any
    ) -> dict[int, Any]:
        """Have the model write a plan (see `weighbridge.flow.plan`) and carry it out: promises by number.

        Its pure and read calls start as soon as their lines are complete; the rest once the plan is. Raises
        PlanError for a plan that cannot be carried out.
        """
        text = await self._planned(_messages(prompt), list(tools), parameters)
        return PlanRunner(tools).start(text)

    def json(self, prompt: Prompt, kind: type[T], **parameters: Any) -> Awaitable[T]:
        """An answer of type `kind` (a dataclass, TypedDict, msgspec Struct or plain type), held to its schema."""
        if kind not in self._typed:
            name = f"{self.name}.{getattr(kind, '__name__', 'json')}"
            self._typed[kind] = Step(
                _returning(kind, functools.partial(self._ask_json, kind)), self._options, name
            )
        return cast("Awaitable[T]", self._typed[kind](_messages(prompt), parameters))

    # -- one request -----------------------------------------------------------------------------------

    async def _ask_text(self, messages: list[Any], parameters: dict[str, Any]) -> str:
        return (await self._ask(messages, [], parameters)).text

    async def _ask_plan(self, messages: list[Any], tools: list[Any], parameters: dict[str, Any]) -> str:
        return (await self._ask(messages, [], parameters, PlanRunner(tools).feed)).text

    async def _ask_json(self, kind: Any, messages: list[Any], parameters: dict[str, Any]) -> Any:
        schema = {"name": "answer", "schema": answer_schema(kind), "strict": True}
        response_format = {"type": "json_schema", "json_schema": schema}
        reply = await self._ask(messages, [], {**parameters, "response_format": response_format})
        try:
            return msgspec.json.decode(reply.text, type=kind)
        except msgspec.MsgspecError as error:
            cut = " (cut off: allow more max_tokens)" if reply.finish_reason == "length" else ""
            raise LlmError(f"{self.name} answered what is no {kind.__name__}: {error}{cut}") from error

    async def _ask(
        self,
        messages: list[Any],
        tools: list[Any],
        parameters: dict[str, Any],
        on_text: Callable[[str], None] | None = None,
    ) -> Reply:
        body = {**self._defaults, **parameters, "messages": messages}
        if self._model is not None:
            body["model"] = self._model
        if tools:
            body["tools"] = [tool_schema(tool) for tool in tools]
        execution = current_execution.get()
        if execution is None:
            client = ChatClient()
            try:
                return await self._exchange(client, body, _Answer({}), None)
            finally:
                await client.close()
        client = execution.run.resource(ChatClient, ChatClient)
        self._watch_load(execution, client)
        answer = _Answer({tool.name: tool for tool in tools}, on_text)
        return await self._exchange(client, body, answer, execution)

    async def _exchange(
        self,
        client: ChatClient,
        body: dict[str, Any],
        answer: _Answer,
        execution: Execution | None,
    ) -> Reply:
        stream = await self._open(client, body, execution)
        try:
            while (event := await stream.next()) is not None:
                answer.add(event)
        except BaseException:
            charge(self._price.cost(_rough_tokens(body["messages"]), answer.pieces))
            raise
        finally:
            await stream.close()
        reply = answer.reply()
        charge(self._price.cost(reply.input_tokens, reply.output_tokens, reply.cached_tokens))
        return reply

    async def _open(
        self, client: ChatClient, body: dict[str, Any], execution: Execution | None
    ) -> ChatStream:
        """The stream that answers first: of one replica, or of two when the first is slow to begin."""
        if execution is None:
            return await client.open(self._endpoints[0], body, False).start()
        run = execution.run
        while True:
            bet = not execution.committed
            opening = run.spawn_child(self._first_answer(client, body, execution, bet))
            confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if bet:
                execution.on_commit.append(functools.partial(_set, confirmed))
            try:
                waiting: set[asyncio.Future[Any]] = {opening, confirmed}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if opening.done():
                    return opening.result()
            except asyncio.CancelledError:
                await _give_up(run, [opening])
                raise
            # Needed for certain, and still in the queue behind all others: ask again as one who is needed.
            await _give_up(run, [opening])

    async def _first_answer(
        self, client: ChatClient, body: dict[str, Any], execution: Execution, bet: bool
    ) -> ChatStream:
        run = execution.run
        stats = run.learner.step(f"{self.name} first token")
        began = run.clock()
        delay = stats.hedge_delay(self._hedge) if self._hedge and len(self._endpoints) > 1 else None
        tasks = [run.spawn_child(client.open(self._endpoints[0], body, bet).start())]
        try:
            if delay is not None:
                await asyncio.wait(tasks, timeout=delay)
                if not tasks[0].done() and stats.take_hedge():
                    run.record.hedged(execution, delay)
                    tasks.append(run.spawn_child(client.open(self._endpoints[1], body, bet).start()))
            stream: ChatStream = await first_success(tasks)
            winner = next(one for one in tasks if _opened(one) and one.result() is stream)
        except BaseException:
            await _give_up(run, tasks)
            raise
        await _give_up(run, [task for task in tasks if task is not winner])
        stats.add(run.clock() - began)
        return stream

    def _watch_load(self, execution: Execution, client: ChatClient) -> None:
        """Tell the gate what a bet would do to those who queue at our server."""
        run, endpoint = execution.run, self._endpoints[0]
        if not endpoint.ours:
            return
        run.spawn(client.ask_load(endpoint))
        if self not in run.load_sources:
            run.load_sources.add(self)
            run.loads.append(lambda cost: self._queue_usd(run.value_per_second))

    def _queue_usd(self, value_per_second: float) -> float:
        endpoint = self._endpoints[0]
        seconds = endpoint.seconds_per_token
        return (
            queue_usd(value_per_second, endpoint.queued_requests, 100.0, 1.0 / seconds)
            if seconds > 0.0
            else 0.0
        )


def llm(
    url: str | Sequence[str],
    model: str | None = None,
    *,
    api_key: str | None = None,
    price: Price | None = None,
    effect: Effect = "pure",
    timeout: float | None = 120.0,
    retries: int = 2,
    hedge: float = 0.0,
    cache: float | bool = False,
    resource: str | None = None,
    name: str | None = None,
    **parameters: Any,
) -> Llm:
    """A chat model behind `url` (with or without /v1), or behind several replicas of it.

    `model`: as the server names it; a server of one model may do without. `api_key`: by default from
    OPENAI_API_KEY for https URLs. `price`: what its tokens cost. `effect`: "remote" when prompts must not be
    sent before it is certain that they will be. `hedge`: share of calls that may be asked of the second
    replica too, when the first is slow to begin. `parameters`: temperature, max_tokens and the like, for
    every call; a call can give its own. In a bet a request is sent as speculative, which Weighbridge runs
    behind all others; if the bet is won before it has begun, it is sent again as an ordinary one.
    """
    urls = [url] if isinstance(url, str) else list(url)
    if not urls:
        raise BadInput("llm: give at least one URL")
    if effect not in ("pure", "read", "remote"):
        raise BadInput(f"llm: effect={effect!r} must be pure, read or remote")
    key = api_key or (os.environ.get("OPENAI_API_KEY") if urls[0].startswith("https://") else None)
    options = Options(
        effect=effect,
        timeout=timeout,
        retries=retries,
        cache=cache,
        resource=resource,
        speculate=effect != "remote",
        retry_on=_passing,
    )
    return Llm(
        [Endpoint(one, key) for one in urls],
        model,
        options,
        price=price or Price(),
        hedge=hedge,
        parameters=parameters,
        name=name or model or "llm",
    )


class _Answer:
    """A reply as it comes; tool calls that have come whole are prefetched."""

    def __init__(
        self, tools: dict[str, Step[..., Any]], on_text: Callable[[str], None] | None = None
    ) -> None:
        self._tools = tools
        self._on_text = on_text
        self._text: list[str] = []
        self._calls: dict[int, tuple[dict[str, str], JsonEnd]] = {}
        self._usage: dict[str, Any] = {}
        self._finish: str | None = None
        self.pieces = 0

    def add(self, event: dict[str, Any]) -> None:
        self._usage = event.get("usage") or self._usage
        for choice in event.get("choices", ()):
            delta = choice.get("delta") or {}
            self._finish = choice.get("finish_reason") or self._finish
            if delta.get("content"):
                self.pieces += 1
                self._text.append(delta["content"])
                if self._on_text is not None:
                    self._on_text(delta["content"])
            for position, piece in enumerate(delta.get("tool_calls") or ()):
                self._add_call(piece.get("index", position), piece)

    def _add_call(self, index: int, piece: dict[str, Any]) -> None:
        self.pieces += 1
        call, end = self._calls.setdefault(index, ({"id": "", "name": "", "arguments": ""}, JsonEnd()))
        function = piece.get("function") or {}
        call["id"] = piece.get("id") or call["id"]
        call["name"] = function.get("name") or call["name"]
        arguments = function.get("arguments") or ""
        call["arguments"] += arguments
        if end.feed(arguments) and call["name"] in self._tools:
            parsed = _parsed(call["arguments"])
            if isinstance(parsed, dict):
                prefetch(self._tools[call["name"]], **parsed)

    def reply(self) -> Reply:
        calls = []
        for call, _ in self._calls.values():
            arguments = _parsed(call["arguments"] or "{}")
            if not isinstance(arguments, dict):
                raise LlmError(
                    f"the model called {call['name']} with what is no JSON object: {call['arguments'][:200]}"
                )
            calls.append(ToolCall(call["id"], call["name"], arguments))
        cached = (self._usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        tokens = int(self._usage.get("prompt_tokens") or 0), int(self._usage.get("completion_tokens") or 0)
        return Reply("".join(self._text), calls, self._finish, *tokens, int(cached))


def _parsed(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError:
        return None


def _messages(prompt: Prompt) -> list[Any]:
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return [{"role": "user", "content": prompt}]
    return list(prompt)


def _rough_tokens(messages: list[Any]) -> int:
    """Tokens of a prompt whose answer was cancelled before the server counted them: four characters each."""
    return sum(len(str(message)) for message in messages) // 4


def _returning(kind: Any, function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def ask(messages: list[Any], parameters: dict[str, Any]) -> Any:
        return await function(messages, parameters)

    ask.__annotations__["return"] = kind
    return ask


def _passing(error: Exception) -> bool:
    return not isinstance(error, LlmError) or error.status in PASSING


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _give_up(run: Run, tasks: list[asyncio.Task[ChatStream]]) -> None:
    """Cancel openings, and close the streams of those that have opened."""
    await run.reap(tasks)
    for task in tasks:
        if _opened(task):
            await task.result().close()


def _opened(task: asyncio.Task[ChatStream]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
