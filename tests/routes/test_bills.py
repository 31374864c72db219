"""What a provider's answer is billed, the same when its model is named as when a route leads to it."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.fleet.backends import Front, events, fleet, serving, text_of, until
from weighbridge.unzip import WINDOW, unzip_of

#: Nano-dollars a token: input 1250, output 2500, cached 200, written to a cache 1562.5.
PRICE = (
    "price: {input_usd_per_million: 1.25, output_usd_per_million: 2.5, cached_usd_per_million: 0.2, "
    "cache_write_usd_per_million: 1.5625}"
)
#: What a request is, at each door.
DOORS = {"gateway": {"model": "big"}, "route": {"model": "auto", "weighbridge": {"placement": "only_cloud"}}}
#: A request that may take what the longest answer here says; no door believes more.
LONG = {"messages": [{"role": "user", "content": "weigh " * 1700}], "max_tokens": 5000}


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def delta(choice: int = 0, finish: str | None = None, **fields: Any) -> bytes:
    return event({"choices": [{"index": choice, "delta": fields, "finish_reason": finish}]})


def told(**usage: Any) -> bytes:
    return event({"choices": [], "usage": usage})


ROLE = delta(role="assistant", content="")
STOP = delta(content="", finish="stop")
DONE = b"data: [DONE]\n\n"


@dataclass
class Provider:
    """Streams what it was given, packed if it was told to. With a `gate` it waits behind the last event."""

    stream: list[bytes]
    whole: bytes = b""
    encoding: str = ""
    gate: asyncio.Event | None = None
    sent: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "GET":
            await self._answer(send, [b'{"data": []}'], b"application/json")
            return
        body = b""
        while (message := await receive()).get("more_body") or "body" in message:
            body += message["body"]
            if not message.get("more_body"):
                break
        streamed = json.loads(body).get("stream")
        kind = b"text/event-stream" if streamed else b"application/json"
        await self._answer(send, self.stream if streamed else [self.whole], kind, self.encoding)

    async def _answer(self, send: Any, parts: list[bytes], kind: bytes, encoding: str = "") -> None:
        headers = [(b"content-type", kind)]
        pack: Callable[[bytes], bytes] = bytes
        if encoding:
            headers.append((b"content-encoding", encoding.encode()))
            wbits = {"gzip": 31, "deflate": 15, "bare": -15}[encoding]
            packer = zlib.compressobj(wbits=wbits)

            def pack(part: bytes) -> bytes:
                return packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH)

        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in parts:
            await send({"type": "http.response.body", "body": pack(part), "more_body": True})
            await asyncio.sleep(0)
        if self.gate is not None and kind == b"text/event-stream":
            self.sent.set()
            await asyncio.wait_for(self.gate.wait(), 10)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def billed(provider: Provider) -> AsyncIterator[Front]:
    async with serving(provider) as url:
        config = f"""
health: {{interval: 0.05, slow_start: 0}}
models:
  small:
    replicas: [{{name: near, url: 'http://127.0.0.1:9', probe: false}}]
  big:
    replicas: [{{name: far, url: '{url}', dialect: openai, {PRICE}}}]
routes:
  auto:
    edge: {{model: small}}
    cloud: {{model: big}}
"""
        async with fleet(config=config) as front:
            yield front


async def ticket_of(front: Front) -> dict[str, Any]:
    await front.idle()
    found: dict[str, Any] = (await front.get("/v1/tickets"))["data"][0]
    return found


def settled(front: Front) -> int:
    """Nano-dollars that the routes' ledger has."""
    ledger = front.gateway.routes["auto"].route.cashier.ledger  # type: ignore[attr-defined]
    return round(ledger.spent().settled * 1e9)


