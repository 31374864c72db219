"""`llm(...)`: a chat model behind any OpenAI-compatible URL, as steps of a flow."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from weighbridge.cost.mean import Mean
from weighbridge.cost.price import Price
from weighbridge.cost.usage import Usage
from weighbridge.errors import BadInput
from weighbridge.flow.bets.gate import INPUT_TOKENS, OUTPUT_TOKENS, seat_seconds
from weighbridge.flow.bets.learn import Learner
from weighbridge.flow.llm.client import ChatClient, ChatEndpoint, ChatStream, LlmError
from weighbridge.flow.llm.plan import PlanRunner
from weighbridge.flow.llm.reply import Reply, ReplyBuilder
from weighbridge.flow.llm.tool_schema import answer_schema, tool_schema
from weighbridge.flow.nursery import first_success
from weighbridge.flow.runtime import Execution, FlowRun, charge, this_execution
from weighbridge.flow.step import Effect, Options, Step
from weighbridge.flow.step_times import RECENT_WEIGHT
from weighbridge.secret import Secret
from weighbridge.wire.client import Trust

T = TypeVar("T")
Prompt = str | Sequence[Any]

#: Statuses that may be different next time.
PASSING = (0, 408, 409, 425, 429, 500, 502, 503, 504)


class Llm:
    """A model to talk to. Calls are steps: they start at once in a flow, and are shared, cancelled, journaled."""

    def __init__(
        self, endpoints: list[ChatEndpoint], model: str | None, options: Options, **settings: Any
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
        self._input, self._output, self._seconds = (Mean(RECENT_WEIGHT) for _ in range(3))

    def __call__(
        self, prompt: Prompt, *, tools: Sequence[Step[..., Any]] = (), **parameters: Any
    ) -> Awaitable[Reply]:
        """Chat with tools. Calls of `pure` and `read` tools start as soon as their arguments have come whole."""
        return self._reply(_messages(prompt), list(tools), parameters)

    def text(self, prompt: Prompt, **parameters: Any) -> Awaitable[str]:
        """Return the answer's text."""
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
        """Return an answer held to the schema of `kind`: a dataclass, TypedDict, msgspec Struct or plain type."""
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
        except (msgspec.MsgspecError, RecursionError) as error:
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
        execution = this_execution()
        if execution is None:
            client = ChatClient()
            try:
                return await self._exchange(client, body, ReplyBuilder({}), None)
            finally:
                await client.close()
        client = execution.run.nursery.resource(ChatClient, ChatClient)
        self.watch(execution.run)
        answer = ReplyBuilder({tool.name: tool for tool in tools}, on_text)
        return await self._exchange(client, body, answer, execution)

    async def _exchange(
        self,
        client: ChatClient,
        body: dict[str, Any],
        answer: ReplyBuilder,
        execution: Execution | None,
    ) -> Reply:
        stream = await self._open(client, body, execution)
        began = time.monotonic()
        try:
            while (event := await stream.next()) is not None:
                answer.add(event)
        except BaseException:
            charge(self._price.usd(Usage(_rough_tokens(body["messages"]), answer.pieces)))
            raise
        finally:
            await stream.close()
        reply = answer.reply()
        self._input.add(reply.input_tokens)
        self._output.add(reply.output_tokens)
        self._seconds.add(time.monotonic() - began)
        charge(self._price.usd(answer.usage))
        return reply

    async def _open(
        self, client: ChatClient, body: dict[str, Any], execution: Execution | None
    ) -> ChatStream:
        """Return the stream that answers first: of one replica, or of two when the first is slow to begin."""
        if execution is None:
            return await client.open(self._endpoints[0], body, False).start()
        run = execution.run
        while True:
            bet = not execution.committed
            opening = run.nursery.spawn_child(self._first_answer(client, body, execution, bet))
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
            # Needed for certain, and still in the queue behind all others: send it again as an ordinary request.
            await _give_up(run, [opening])

    async def _first_answer(
        self, client: ChatClient, body: dict[str, Any], execution: Execution, bet: bool
    ) -> ChatStream:
        run = execution.run
        times = run.times(f"{self.name} first token")
        began = run.clock()
        delay = times.hedge_delay(self._hedge) if self._hedge and len(self._endpoints) > 1 else None
        tasks = [run.nursery.spawn_child(client.open(self._endpoints[0], body, bet).start())]
        try:
            if delay is not None:
                await asyncio.wait(tasks, timeout=delay)
                if not tasks[0].done() and times.take_hedge():
                    execution.note_hedge()
                    tasks.append(run.nursery.spawn_child(client.open(self._endpoints[1], body, bet).start()))
            stream: ChatStream = await first_success(tasks)
            winner = next(task for task in tasks if _opened(task) and task.result() is stream)
        except BaseException:
            await _give_up(run, tasks)
            raise
        await _give_up(run, [task for task in tasks if task is not winner])
        times.add(run.clock() - began)
        return stream

    # -- what a bet would do to others -----------------------------------------------------------------

    def watch(self, run: FlowRun) -> None:
        """Find out how loaded the server is, for bets to come."""
        learner, nursery = run.hook(Learner), run.nursery
        if learner is not None:
            learner.servers.add(self)
        if self._endpoints[0].ours:
            nursery.spawn(nursery.resource(ChatClient, ChatClient).ask_load(self._endpoints[0]))

    def queued_seconds(self) -> float:
        """Return the request-seconds of waiting that another call of the usual size brings those in the queue."""
        load = self._endpoints[0].load_now()
        if load is None or not load.waiting:
            return 0.0
        usual = (
            (self._input.value, self._output.value) if self._output.count else (INPUT_TOKENS, OUTPUT_TOKENS)
        )
        return load.waiting * seat_seconds(load, *usual, self._seconds.value)


