"""An invented protocol, to prove that one module is all it takes.

A telegram is asked for with `POST /telegram` and `{"to": model, "text": ..., "words": 9, "wire": true}`. The answer is
one line of JSON a piece: `{"say": ...}`, `{"stop": ..., "paid": [prompt, output]}`, or `{"trouble": ...}`.
"""

from __future__ import annotations

import json

import msgspec

from weighbridge.wire.ask import Ask
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError
from weighbridge.wire.events import ErrorPart, Event, FinishPart, TextPart, UsagePart
from weighbridge.wire.journey import WholeAnswer
from weighbridge.wire.protocol import Encoder, WireProtocol
from weighbridge.wire.protocols import chat


class TelegramRequest(msgspec.Struct):
    text: str
    to: str = ""
    words: int = 5
    wire: bool = False


class TelegramProtocol(WireProtocol):
    name, path, passes_errors = "telegram", "/telegram", False

    def read(self, body: bytes) -> Ask:
        wanted = decode(body, TelegramRequest)
        values = {
            "model": wanted.to,
            "messages": [{"role": "user", "content": wanted.text}],
            "max_tokens": wanted.words,
            "stream": wanted.wire,
        }
        fields = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in values.items()}
        ask = Ask("", chat.PATH, fields, wanted.to, "", stream=wanted.wire, max_tokens=wanted.words)
        ask.wants_usage = True
        fields["stream_options"] = msgspec.Raw(b'{"include_usage":true}')
        return ask

    def encoder(self, ask: Ask) -> Encoder:
        return TelegramEncoder()

    def error(self, error: ApiError, request: str = "") -> bytes:
        return json.dumps({"trouble": str(error), "number": error.status}).encode() + b"\n"


class TelegramEncoder(Encoder):
    stream_type = "application/x-ndjson"
    keep_alive = b""

    def __init__(self) -> None:
        self._stop = ""

    def event(self, event: Event) -> bytes:
        lines = []
        for part in event.parts:
            if isinstance(part, TextPart):
                lines.append({"say": part.text})
            elif isinstance(part, FinishPart):
                self._stop = part.reason
            elif isinstance(part, UsagePart):
                lines.append(
                    {"stop": self._stop, "paid": [part.usage.prompt_tokens, part.usage.output_tokens]}
                )
            elif isinstance(part, ErrorPart):
                lines.append({"trouble": part.message})
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)

    def end(self) -> bytes:
        return b""

    def failure(self, error: ApiError) -> bytes:
        return json.dumps({"trouble": str(error)}).encode() + b"\n"

    def whole(self, answer: WholeAnswer) -> bytes:
        parts = answer.parse(answer.body)
        said = "".join(part.text for part in parts if isinstance(part, TextPart))
        paid = [[p.usage.prompt_tokens, p.usage.output_tokens] for p in parts if isinstance(p, UsagePart)]
        return json.dumps({"said": said, "paid": paid[0]}).encode()