THOUGHTS = [delta(reasoning_content=f" think{number}") for number in range(100)]
TWO = [delta(choice, content=f" t{number}") for number in range(7) for choice in (0, 1)]
XAI = {
    "prompt_tokens": 10120,
    "completion_tokens": 1499,
    "total_tokens": 14428,
    "prompt_tokens_details": {"cached_tokens": 128},
    "completion_tokens_details": {"reasoning_tokens": 2809},
}

#: What is streamed; output tokens; nano-dollars, or None where they depend on how the prompt was weighed.
STREAMS: dict[str, tuple[list[bytes], int, int | None]] = {
    "thinking on top, as the sum says": ([ROLE, delta(content="42"), STOP, told(**XAI)], 4308, 23_285_600),
    "thinking, and no usage": ([ROLE, *THOUGHTS, delta(content="42"), STOP], 101, None),
    "thinking under its other name": ([delta(reasoning=" a"), delta(reasoning=" b"), STOP], 2, None),
    "a refusal, and no usage": ([ROLE, *[delta(refusal=" no")] * 9, STOP], 9, None),
    "calls of tools, and no usage": (
        [
            delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]),
            delta(tool_calls=[{"index": 0, "function": {"arguments": "{}"}}]),
            delta(finish="tool_calls"),
        ],
        2,
        None,
    ),
    "two choices of which usage counts one": (
        [*TWO, delta(0, finish="stop"), delta(1, finish="stop"), told(prompt_tokens=20, completion_tokens=7)],
        14,
        20 * 1250 + 14 * 2500,
    ),
    "several tokens in one event": (
        [delta(content="a lot at once"), STOP, told(prompt_tokens=20, completion_tokens=70)],
        70,
        20 * 1250 + 70 * 2500,
    ),
    "usage that grows with every event": (
        [
            event(
                {
                    "choices": [{"index": 0, "delta": {"content": "x"}}],
                    "usage": {"prompt_tokens": 20, "completion_tokens": number},
                }
            )
            for number in (1, 2, 3)
        ],
        3,
        20 * 1250 + 3 * 2500,
    ),
    "usage in the choice, as Moonshot has it": (
        [
            delta(content="x"),
            event(
                {
                    "choices": [
                        {
                            "index": 0,
                            "delta": {},
                            "finish_reason": "stop",
                            "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25},
                        }
                    ]
                }
            ),
        ],
        5,
        20 * 1250 + 5 * 2500,
    ),
    "usage, and then nothing but zeros": (
        [
            delta(content="x"),
            told(prompt_tokens=20, completion_tokens=5),
            STOP,
            told(prompt_tokens=0, completion_tokens=0, total_tokens=0),
        ],
        5,
        20 * 1250 + 5 * 2500,
    ),
    "the prompt at the beginning, the output at the end": (
        [
            told(prompt_tokens=20, prompt_tokens_details={"cached_tokens": 8}),
            delta(content="x"),
            STOP,
            told(completion_tokens=5),
        ],
        5,
        12 * 1250 + 8 * 200 + 5 * 2500,
    ),
    "numbers in quotes": (
        [delta(content="x"), STOP, told(prompt_tokens="20", completion_tokens="5.0", total_tokens="25")],
        5,
        20 * 1250 + 5 * 2500,
    ),
    "numbers as floats": (
        [delta(content="x"), STOP, told(prompt_tokens=20.0, completion_tokens=1.0, total_tokens=21.0)],
        1,
        20 * 1250 + 2500,
    ),
    "usage beside the answer, as Groq has it": (
        [
            delta(content="x"),
            event(
                {
                    "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
                    "x_groq": {"usage": {"prompt_tokens": 20, "completion_tokens": 5}},
                }
            ),
        ],
        5,
        20 * 1250 + 5 * 2500,
    ),
    "what a cache got": (
        [
            delta(content="x"),
            STOP,
            told(
                prompt_tokens=900,
                completion_tokens=1,
                prompt_tokens_details={"cached_tokens": 64, "cache_write_tokens": 800},
            ),
        ],
        1,
        36 * 1250 + 64 * 200 + 800 * 15625 // 10 + 2500,
    ),
    "an answer about how streams end": (
        [
            delta(content="it ends with `data: [DONE]`"),
            delta(reasoning_content='\n\ndata: [DONE]\n\n"usage": {"prompt_tokens": 1}'),
            delta(content=" and goes on"),
            STOP,
            told(prompt_tokens=20, completion_tokens=30),
        ],
        30,
        20 * 1250 + 30 * 2500,
    ),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", STREAMS)
