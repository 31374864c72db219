"""A replica that costs nothing: answers at once with as many SSE chunks as asked for, stamped with its clock.

    python benchmarks/gateway/backend.py PORT [COUNT]

With COUNT it is so many replicas, on as many ports from PORT on.

Written straight on asyncio's protocol, so that the backend does not hide what a gateway adds. The first chunk
carries, in nanoseconds of the machine's monotonic clock, when the request was complete here and when the answer
left: whatever else a client measures, the network and the gateway did.
"""

from __future__ import annotations

import asyncio
import sys
import time

import httptools
import uvloop

LOAD = (
    b'{"queued_requests":0,"running_requests":0,"queued_tokens":0,"running_tokens":0,"kv_blocks_total":100000,'
    b'"kv_blocks_used":0,"block_size":16,"draining":false}'
)
CHUNK = (
    b'data: {"id":"cmpl-5b7f3c","object":"text_completion","created":1,"model":"m","choices":[{"index":0,'
    b'"text":" word","logprobs":null,"finish_reason":null}]}\n\n'
)
LAST = (
    b'data: {"id":"cmpl-5b7f3c","object":"text_completion","created":1,"model":"m","choices":[{"index":0,'
    b'"text":"","logprobs":null,"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Backend(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.chunks = 8
        self.gap = 0.0

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.url, self.chunks, self.gap = b"", 8, 0.0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        """`"max_tokens": N` is the number of chunks, `"seed": M` the microseconds between them."""
        for name in (b'"max_tokens":', b'"seed":'):
            at = body.find(name)
            if at >= 0:
                number = int(body[at + len(name) :].lstrip().split(b",")[0].split(b"}")[0])
                if name == b'"seed":':
                    self.gap = number / 1e6
                else:
                    self.chunks = number

    def on_message_complete(self) -> None:
        if b"/v1/completions" in self.url or b"/v1/chat" in self.url:
            self.task = asyncio.ensure_future(self.stream(time.monotonic_ns()))
            return
        body = LOAD if b"/v1/load" in self.url else b'{"data":[{"id":"m"}]}'
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)  # type: ignore[attr-defined]

    async def stream(self, received: int) -> None:
        write = self.transport.write  # type: ignore[attr-defined]
        stamp = b'data: {"choices":[{"index":0,"text":"a","finish_reason":null}],"in":%d,"out":%d}\n\n'
        write(HEAD + framed(stamp % (received, time.monotonic_ns())))
        if self.gap:
            started = time.monotonic()
            for index in range(1, self.chunks):
                await asyncio.sleep(max(started + index * self.gap - time.monotonic(), 0.0))
                write(framed(CHUNK))
        else:
            for index in range(1, self.chunks):
                write(framed(CHUNK))
                if index % 8 == 0:
                    await asyncio.sleep(0)
        write(framed(LAST) + b"0\r\n\r\n")


async def main(port: int, count: int = 1) -> None:
    loop = asyncio.get_running_loop()
    for number in range(count):
        await loop.create_server(Backend, "127.0.0.1", port + number)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(*map(int, sys.argv[1:])))
