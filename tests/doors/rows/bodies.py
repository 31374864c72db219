"""What may be wrong with a body before a field of it is looked at, and with the HTTP around it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable

from tests.doors.client import Reply
from tests.doors.table import CHAT, Row, Want, bad, chat, ok

TOO_LARGE = Want(413, "body_too_large", "invalid_request_error", error=True, left=False)
DEEP = 100_000


def text(**fields: object) -> str:
    return json.dumps(chat(**fields))


def chunked(model: str, host: str, *chunks: bytes, more: str = "") -> list[bytes]:
    """A chat in these chunks, each a write of its own."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    pieces = [f"{head}{more}Transfer-Encoding: chunked\r\n\r\n".encode()]
    pieces += [
        b"%x\r\n%b\r\n" % (len(chunk), chunk)
        for chunk in (c.replace(b"$MODEL", model.encode()) for c in chunks)
    ]
    return [*pieces, b"0\r\n\r\n"]


def begins_with_an_event(reply: Reply) -> bool:
    return reply.body.startswith(b"data: {") and reply.body.endswith(b"data: [DONE]\n\n")


LONG = "y" * 100_000


def is_short(reply: Reply) -> bool:
    return len(reply.body) < 3_000


def halves(body: bytes) -> list[bytes]:
    return [body[: len(body) // 2], body[len(body) // 2 :]]


def one_dot_zero(model: str, host: str) -> list[bytes]:
    body = text().replace("$MODEL", model).encode()
    return [
        b"POST %b HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (CHAT.encode(), len(body), body)
    ]


def streamed_one_dot_zero(model: str, host: str) -> list[bytes]:
    body = text(stream=True).replace("$MODEL", model).encode()
    return [b"POST %b HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)]


def packed(model: str, host: str, encoding: str, pack: Callable[[bytes], bytes]) -> list[bytes]:
    body = pack(text().replace("$MODEL", model).encode())
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    more = f"Content-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
    return [f"{head}{more}".encode() + body]


def whole_url(model: str, host: str) -> list[bytes]:
    body = text().replace("$MODEL", model).encode()
    more = f"Host: {host}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return [f"POST http://{host}{CHAT} HTTP/1.1\r\n{more}".encode() + body]


BODIES = [
    Row("an empty body", bad(says="empty"), b""),
    Row("no body at all", bad(says="empty")),
    Row("a body of white space", bad(says="empty"), b" \r\n\t "),
    Row("half a body", bad(says="not valid JSON"), text().encode()[:-5]),
    Row("a body with a comma too many", bad(says="not valid JSON"), text().encode()[:-1] + b",}"),
    Row("a body with single quotes", bad(says="not valid JSON"), text().replace('"', "'").encode()),
    Row("two bodies in one", bad(says="not valid JSON"), text().encode() * 2),
    Row("a form", bad(says="not valid JSON"), b"model=$MODEL&messages=hello"),
    Row("NaN as a number", bad(says="not valid JSON"), text(temperature="@").replace('"@"', "NaN").encode()),
    Row(
        "Infinity as a number",
        bad(says="not valid JSON"),
        text(max_tokens="@").replace('"@"', "Infinity").encode(),
    ),
    *(
        Row(f"the body {word}", bad(), word.encode())
        for word in ("[]", "null", "true", "7", '"hello"', "[{}]")
    ),
    Row("a byte order mark before the body", bad(says="not valid JSON"), b"\xef\xbb\xbf" + text().encode()),
    Row("a body in UTF-16", bad(says="not valid JSON"), text().encode("utf-16")),
    Row("a body in Latin-1", bad(), text(user="@").replace("@", "Jörg").encode("latin-1")),
    Row(
        "a message in Latin-1",
        bad(says="not valid JSON"),
        text(messages=[{"role": "user", "content": "@"}]).replace("@", "Jörg").encode("latin-1"),
    ),
    Row(
        "a field whose name is in Latin-1",
        bad(says="not valid JSON"),
        text(odd="@").replace("odd", "größe").encode("latin-1"),
    ),
    Row(
        "a number beyond all numbers in a message",
        bad(says="out of range"),
        text(messages=[{"role": "user", "content": "weigh it", "odd": "@"}]).replace('"@"', "1e999").encode(),
    ),
    Row("a NUL in the body", bad(says="not valid JSON"), text().encode() + b"\x00"),
    Row("a body nested without end", bad(), b"[" * DEEP),
    Row("a field nested too deeply", bad(), text(x="@").replace('"@"', "[" * DEEP + "]" * DEEP).encode()),
    Row(
        "a message nested too deeply",
        bad(),
        text(messages="@")
        .replace('"@"', '[{"role":"user","content":' + "[" * DEEP + "]" * DEEP + "}]")
        .encode(),
    ),
    Row(
        "a field named twice: the last one counts",
        ok(tokens=4),
        text().replace('"model"', '"model": "nobody", "model"', 1).encode(),
    ),
    Row(
        "a number of ten thousand digits",
        bad("max_tokens"),
        text(max_tokens="@").replace('"@"', "9" * 10_000).encode(),
    ),
    Row("a body over the limit", TOO_LARGE, b'{"x": "' + b"y" * (9 << 20) + b'"}'),
    Row(
        "a body over the limit in chunks",
        TOO_LARGE,
        pieces=lambda model, host: chunked(model, host, *[b"y" * (1 << 20)] * 9),
    ),
    Row(
        "a body said to be over the limit",
        TOO_LARGE,
        text().encode(),
        headers=(("Content-Length", str(1 << 40)),),
        patience=5.0,
    ),
    # -- what surrounds it
    Row("a body called plain text", ok(tokens=4), chat(), headers=(("Content-Type", "text/plain"),)),
    Row(
        "a body called a form",
        ok(tokens=4),
        chat(),
        headers=(("Content-Type", "application/x-www-form-urlencoded"),),
    ),
    Row(
        "JSON with a charset",
        ok(tokens=4),
        chat(),
        headers=(("Content-Type", "application/json; charset=utf-8"),),
    ),
    Row("a body without a type", ok(tokens=4), chat(), headers=(("Content-Type", ""),)),
    Row("a client that takes only HTML", ok(tokens=4), chat(), headers=(("Accept", "text/html"),)),
    Row(
        "a body in chunks",
        ok(tokens=4),
        pieces=lambda model, host: chunked(model, host, *halves(text().encode())),
    ),
    Row(
        "a body in chunks that cut a character",
        ok(tokens=4, tenant="Jörg"),
        pieces=lambda model, host: chunked(
            model, host, *text(weighbridge={"tenant": "@"}).replace("@", "Jörg").encode().partition(b"\xc3")
        ),
    ),
    Row(
        "a body in two writes",
        ok(tokens=4),
        pieces=lambda model, host: chunked(model, host, *halves(text().encode())),
        pause=0.05,
    ),
    Row(
        "a client that asks before it sends",
        ok(tokens=4),
        pieces=lambda model, host: chunked(model, host, text().encode(), more="Expect: 100-continue\r\n"),
        pause=0.02,
    ),
    Row("HTTP/1.0", ok(tokens=4), pieces=one_dot_zero),
    Row(
        "a stream in HTTP/1.0, which knows no chunks",
        ok(tokens=4, headers={"transfer-encoding": None, "connection": "close"}, body=begins_with_an_event),
        pieces=streamed_one_dot_zero,
    ),
    Row("a whole URL as the target", ok(tokens=4), pieces=whole_url),
    Row(
        "an upgrade to HTTP/2 that nobody needs",
        ok(tokens=4),
        chat(),
        headers=(
            ("Connection", "Upgrade, HTTP2-Settings"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "AAMAAABkAAQAoAAAAAIAAAAA"),
        ),
    ),
    Row(
        "a body packed with gzip",
        ok(tokens=4),
        pieces=lambda model, host: packed(model, host, "gzip", gzip.compress),
    ),
    Row(
        "a body packed with deflate",
        ok(tokens=4),
        pieces=lambda model, host: packed(model, host, "deflate", zlib.compress),
    ),
    Row("a body that says it is as it is", ok(tokens=4), chat(), headers=(("Content-Encoding", "identity"),)),
    Row(
        "a small body that is a very long one",
        TOO_LARGE,
        gzip.compress(b" " * (80 << 20)),
        headers=(("Content-Encoding", "gzip"),),
    ),
    Row(
        "half a packed body",
        bad(says="ends too early"),
        gzip.compress(text().encode())[:-12],
        headers=(("Content-Encoding", "gzip"),),
    ),
    Row(
        "a body that says it is packed and is not",
        bad(says="cannot be unpacked"),
        text().encode(),
        headers=(("Content-Encoding", "gzip"),),
    ),
    Row(
        "a body packed in a way nobody here knows",
        Want(
            415,
            "unsupported_encoding",
            "invalid_request_error",
            says="only gzip and deflate",
            error=True,
            left=False,
        ),
        text().encode(),
        headers=(("Content-Encoding", "zstd"),),
    ),
    # -- what a server in front could read in another way
    Row(
        "two lengths that agree",
        Want(400),
        text().encode(),
        headers=(("Content-Length", "5"), ("Content-Length", "5")),
    ),
    Row(
        "two lengths that do not",
        Want(400),
        text().encode(),
        headers=(("Content-Length", "5"), ("Content-Length", "6")),
    ),
    Row("a length that is no number", Want(400), text().encode(), headers=(("Content-Length", "many"),)),
    Row("a negative length", Want(400), text().encode(), headers=(("Content-Length", "-5"),)),
    Row(
        "a length and chunks",
        Want(400),
        pieces=lambda model, host: chunked(model, host, text().encode(), more="Content-Length: 5\r\n"),
    ),
    Row(
        "a chunk whose size is no number",
        Want(400),
        pieces=lambda model, host: [chunked(model, host)[0], b"many\r\n"],
    ),
    Row("a space before a header's colon", Want(400), chat(), headers=(("X-Odd ", "value"),)),
    Row("a header without a name", Want(400), chat(), headers=(("", "value"),)),
    Row("a NUL in a header", Want(400), chat(), headers=(("X-Odd", b"a\x00b"),)),
    Row("no request at all", Want(400), pieces=lambda model, host: [b"hello\r\n\r\n"]),
    # -- headers that mean something elsewhere
    Row("a part of an answer", ok(tokens=4), chat(), headers=(("Range", "bytes=0-10"),)),
    Row("only if it has changed", ok(tokens=4), chat(), headers=(("If-None-Match", "*"),)),
    Row(
        "an answer that may be packed",
        ok(tokens=4, headers={"content-encoding": None}),
        chat(),
        headers=(("Accept-Encoding", "gzip, br"),),
    ),
    Row(
        "another method's name in a header",
        ok(tokens=4),
        chat(),
        headers=(("X-HTTP-Method-Override", "DELETE"),),
    ),
    Row("a header a hundred times", ok(tokens=4), chat(), headers=(("X-Odd", "value"),) * 90),
    Row("a field of a megabyte that nobody knows", ok(tokens=4), chat(padding="y" * (1 << 20))),
    Row(
        "twenty thousand messages",
        bad(code="context_length_exceeded"),
        chat(messages=[{"role": "user", "content": "x"}] * 20_000, weighbridge={"placement": "only_edge"}),
    ),
    # -- what is long is not said back
    *(
        Row(
            f"a {what} of a hundred thousand letters, at {path}",
            Want(status, body=is_short, left=False),
            body,
            path=path,
        )
        for what, status, path, body in (
            ("model", 404, CHAT, chat(model=LONG)),
            ("model", 404, "/v1/messages", chat(model=LONG)),
            ("model", 404, "/api/chat", chat(model=LONG)),
            ("model", 404, "/v1/responses", {"model": LONG, "input": "x"}),
            ("model", 404, "/v1/embeddings", {"model": LONG, "input": "x"}),
            ("choice of a tool", 400, CHAT, chat(tool_choice=LONG)),
            ("format", 400, CHAT, chat(response_format={"type": LONG})),
            ("placement", 400, CHAT, chat(weighbridge={"placement": LONG})),
            ("field", 400, CHAT, chat(weighbridge={LONG: 1})),
        )
    ),
    Row(
        "a path of thirty thousand letters",
        Want(404, body=is_short),
        method="GET",
        path=f"/v1/tickets/{LONG[:30_000]}",
    ),
]