async def test_a_stream_is_billed_the_same_at_each_door(door: str, case: str) -> None:
    stream, output, nano = STREAMS[case]
    async with billed(Provider([*stream, DONE])) as front:
        n = 2 if "two choices" in case else 1
        answer = await front.stream(n=n, **LONG, **DOORS[door])
        assert answer[-1] == "[DONE]"
        wanted = text_of(events(b"".join(stream)))
        assert text_of(answer) == wanted
        ticket = await ticket_of(front)
        assert ticket["output_tokens"] == output
        if nano is None:
            assert ticket["cost_estimated"]
            nano = ticket["weighed_tokens"] * 1250 + output * 2500
        assert round(ticket["cost_usd"] * 1e9) == nano
        assert settled(front) == (nano if door == "route" else 0)


@pytest.mark.parametrize("door", DOORS)
async def test_a_client_that_leaves_while_it_thinks_pays_for_the_thoughts(door: str) -> None:
    provider = Provider([ROLE, *THOUGHTS[:45]], gate=(gate := asyncio.Event()))
    async with billed(provider) as front:

        async def leave() -> None:
            async with front.post(stream=True, **DOORS[door]) as answer:
                await answer.read()

        reader = asyncio.create_task(leave())
        await provider.sent.wait()
        pool = front.gateway.pools["big"]
        [member] = pool.members.values()
        await until(lambda: member.state.requests == 1)
        await asyncio.sleep(0.3)  # all that was sent arrives
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        gate.set()
        ticket = await ticket_of(front)
        assert (ticket["finish_reason"], ticket["output_tokens"]) == ("abort", 45)
        assert round(ticket["cost_usd"] * 1e9) == ticket["weighed_tokens"] * 1250 + 45 * 2500
        assert member.counts.output_tokens == 45


@pytest.mark.parametrize("door", DOORS)
async def test_a_client_that_leaves_before_anything_comes_pays_for_the_prompt(door: str) -> None:
    provider = Provider([], gate=(gate := asyncio.Event()))
    async with billed(provider) as front:
        reader = asyncio.create_task(front.stream(**DOORS[door]))
        await provider.sent.wait()
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        gate.set()
        ticket = await ticket_of(front)
        assert ticket["output_tokens"] == 0
        assert round(ticket["cost_usd"] * 1e9) == ticket["weighed_tokens"] * 1250 > 0


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_packed_answer_is_read_and_billed(door: str, encoding: str) -> None:
    stream = [ROLE, delta(content="it weighs "), delta(content="a lot"), STOP, told(**XAI), DONE]
    async with billed(Provider(stream, encoding=encoding)) as front:
        assert text_of(await front.stream(**LONG, **DOORS[door])) == "it weighs a lot"
        ticket = await ticket_of(front)
        assert (ticket["output_tokens"], round(ticket["cost_usd"] * 1e9)) == (4308, 23_285_600)


@pytest.mark.parametrize("encoding", ["", "gzip", "deflate"])
async def test_an_answer_in_one_piece_is_unpacked_and_billed(encoding: str) -> None:
    choice = {"index": 0, "message": {"content": "it weighs"}, "finish_reason": "stop"}
    whole = json.dumps({"choices": [choice], "usage": XAI}).encode()
    async with (
        billed(Provider([], whole, encoding)) as front,
        front.post(**{**LONG, "model": "big"}) as answer,
    ):
        assert "content-encoding" not in answer.headers
        assert (await answer.json())["choices"] == [choice]
        assert answer.headers["x-weighbridge-cost"] == "0.0232856"


