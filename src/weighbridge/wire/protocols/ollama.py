"""Ollama's API: a chat, a prompt and embeddings, answered line by line.

A request is the chat, completion or embedding that it means. Options that change nothing here (`num_ctx`, `num_gpu`)
are accepted; what would change an answer and cannot be had is an error. `keep_alive` counts for models that are loaded
on demand; others stay loaded.
"""

from __future__ import annotations

import binascii
import json
import math
import re
import time
from abc import abstractmethod
from base64 import b64decode
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeGuard

import msgspec
from msgspec import Meta, Struct

from weighbridge.cost.usage import Usage
from weighbridge.ticket import Ticket
from weighbridge.wire.ask import Ask, Extension
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError
from weighbridge.wire.events import (
    ErrorPart,
    Event,
    FinishPart,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    UsagePart,
)
from weighbridge.wire.journey import WholeAnswer
from weighbridge.wire.protocol import Encoder, WireProtocol
from weighbridge.wire.protocols import completions, embeddings
from weighbridge.wire.protocols.chat import ChatProtocol
from weighbridge.wire.protocols.names import Names
from weighbridge.wire.protocols.openai import body_of, object_of
from weighbridge.wire.usage import read_usage

CHAT_PATH, GENERATE_PATH = "/api/chat", "/api/generate"
EMBED_PATH, EMBEDDINGS_PATH = "/api/embed", "/api/embeddings"
NDJSON = "application/x-ndjson"

_encode = msgspec.json.encode
_chat, _completion = ChatProtocol(), completions.CompletionProtocol()
_embedding = embeddings.EmbeddingProtocol()

#: What a client of Ollama calls what a chat has, where they differ.
_OWN = {
    **{name: f"options.{name}" for name in ("temperature", "top_p", "top_k", "min_p", "seed", "stop")},
    **{name: f"options.{name}" for name in ("presence_penalty", "frequency_penalty")},
    "repetition_penalty": "options.repeat_penalty",
    "max_tokens": "options.num_predict",
    "response_format": "format",
    "response_format.json_schema": "format",
    "response_format.json_schema.schema": "format",
    "reasoning_effort": "think",
    "chat_template_kwargs": "think",
}
_names = Names(_OWN)

Format = str | dict[str, Any]
Name = Annotated[str, Meta(min_length=1)]


