"""`weighbridge bench serve`: a closed loop of N clients, or the arrivals of a trace."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from weighbridge.bench.client import LoadClient, StreamedAnswer, complete
from weighbridge.bench.prompts import (
    FIRST_ID,
    LAST_ID,
    count_with_file,
    count_with_server,
    count_words,
    prompt_ids,
    prompt_text,
)
from weighbridge.bench.report import LoadReport
from weighbridge.errors import WeighbridgeError
from weighbridge.secret import Secret, without_account
from weighbridge.wire.client import Trust
from weighbridge.workload.requests import TraceRow
from weighbridge.workload.slo import USUAL, Slo

Prompt = list[int] | str


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What to send. `concurrency` None: open loop, each request at its own time."""

    url: str
    model: str | None
    arrivals: Sequence[TraceRow]
    concurrency: int | None = None
    shared_prefix: int = 0  # tokens every prompt begins with
    warm_up: int = 0  # requests sent first, all at once, and not counted
    temperature: float = 0.0
    seed: int = 0
    timeout: float = 600.0  # seconds, for each request
    text_prompts: bool = (
        False  # words instead of token ids; without it a server that takes no ids gets words too
    )
    api_key: Secret | None = None
    trust: Trust = field(default_factory=Trust)
    slo: Slo = USUAL
    endpoint: Literal["completions", "chat"] = "completions"
    tokenizer: Path | None = None  # counts text prompts where the server has no /tokenize
    vocabulary: tuple[int, int] = (FIRST_ID, LAST_ID)  # token ids drawn from

    @property
    def base(self) -> str:
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.endpoint == "chat" else "/v1/completions"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as the bytes to send, made before the clock starts."""

    arrival: TraceRow
    payload: bytes


def run(options: ServeOptions) -> LoadReport:
    """Send the whole workload and wait for all of it. Raises WeighbridgeError when the server is not there."""
    return asyncio.run(run_async(options))


async def run_async(options: ServeOptions) -> LoadReport:
    async with LoadClient(options.base, options.api_key, options.trust) as client:
        model = options.model or await first_model(client, without_account(options.base))
        takes_ids = await _takes_ids(client, options, model)
        prepared = await _prepare(client, options, model, takes_ids)
        send = _sender(client, options)
        first, counted = prepared[: options.warm_up], prepared[options.warm_up :]
        await asyncio.gather(*(send(prepared) for prepared in first))
        began, cpu = time.perf_counter(), time.process_time()
        if options.concurrency is None:
            answers, late = await _open_loop(send, counted)
        else:
            answers, late = await _closed_loop(send, counted, options.concurrency), None
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        return LoadReport(answers, seconds, options.slo, "ids" if takes_ids else "text", cpu, late)


async def first_model(client: LoadClient, base: str) -> str:
    """Return the name of the first model that the server lists. Raises WeighbridgeError when there is none."""
    try:
        return str((await client.ask("/v1/models"))["data"][0]["id"])
    except (OSError, LookupError, TypeError, ValueError) as error:
        why = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise WeighbridgeError(f"no model at {base} ({why}); is a server running there?") from error


def request_body(model: str, prompt: Prompt, output_tokens: int, options: ServeOptions) -> dict[str, Any]:
    """Return a streaming request that must produce exactly `output_tokens`."""
    content: dict[str, Any] = {"prompt": prompt}
    if options.endpoint == "chat":
        content = {"messages": [{"role": "user", "content": prompt}]}
    return {
        "model": model,
        **content,
        "max_tokens": output_tokens,
        "temperature": options.temperature,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def _takes_ids(client: LoadClient, options: ServeOptions, model: str) -> bool:
    """Return whether prompts go as token ids; where a warm-up is allowed, one small request finds out."""
    if options.text_prompts or options.endpoint == "chat":
        return False
    if not options.warm_up:
        return True
    ids = prompt_ids(8, range(*options.vocabulary), random.Random(options.seed - 1))
    payload = json.dumps(request_body(model, ids, 1, options)).encode()
    answer = await complete(client, options.path, payload, timeout=options.timeout, ordered_tokens=1)
    return answer.status not in (400, 422)


async def _prepare(client: LoadClient, options: ServeOptions, model: str, takes_ids: bool) -> list[Prepared]:
    """Prepare all requests, the warm-up's first."""
    again = range(options.warm_up)
    arrivals = [*(options.arrivals[i % len(options.arrivals)] for i in again), *options.arrivals]
    make = _id_prompts if takes_ids else _text_prompts
    prompts = await make(client, options, model, [row.prompt_tokens for row in arrivals])
    return [
        Prepared(row, json.dumps(request_body(model, prompt, row.output_tokens, options)).encode())
        for row, prompt in zip(arrivals, prompts, strict=True)
    ]


async def _id_prompts(
    client: LoadClient, options: ServeOptions, model: str, lengths: list[int]
) -> Sequence[Prompt]:
    rng = random.Random(options.seed)
    vocabulary = range(*options.vocabulary)
    shared = prompt_ids(options.shared_prefix, vocabulary, rng)
    return [prompt_ids(length, vocabulary, rng, shared) for length in lengths]


async def _text_prompts(
    client: LoadClient, options: ServeOptions, model: str, lengths: list[int]
) -> Sequence[Prompt]:
    rng = random.Random(options.seed)
    if options.tokenizer is not None:
        count = count_with_file(options.tokenizer)
    else:
        count = await count_with_server(client, model) or count_words
    shared: list[str] = []
    if options.shared_prefix:
        shared = await prompt_text(options.shared_prefix, count, rng)
    return [" ".join(await prompt_text(length, count, rng, shared)) for length in lengths]


Send = Callable[[Prepared], Coroutine[Any, Any, StreamedAnswer]]


def _sender(client: LoadClient, options: ServeOptions) -> Send:
    async def send(prepared: Prepared) -> StreamedAnswer:
        tokens = prepared.arrival.output_tokens
        return await complete(
            client, options.path, prepared.payload, timeout=options.timeout, ordered_tokens=tokens
        )

    return send


async def _closed_loop(send: Send, counted: Sequence[Prepared], concurrency: int) -> list[StreamedAnswer]:
    """Run `concurrency` clients; each sends its next request when its last is done."""
    waiting = iter(counted)
    answers: list[StreamedAnswer] = []

    async def client() -> None:
        for prepared in waiting:
            answer = await send(prepared)
            answers.append(answer)

    await asyncio.gather(*(client() for _ in range(min(concurrency, len(counted)))))
    return answers


async def _open_loop(send: Send, counted: Sequence[Prepared]) -> tuple[list[StreamedAnswer], list[float]]:
    """Send every request at its own time, whatever became of the others; tell by how many seconds each left late."""
    began = time.perf_counter()
    late: list[float] = []
    async with asyncio.TaskGroup() as group:
        tasks = []
        for prepared in counted:
            early = prepared.arrival.at - (time.perf_counter() - began)
            await asyncio.sleep(max(early, 0.0))
            late.append(max(time.perf_counter() - began - prepared.arrival.at, 0.0))
            tasks.append(group.create_task(send(prepared)))
    return [task.result() for task in tasks], late
