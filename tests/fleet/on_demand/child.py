"""A server that starts in a tenth of a second and answers as a replica would: `python child.py --port N [--gap S]`.

`--fails`: it ends with code 2 instead, as one whose input is bad. Loading all of the package would be most of
what the tests of loading and unloading take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from typing import Any

LOAD: dict[str, Any] = {
    **dict.fromkeys(("queued_requests", "running_requests", "queued_tokens", "running_tokens"), 0),
    **{"kv_blocks_total": 10_000, "kv_blocks_used": 0, "block_size": 16, "draining": False},
}


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gap: float) -> None:
    """Serve one connection until its client is gone."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        line, *lines = head.decode().split("\r\n")
        headers = dict(one.lower().split(": ", 1) for one in lines if ": " in one)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = line.split()[1]
        if path == "/v1/load":
            _whole(writer, LOAD)
        elif path.startswith("/v1/") and body:
            await _complete(writer, "/chat/" in path, json.loads(body), gap)
        else:
            _whole(writer, {"data": []})
        await writer.drain()


def _whole(writer: asyncio.StreamWriter, value: Any) -> None:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


async def _complete(writer: asyncio.StreamWriter, chat: bool, call: dict[str, Any], gap: float) -> None:
    count = call.get("max_tokens") or 3
    usage = {"prompt_tokens": 5, "completion_tokens": count, "total_tokens": 5 + count}
    if not call.get("stream"):
        await asyncio.sleep(gap * count)
        said = {"message": {"role": "assistant", "content": "t " * count}} if chat else {"text": "t " * count}
        choice = {"index": 0, "finish_reason": "stop", **said}
        _whole(writer, {"id": "x", "choices": [choice], "usage": usage})
        return
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    for index in range(count):
        await asyncio.sleep(gap)
        finish = "stop" if index == count - 1 else None
        said = {"delta": {"content": "t "}} if chat else {"text": "t "}
        _event(writer, json.dumps({"id": "x", "choices": [{"index": 0, "finish_reason": finish, **said}]}))
        await writer.drain()
    _event(writer, json.dumps({"id": "x", "choices": [], "usage": usage}))
    _event(writer, "[DONE]")
    writer.write(b"0\r\n\r\n")


def _event(writer: asyncio.StreamWriter, data: str) -> None:
    event = f"data: {data}\n\n".encode()
    writer.write(b"%x\r\n%b\r\n" % (len(event), event))


async def serve(port: int, gap: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer, gap)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await asyncio.start_server(connected, "127.0.0.1", port)
    await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--gap", type=float, default=0.0)
    parser.add_argument("--fails", action="store_true")
    options = parser.parse_args()
    if options.fails:
        print("error: the file is no model", file=sys.stderr)
        sys.exit(2)
    asyncio.run(serve(options.port, options.gap))


if __name__ == "__main__":
    main()