class OllamaOptions(Struct, kw_only=True):
    """The options that an answer depends on. All others are about how Ollama runs a model, and pass unheeded."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    num_predict: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    typical_p: float | None = None
    mirostat: int | None = None


class _Request(Struct, kw_only=True):
    model: Name
    options: OllamaOptions | None = None
    keep_alive: Any = None
    weighbridge: dict[str, Any] | None = None


class _Answering(_Request, kw_only=True):
    """What a chat and a prompt have in common."""

    stream: bool | None = None
    format: Format | None = None
    think: bool | str | None = None
    logprobs: bool | None = None


class OllamaFunction(Struct):
    name: str
    arguments: dict[str, Any] | str | None = None


class OllamaCall(Struct):
    function: OllamaFunction
    id: str | None = None


class OllamaMessage(Struct):
    role: Name
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None
    name: str | None = None  # as `tool_name` was called before
    tool_call_id: str | None = None


class OllamaChatRequest(_Answering, kw_only=True):
    messages: list[OllamaMessage] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaGenerateRequest(_Answering, kw_only=True):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[str] | None = None
    raw: bool | None = None


class OllamaEmbedRequest(_Request, kw_only=True):
    input: Any = None
    dimensions: int | None = None
    truncate: bool | None = None


class OllamaEmbeddingsRequest(_Request, kw_only=True):
    prompt: str | None = None


class NamedModel(Struct):
    """A request about a model."""

    model: str | None = None
    name: str | None = None  # as `model` was called before
    stream: bool | None = None

    @property
    def wanted(self) -> str:
        name = model_name(self.model or self.name or "")
        if not name:
            raise ApiError(400, "model: is required", param="model")
        return name


class OllamaProtocol(WireProtocol):
    """What its endpoints share: errors are one sentence."""

    passes_errors = False
    names = _names

    def error(self, error: ApiError, request: str = "") -> bytes:
        return error_line(error, self.names)


class OllamaChat(OllamaProtocol):
    name, path = "ollama_chat", CHAT_PATH

    def read(self, body: bytes) -> Ask:
        request = decode(body, OllamaChatRequest)
        values = _sampling(request)
        if not request.messages:
            return _unasked(request, ChatLines(request.model))
        values["messages"] = chat_messages(request.messages)
        last = values["messages"][-1]
        if last["role"] == "assistant" and "tool_calls" not in last:  # an answer that has begun goes on
            values |= {"continue_final_message": True, "add_generation_prompt": False}
        if request.tools:
            values["tools"] = [{"type": "function", **tool} for tool in request.tools]
        return _asked(_chat, values, request)

    def encoder(self, ask: Ask) -> Encoder:
        return ChatLines(ask.model, gathers=ask.own)


class OllamaGenerate(OllamaProtocol):
    name, path = "ollama_generate", GENERATE_PATH
    names = Names(
        _OWN
        | {"messages[].images": "images", "messages[].content": "prompt", "messages[]": "prompt"}
        | {"structured_outputs": "format", "structured_outputs.json": "format"}
    )

    def read(self, body: bytes) -> Ask:
        request = decode(body, OllamaGenerateRequest)
        _check(request)
        values = _sampling(request)
        if not request.prompt and not request.images:
            return _unasked(request, GenerateLines(request.model))
        if request.raw:
            form = values.pop("response_format", None)
            if form is not None:
                values["structured_outputs"] = _constraint(form)
            for name in ("reasoning_effort", "chat_template_kwargs"):  # a completion has neither
                values.pop(name, None)
            values.setdefault("max_tokens", _RAW_TOKENS)
            return _asked(_completion, {**values, "prompt": request.prompt or ""}, request)
        messages = [OllamaMessage("system", request.system)] if request.system else []
        messages.append(OllamaMessage("user", request.prompt or "", images=request.images))
        return _asked(_chat, {**values, "messages": chat_messages(messages, of_prompt=True)}, request)

    def encoder(self, ask: Ask) -> Encoder:
        return GenerateLines(ask.model, gathers=ask.own)


class OllamaEmbed(OllamaProtocol):
    name, path = "ollama_embed", EMBED_PATH

    def read(self, body: bytes) -> Ask:
        request = decode(body, OllamaEmbedRequest)
        values = {"input": request.input, "dimensions": request.dimensions}
        return _keeping(_embedding.read(_body({**_common(request), **values})), request)

    def encoder(self, ask: Ask) -> Encoder:
        return Vectors(ask.model)


class OllamaEmbeddings(OllamaProtocol):
    """One text's vector, as it was asked for before `/api/embed`."""

    name, path = "ollama_embeddings", EMBEDDINGS_PATH
    names = Names({"input": "prompt"})

    def read(self, body: bytes) -> Ask:
        request = decode(body, OllamaEmbeddingsRequest)
        return _keeping(_embedding.read(_body({**_common(request), "input": request.prompt or ""})), request)

    def encoder(self, ask: Ask) -> Encoder:
        return OneVector(ask.model)


# -- requests --------------------------------------------------------------------------------------------

#: Options that an answer would depend on, and the values that mean that they are not used.
_UNUSED: Mapping[str, tuple[float, ...]] = {"mirostat": (0,), "typical_p": (0, 1)}
#: Tokens of an answer to a raw prompt that names no bound; a completion would stop at 16.
_RAW_TOKENS = 1024
#: Durations as Go writes them, and the seconds of each unit.
_DURATION = re.compile(r"(\d{1,15}(?:\.\d{0,9})?)(ns|us|µs|ms|s|m|h)", re.ASCII)
_KEPT = re.compile(
    r"([+-]?)((?:\d{1,15}(?:\.\d{0,9})?(?:ns|us|µs|ms|s|m|h)){1,8}|\d{1,15}(?:\.\d{0,9})?|\.\d{1,9})",
    re.ASCII,
)
_FOR_EVER = 1e12  # seconds that are as good as for ever
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
#: What a name ends in that names no other version.
_LATEST = ":latest"


def model_name(name: str) -> str:
    """The name of a model without the tag that all names without a tag have."""
    return name.removesuffix(_LATEST)


def _common(request: _Request) -> dict[str, Any]:
    return {"model": model_name(request.model), "weighbridge": request.weighbridge}


def _body(values: Mapping[str, Any]) -> bytes:
    return _encode({name: value for name, value in values.items() if value is not None})


def _asked(protocol: WireProtocol, values: Mapping[str, Any], request: _Answering) -> Ask:
    """The request as OpenAI has it; `own` says that the client wants one body."""
    ask = _keeping(protocol.read(_body(values)), request)
    ask.own = request.stream is False
    return ask


def _keeping(ask: Ask, request: _Request) -> Ask:
    """The request with its wish for how long its model stays loaded."""
    ask.keep_alive = keep_alive_seconds(request.keep_alive)
    return ask


