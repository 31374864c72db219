"""What the endpoint picker itself spends on a request, without an Envoy: the messages that Envoy would send, replayed.

    python benchmarks/gateway/picker_cpu.py [--rate 25] [--seconds 20] [--chunks 32] [--gap 20] [--answers DUPLEX|NONE]
        [--rounds 2]

A picker over four backends that cost nothing (backend.py), and gRPC's own client in Envoy's place: headers, a body, and
an answer of so many chunks, each of which is waited for like any other. What the idle picker spends on probes and
timers is measured first and taken off. gRPC's client gives room back after each message, where Envoy does so now and
then: what it is for Envoy, epp.py says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).parent))

from backend import CHUNK, LAST
from overhead import BACKENDS, HERE, SEEDS, config, cpu_seconds, free_port, program, wait_for
from prompts import KINDS

from weighbridge.server.picker.messages import (
    DUPLEX,
    NONE,
    HeaderValue,
    ProcessingRequest,
    ProcessingResponse,
)

PATH = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
#: What a request carries on its way through Envoy, beside what it needs.
HEADERS = {
    ":authority": "models",
    ":scheme": "http",
    "content-type": "application/json",
    "user-agent": "a-client/1.0",
    "x-forwarded-proto": "http",
    "x-request-id": "4f9a0b1c-7b3c-4a53-9a55-7c3a3c1d6a10",
}
ANSWER = {":status": "200", "content-type": "text/event-stream", "date": "x", "server": "y"}


def _headers(message: Any, values: dict[str, str]) -> None:
    message.headers.headers.extend(
        HeaderValue(key=name, raw_value=value.encode()) for name, value in values.items()
    )


class Replay:
    """The messages of one request after the other; each prompt is a new one."""

    def __init__(self, channel: Any, chunks: int, gap: float, mode: int) -> None:
        self._begin = channel.stream_stream(
            PATH,
            request_serializer=ProcessingRequest.SerializeToString,
            response_deserializer=ProcessingResponse.FromString,
        )
        self._chunks, self._gap, self._mode = chunks, gap, mode

    async def one(self, prompt: str) -> None:
        call = self._begin()
        body = json.dumps({"model": "m", "stream": True, "max_tokens": self._chunks, "prompt": prompt})
        first = ProcessingRequest()
        _headers(first.request_headers, {":method": "POST", ":path": "/v1/completions", **HEADERS})
        first.protocol_config.request_body_mode = DUPLEX
        first.protocol_config.response_body_mode = self._mode
        await call.write(first)
        rest = ProcessingRequest()
        rest.request_body.body, rest.request_body.end_of_stream = body.encode(), True
        await call.write(rest)
        await call.read()
        await call.read()
        head = ProcessingRequest()
        _headers(head.response_headers, ANSWER)
        await call.write(head)
        await call.read()
        if self._mode != NONE:
            for number in range(self._chunks + 1):
                piece = ProcessingRequest()
                piece.response_body.body = CHUNK if number < self._chunks else LAST
                await call.write(piece)
                await call.read()
                await asyncio.sleep(self._gap)
            end = ProcessingRequest()
            end.response_body.end_of_stream = True
            await call.write(end)
            await call.read()
        await call.done_writing()
        if await call.read() is not grpc.aio.EOF:
            raise SystemExit("the picker says more than it was asked")


async def offered(port: int, arguments: argparse.Namespace, seconds: float) -> int:
    """Requests at a constant rate; return how many were made."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        mode = DUPLEX if arguments.answers == "DUPLEX" else NONE
        replay = Replay(channel, arguments.chunks, arguments.gap / 1e3, mode)
        prompts = KINDS["prose"](arguments.size, round(seconds * arguments.rate), next(SEEDS))
        began, tasks = time.monotonic(), []
        for number, prompt in enumerate(prompts):
            await asyncio.sleep(max(began + number / arguments.rate - time.monotonic(), 0.0))
            tasks.append(asyncio.create_task(replay.one(prompt)))
        await asyncio.gather(*tasks)
        return len(tasks)


def measured(pid: int, port: int, arguments: argparse.Namespace) -> float:
    """Microseconds of the picker's processor time for each request, less those of an idle one."""
    asyncio.run(offered(port, arguments, 3.0))  # warm
    before = cpu_seconds(pid)
    time.sleep(5.0)
    idle = (cpu_seconds(pid) - before) / 5.0
    print(f"idle: {1e3 * idle:.1f} ms of processor time a second")
    found = []
    for _ in range(arguments.rounds):
        before, began = cpu_seconds(pid), time.monotonic()
        count = asyncio.run(offered(port, arguments, arguments.seconds))
        spent = cpu_seconds(pid) - before - idle * (time.monotonic() - began)
        found.append(1e6 * spent / count)
        print(f"{count} requests: {found[-1]:.0f} µs each", flush=True)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=25.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--gap", type=float, default=20.0, help="milliseconds between two chunks")
    parser.add_argument("--size", type=int, default=2048, help="bytes of a prompt")
    parser.add_argument("--answers", choices=("DUPLEX", "NONE"), default="DUPLEX")
    arguments = parser.parse_args()
    backends, picker, http = free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        directory = Path(folder)
        file = directory / "fleet.yaml"
        file.write_text(config([backends + number for number in range(BACKENDS)], http))
        command = [sys.executable, str(HERE / "backend.py"), str(backends), str(BACKENDS)]
        stack.enter_context(program(command, 1, directory / "backend.log"))
        wait_for(backends)
        command = [sys.executable, "-m", "weighbridge", "epp", "--config", str(file), "--port", str(picker)]
        epp = stack.enter_context(program(command, 0, directory / "picker.log"))
        wait_for(http)
        print(f"{measured(epp.pid, picker, arguments):.0f} µs a request")


if __name__ == "__main__":
    main()