def llm(
    url: str | Sequence[str],
    model: str | None = None,
    *,
    api_key: str | None = None,
    tls_ca: str | Path | None = None,
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

    `model`: as the server names it; a server with a single model needs no name. `api_key`: by default from
    OPENAI_API_KEY for https URLs. `tls_ca`: a PEM file with the authorities that an https server is believed by,
    in place of this machine's. `price`: what its tokens cost. `effect`: "remote" when prompts must not be
    sent before it is certain that they will be. `hedge`: share of calls that may be asked of the second
    replica too, when the first is slow to begin. `parameters`: temperature, max_tokens and the like, for
    every call; a call can give its own. In a bet a request is sent as speculative, which Weighbridge runs
    behind all others; if the bet is won before it has begun, it is sent again as an ordinary request.
    """
    urls = [url] if isinstance(url, str) else list(url)
    if not urls:
        raise BadInput("llm: give at least one URL")
    if effect not in ("pure", "read", "remote"):
        raise BadInput(f"llm: effect={effect!r} must be pure, read or remote")
    key = api_key or (os.environ.get("OPENAI_API_KEY") if urls[0].startswith("https://") else None)
    trust = Trust(Path(tls_ca)) if tls_ca is not None else Trust()
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
        [ChatEndpoint(address, Secret(key) if key else None, trust=trust) for address in urls],
        model,
        options,
        price=price or Price(),
        hedge=hedge,
        parameters=parameters,
        name=name or model or "llm",
    )


def _messages(prompt: Prompt) -> list[Any]:
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return [{"role": "user", "content": prompt}]
    return list(prompt)


def _rough_tokens(messages: list[Any]) -> int:
    """Guess the tokens of a prompt whose answer was cancelled before the server counted them: four characters each."""
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


async def _give_up(run: FlowRun, tasks: list[asyncio.Task[ChatStream]]) -> None:
    """Cancel openings, and close the streams of those that have opened."""
    await run.nursery.reap(tasks)
    for task in tasks:
        if _opened(task):
            await task.result().close()


def _opened(task: asyncio.Task[ChatStream]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