async def test_a_body_in_an_encoding_that_nobody_asked_for_is_refused_and_named() -> None:
    class Brotli(Provider):
        async def _answer(self, send: Any, parts: list[bytes], kind: bytes, encoding: str = "") -> None:
            headers = [(b"content-type", kind)] + [(b"content-encoding", b"br")] * bool(encoding)
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"".join(parts)})

    async with billed(Brotli([], b"packed", "gzip")) as front, front.post(model="big") as answer:
        assert answer.status == 502
        assert "'br'" in (await answer.json())["error"]["message"]


async def test_a_body_that_unpacks_to_more_than_any_answer_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("weighbridge.fleet.attempt.LARGEST_ANSWER", 4 << 20)
    async with (
        billed(Provider([], b" " * (64 << 20), "gzip")) as front,
        front.post(model="big") as answer,
    ):
        assert answer.status == 502
        assert "does not end" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize(
    ("choices", "usage", "least", "most"),
    [
        (["a" * 400], None, 60, 200),  # no usage at all
        (["a" * 400, "b" * 400], {"prompt_tokens": 20, "completion_tokens": 100}, 150, 400),  # counts one
        (
            ["a" * 400, "b" * 400],
            {"prompt_tokens": 20, "completion_tokens": 190},
            190,
            190,
        ),  # a guess is no floor
        (["a" * 4000], {"prompt_tokens": 20, "completion_tokens": 7}, 7, 7),
    ],
)
async def test_an_answer_in_one_piece_is_counted_where_its_usage_cannot_be_all(
    choices: list[str], usage: Any, least: int, most: int
) -> None:
    whole = {
        "choices": [
            {"index": index, "message": {"content": text[:200], "reasoning_content": text[200:]}}
            for index, text in enumerate(choices)
        ]
    }
    body = json.dumps(whole if usage is None else {**whole, "usage": usage}).encode()
    async with billed(Provider([], body)) as front:
        async with front.post(model="big", n=len(choices)) as answer:
            cost = float(answer.headers["x-weighbridge-cost"])
        ticket = await ticket_of(front)
        assert least <= ticket["output_tokens"] <= most
        assert ticket["cost_usd"] == pytest.approx(cost, abs=1e-9)
        assert cost > 0


def test_gzip_of_several_members_is_one_body() -> None:
    unzip = unzip_of("gzip")
    assert unzip is not None
    packed = gzip.compress(b"one ") + gzip.compress(b"body")
    assert b"".join(b"".join(unzip.pieces(packed[i : i + 1])) for i in range(len(packed))) == b"one body"
    bare = unzip_of("deflate")
    assert bare is not None
    packer = zlib.compressobj(wbits=-15)
    assert b"".join(bare.pieces(packer.compress(b"bare") + packer.flush())) == b"bare"
    assert unzip_of(None) is unzip_of("identity") is None


def test_a_body_of_many_short_members_is_unpacked_in_a_time_that_grows_with_its_length() -> None:
    """Behind each member all the rest was copied: 8 MiB of empty ones took minutes."""
    empty = gzip.compress(b"")
    packed = empty * ((8 << 20) // len(empty)) + gzip.compress(b"body")
    unzip = unzip_of("gzip")
    assert unzip is not None
    began = time.thread_time()
    assert b"".join(unzip.pieces(packed)) == b"body"
    assert time.thread_time() - began < 10.0
    assert unzip.complete


def test_members_are_one_body_wherever_they_end() -> None:
    for size in range(WINDOW - 60, WINDOW + 60):
        first = gzip.compress(os.urandom(size - 23), compresslevel=0)
        unzip = unzip_of("gzip")
        assert unzip is not None
        packed = first + gzip.compress(b"body")
        assert b"".join(unzip.pieces(packed)) == gzip.decompress(packed)
        assert unzip.complete