def keep_alive_seconds(value: Any) -> float | None:
    """What Ollama's `keep_alive` means: seconds, or a duration such as "5m" or "1h30m"; below 0: for ever.

    Raises ApiError for what is none.
    """
    if value is None:
        return None
    seconds = None
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:  # NaN is not
        seconds = float(max(-1.0, min(value, _FOR_EVER)))
    elif isinstance(value, str) and (written := _KEPT.fullmatch(value)):
        parts = _DURATION.findall(written[2])
        seconds = sum(float(count) * _UNITS[unit] for count, unit in parts) if parts else float(written[2])
        seconds = -seconds if written[1] == "-" else seconds
    if seconds is None:
        raise ApiError(
            400, f'keep_alive: {str(value)[:40]!r} is no duration; write seconds, or "5m"', param="keep_alive"
        )
    return math.inf if seconds < 0 else seconds


def _sampling(request: _Answering) -> dict[str, Any]:
    """All fields of an OpenAI request but what is asked."""
    options = request.options or OllamaOptions()
    for name, unused in _UNUSED.items():
        value = getattr(options, name)
        if value is not None and value not in unused:
            remedy = "use temperature, top_p, top_k or min_p"
            raise ApiError(400, f"options.{name}: this way of sampling is not supported; {remedy}")
    if request.logprobs:
        raise ApiError(400, "logprobs: are not given here; ask at /v1/chat/completions")
    # A stream in any case: of an answer in one piece nobody would know when its first token came.
    values = _common(request) | {
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": options.temperature,
        "top_p": None if not options.top_p else min(options.top_p, 1.0),
        "top_k": options.top_k,
        "min_p": options.min_p,
        "seed": options.seed,
        "stop": options.stop or None,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "repetition_penalty": options.repeat_penalty,
        "response_format": _response_format(request.format),
    }
    if options.num_predict is not None and options.num_predict > 0:  # else as many as there is room for
        values["max_tokens"] = options.num_predict
    if isinstance(request.think, bool):
        values["chat_template_kwargs"] = {"enable_thinking": request.think}
    elif request.think:
        values["reasoning_effort"] = request.think
    return {name: value for name, value in values.items() if value is not None}


def _response_format(form: Format | None) -> dict[str, Any] | None:
    if not form:
        return None
    if isinstance(form, dict):
        schema = {"name": "answer", "schema": form, "strict": True}
        return {"type": "json_schema", "json_schema": schema}
    if form != "json":
        raise ApiError(400, f"format: must be 'json' or a JSON schema, not {form[:40]!r}")
    return {"type": "json_object"}


def _constraint(form: Mapping[str, Any]) -> dict[str, Any]:
    """A format as the constraint of a completion, which knows no `response_format` elsewhere."""
    return {"json": form["json_schema"]["schema"] if "json_schema" in form else {"type": "object"}}


def _check(request: OllamaGenerateRequest) -> None:
    """Raises ApiError for what would change the prompt and cannot be had."""
    if request.suffix:
        raise ApiError(400, "suffix: inserting between prompt and suffix is not supported; leave it out")
    if request.template:
        raise ApiError(
            400, "template: a model's own template is used here; with `raw` the prompt goes in as it is"
        )
    if request.context:
        raise ApiError(
            400, "context: earlier turns are not kept as tokens; send them to /api/chat as messages"
        )
    if request.raw and (request.system or request.images):
        raise ApiError(400, "raw: the prompt goes in as it is, without `system` and `images`")


def chat_messages(messages: Sequence[OllamaMessage], *, of_prompt: bool = False) -> list[dict[str, Any]]:
    """Messages as a chat has them. Ollama's calls may have no ids: what a tool says belongs to the call of its name, or
    to the next one that nobody answered. `of_prompt`: the client has written a prompt, and no messages."""
    made: list[dict[str, Any]] = []
    pending = _Pending([])
    for index, message in enumerate(messages):
        role, text = message.role, message.content or ""
        if role == "tool":
            name = message.tool_name or message.name or ""
            made.append(
                {
                    "role": role,
                    "content": text,
                    "tool_call_id": pending.answer(message.tool_call_id, name),
                }
            )
            continue
        content: Any = text
        if message.images:
            content = [{"type": "text", "text": text}] if text else []
            content += [
                _image(image, f"images[{n}]" if of_prompt else f"messages[{index}].images[{n}]")
                for n, image in enumerate(message.images)
            ]
        one: dict[str, Any] = {"role": role, "content": content}
        if message.thinking:
            one["reasoning_content"] = message.thinking
        if message.tool_calls:
            one["tool_calls"] = [
                _call(call, f"call_{index}_{n}") for n, call in enumerate(message.tool_calls)
            ]
            pending = _Pending(one["tool_calls"])
        made.append(one)
    return made


class _Pending:
    """Calls that nobody answered yet, found in the same time however many there are."""

    def __init__(self, calls: Sequence[Mapping[str, Any]]) -> None:
        self._ids = OrderedDict((number, str(call["id"])) for number, call in enumerate(calls))
        self._named: defaultdict[str, deque[int]] = defaultdict(deque)
        self._numbers: defaultdict[str, list[int]] = defaultdict(list)  # by id
        for number, call in enumerate(calls):
            self._named[call["function"]["name"]].append(number)
            self._numbers[call["id"]].append(number)

    def answer(self, id: str | None, name: str) -> str:
        """The id of the call that a tool's message answers; it is pending no more."""
        if id is not None:
            for number in self._numbers.pop(id, ()):
                self._ids.pop(number, None)
            return id
        named = self._named.get(name) if name else None
        while named:
            number = named.popleft()
            if number in self._ids:
                return self._ids.pop(number)
        if self._ids:
            return self._ids.popitem(last=False)[1]
        return f"call_{name or 'unknown'}"


def _call(call: OllamaCall, id: str) -> dict[str, Any]:
    arguments = call.function.arguments or {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {
        "id": call.id or id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": text},
    }


#: What files of pictures begin with.
_MARKS = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"), (b"BM", "bmp"))


def _image(data: str, place: str) -> dict[str, Any]:
    """A picture in base64 as the data URL that a chat has, which says of which kind it is."""
    if data.startswith("data:"):
        return {"type": "image_url", "image_url": {"url": data}}
    try:
        head = b64decode(data[:64], validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{place}: must be a picture in base64", param="images") from None
    kind = next((kind for mark, kind in _MARKS if head.startswith(mark)), None)
    if kind is None:
        known = ", ".join(kind for _, kind in _MARKS)
        raise ApiError(400, f"{place}: is none of the pictures that are known ({known})", param="images")
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}


def _unasked(request: _Answering, lines: Lines) -> Ask:
    """Nothing is to be computed: such requests load a model, or with `keep_alive: 0` unload it."""
    reason = "unload" if request.keep_alive in (0, "0", "0s", "0m") else "load"
    ask = Ask("", CHAT_PATH, {}, model_name(request.model), "")
    ask.extension = decode(_encode(request.weighbridge or {}), Extension)
    ask.answer = lines.line("", done=True, done_reason=reason)
    return _keeping(ask, request)


# -- answers ---------------------------------------------------------------------------------------------


def error_line(error: ApiError, names: Names = _names) -> bytes:
    """An error as a body, or as the last line of a stream."""
    return _encode({"error": names.message(error)}) + b"\n"


def stamp(seconds: float) -> str:
    """Seconds of the epoch as Ollama writes a time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def nanoseconds(seconds: float) -> int:
    return max(round(seconds * 1e9), 0)


def _first_token(ticket: Ticket) -> float | None:
    """When the first token of an answer came; where a route held it back to judge it, that was before it was shown."""
    seen = [leg.first_token for leg in ticket.legs if leg.first_token is not None]
    return seen[-1] if seen else ticket.first_token


class Timed(Encoder):
    """Knows how long an answer took: from the request to its end, and where its first token was seen, to that."""

    stream_type = NDJSON
    keep_alive = b""  # every line would be a piece of the answer to somebody

    def __init__(self, model: str) -> None:
        self.model = model
        self.usage: Usage | None = None
        self._ticket: Ticket | None = None
        self._began = time.time()

    def begin(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self.model = self.model or ticket.model
        self._began = ticket.arrived or self._began

    def figures(self) -> dict[str, Any]:
        """Durations in ns and counts of tokens. What nobody measured or counted is left out."""
        now = time.time()
        told = {"total_duration": nanoseconds(now - self._began), "load_duration": 0}  # models are loaded
        ticket = self._ticket
        first = _first_token(ticket) if ticket is not None else None
        if self.usage is not None:
            told |= {"prompt_eval_count": self.usage.prompt_tokens, "eval_count": self.usage.output_tokens}
        if first is not None and first > self._began:
            told["prompt_eval_duration"] = nanoseconds(first - self._began)
            told["eval_duration"] = nanoseconds(now - first)
        return told

    def failure(self, error: ApiError) -> bytes:
        return error_line(error)


class Lines(Timed):
    """An answer line by line, or all of it as one. The last line has the figures; calls of tools are objects, so each
    is one piece."""

    def __init__(self, model: str, *, gathers: bool = False) -> None:
        super().__init__(model)
        self.gathers = gathers
        self.stream_type = "application/json" if gathers else NDJSON
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._finish = "stop"
        self._calls: dict[int, list[str]] = {}  # id, name, arguments
        self._ended = False

    @abstractmethod
    def content(self, text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What was said, as this endpoint writes it."""

    def line(
        self, text: str, thinking: str = "", calls: Sequence[Mapping[str, Any]] = (), **more: Any
    ) -> bytes:
        head = {"model": self.model, "created_at": stamp(time.time())}
        return _encode({**head, **self.content(text, thinking, calls), "done": False, **more}) + b"\n"

    def event(self, event: Event) -> bytes:
        out: list[bytes] = []
        for part in event.parts:
            if isinstance(part, ErrorPart):
                self._ended = True
                failure = ApiError(500, part.message, kind=part.kind, code=part.code)
                if self.gathers:
                    raise failure
                return b"".join([*out, self.failure(failure)])
            if not self._noted(part):
                continue
            thinks = isinstance(part, ReasoningPart)
            if self.gathers:
                (self._thinking if thinks else self._text).append(part.text)
            else:
                out.append(self.line("" if thinks else part.text, part.text if thinks else ""))
        if event.last:
            out.append(self.end())
        return b"".join(out)

    def end(self) -> bytes:
        if self._ended:
            return b""
        self._ended = True
        calls, broken = self._whole_calls()
        ending = {"done": True, "done_reason": self._finish, **self.figures()}
        if self.gathers:
            return self.line("".join([*self._text, broken]), "".join(self._thinking), calls, **ending)
        before = self.line(broken, calls=calls) if calls or broken else b""
        return before + self.line("", **ending)

    def late(self, answer: WholeAnswer) -> bytes:
        return self.whole(answer)

    def whole(self, answer: WholeAnswer) -> bytes:
        """What a server answers that sends no stream although it was asked for one."""
        return self.event(Event(answer.body, answer.parse, last=True))

    def _noted(self, part: Part) -> TypeGuard[TextPart | ReasoningPart | RefusalPart]:
        """Whether a part is text to be shown; what else it says is kept."""
        if isinstance(part, UsagePart):
            self.usage = part.usage
        elif isinstance(part, ErrorPart) or part.choice:
            return False
        elif isinstance(part, FinishPart):
            self._finish = "length" if part.reason == "length" else "stop"
        elif isinstance(part, ToolCallPart):
            call = self._calls.setdefault(part.index, ["", "", ""])
            call[0], call[1] = call[0] or part.id, call[1] or part.name
            call[2] += part.arguments
        else:
            return bool(part.text)
        return False

    def _whole_calls(self) -> tuple[list[dict[str, Any]], str]:
        """The calls whose arguments are an object, and as text those that were cut off before they were one."""
        calls, broken = [], ""
        for index, (id, name, arguments) in sorted(self._calls.items()):
            value = object_of(arguments)
            if value is not None and name:
                function = {"index": index, "name": name, "arguments": value}
                calls.append({"id": id, "function": function} if id else {"function": function})
            else:
                broken += arguments
        return calls, broken


class ChatLines(Lines):
    def content(self, text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


class GenerateLines(Lines):
    def content(self, text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"response": text, "thinking": thinking} if thinking else {"response": text}


class Vectors(Timed):
    """Embeddings, which are never streamed."""

    def event(self, event: Event) -> bytes:
        return event.raw

    def end(self) -> bytes:
        return b""

    def whole(self, answer: WholeAnswer) -> bytes:
        body = body_of(answer.body) or {}
        data = body.get("data")
        vectors = (
            [one.get("embedding") for one in data if isinstance(one, dict)] if isinstance(data, list) else []
        )
        self.usage = read_usage(body.get("usage"), 0)
        return _encode(self.shown(vectors))

    def shown(self, vectors: Sequence[Any]) -> dict[str, Any]:
        figures = self.figures()
        figures = {name: figures[name] for name in figures if not name.startswith("eval_")}
        figures.pop("prompt_eval_duration", None)
        return {"model": self.model, "embeddings": vectors, **figures}


class OneVector(Vectors):
    def shown(self, vectors: Sequence[Any]) -> dict[str, Any]:
        return {"embedding": vectors[0] if vectors else []}


PROTOCOLS: tuple[WireProtocol, ...] = (OllamaChat(), OllamaGenerate(), OllamaEmbed(), OllamaEmbeddings())
