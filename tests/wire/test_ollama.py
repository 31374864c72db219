"""Ollama's API: what a request means as OpenAI's, and that every line of an answer is one by the letter."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.cost.usage import Usage
from weighbridge.ticket import Ticket
from weighbridge.ticket.record import Leg
from weighbridge.wire.ask import Ask
from weighbridge.wire.errors import ApiError
from weighbridge.wire.events import (
    ErrorPart,
    Event,
    FinishPart,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    UsagePart,
)
from weighbridge.wire.journey import WholeAnswer
from weighbridge.wire.protocols.ollama import (
    ChatLines,
    GenerateLines,
    Lines,
    OllamaChat,
    OllamaEmbed,
    OllamaEmbeddings,
    OllamaGenerate,
    OneVector,
    Vectors,
    keep_alive_seconds,
    model_name,
)

Body = dict[str, Any]
HI = {"role": "user", "content": "hi"}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(80)).decode()


def asked(protocol: Any, **fields: Any) -> Ask:
    found: Ask = protocol.read(msgspec.json.encode({"model": "m", **fields}))
    return found


def chat(*messages: Body, **fields: Any) -> Body:
    ask = asked(OllamaChat(), messages=list(messages) or [HI], **fields)
    assert ask.path == "/v1/chat/completions"
    found: Body = msgspec.json.decode(ask.raw)
    return found


def generate(**fields: Any) -> Body:
    found: Body = msgspec.json.decode(asked(OllamaGenerate(), prompt="hi", **fields).raw)
    return found


# -- requests --------------------------------------------------------------------------------------------

STREAM = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("stream", [None, True, False])
def test_a_chat_streams_to_the_client_unless_told_otherwise(stream: bool | None) -> None:
    assert chat(stream=stream) == {"model": "m", "messages": [HI], **STREAM}
    assert asked(OllamaChat(), messages=[HI], stream=stream).own is (stream is False)


def test_a_tag_that_says_nothing_is_left_out() -> None:
    assert chat(model="small:latest")["model"] == "small"
    assert (model_name("a:b"), model_name("a")) == ("a:b", "a")


def test_options_have_other_names() -> None:
    options = {
        "num_predict": 5, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "seed": 7, "stop": ["x"],
        "repeat_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.2, "num_ctx": 99, "num_gpu": 1,
        "mirostat": 0, "typical_p": 1.0,
    }  # fmt: skip
    found = chat(options=options, keep_alive="5m")
    del found["messages"], found["model"]
    assert found == {
        **STREAM, "max_tokens": 5, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "seed": 7, "stop": ["x"],
        "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.2,
    }  # fmt: skip
    assert "max_tokens" not in chat(options={"num_predict": -1})


def test_forms_and_thinking() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert chat(format="json")["response_format"] == {"type": "json_object"}
    assert chat(format=schema)["response_format"]["json_schema"]["schema"] == schema
    assert "response_format" not in chat(format="")
    assert chat(think=False)["chat_template_kwargs"] == {"enable_thinking": False}
    assert chat(think="low")["reasoning_effort"] == "low"


def test_a_round_of_tools_without_ids() -> None:
    calls = [
        {"function": {"name": name, "arguments": {"x": index}}} for index, name in enumerate(("a", "b", "a"))
    ]
    answers = [{"role": "tool", "tool_name": name, "content": name} for name in ("b", "a", "a")]
    messages = chat(
        HI, {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": calls}, *answers
    )["messages"]
    ids = [call["id"] for call in messages[1]["tool_calls"]]
    assert len(set(ids)) == 3
    assert [call["function"]["arguments"] for call in messages[1]["tool_calls"]] == [
        '{"x": 0}',
        '{"x": 1}',
        '{"x": 2}',
    ]
    assert [one["tool_call_id"] for one in messages[2:]] == [ids[1], ids[0], ids[2]]
    assert messages[1]["reasoning_content"] == "hm"


def test_a_round_of_tools_with_ids_or_in_order() -> None:
    calls = [{"id": f"c{index}", "function": {"name": "a"}} for index in range(3)]
    answers = [{"role": "tool", "tool_call_id": "c2", "content": ""}, *[{"role": "tool", "content": ""}] * 3]
    messages = chat({"role": "assistant", "tool_calls": calls}, *answers)["messages"]
    assert [one["tool_call_id"] for one in messages[1:]] == ["c2", "c0", "c1", "call_unknown"]


def test_tools_are_a_chats() -> None:
    function = {"name": "a", "parameters": {"type": "object"}}
    assert chat(tools=[{"function": function}])["tools"] == [{"type": "function", "function": function}]


def test_pictures_say_of_which_kind_they_are() -> None:
    content = chat({**HI, "images": [PNG]})["messages"][0]["content"]
    assert content == [
        {"type": "text", "text": "hi"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    ]


def test_a_prompt_is_a_chat_of_one_turn() -> None:
    assert generate(system="be kind")["messages"] == [{"role": "system", "content": "be kind"}, HI]


def test_a_raw_prompt_goes_in_as_it_is() -> None:
    ask = asked(OllamaGenerate(), prompt="<s>hi", raw=True, format="json", think=False)
    assert ask.path == "/v1/completions"
    form = {"structured_outputs": {"json": {"type": "object"}}}
    assert msgspec.json.decode(ask.raw) == {
        "model": "m",
        "prompt": "<s>hi",
        "max_tokens": 1024,
        **form,
        **STREAM,
    }


def test_texts_to_embed() -> None:
    assert msgspec.json.decode(asked(OllamaEmbed(), input=["a", "b"], truncate=True).raw)["input"] == [
        "a",
        "b",
    ]
    ask = asked(OllamaEmbeddings(), prompt="a")
    assert (ask.path, msgspec.json.decode(ask.raw)) == ("/v1/embeddings", {"model": "m", "input": "a"})


def test_nothing_to_do_is_answered_at_once() -> None:
    load = asked(OllamaGenerate())
    assert (load.model, json.loads(load.answer or b"")["done_reason"]) == ("m", "load")
    unload = json.loads(asked(OllamaChat(), messages=[], keep_alive=0).answer or b"")
    assert (unload["done"], unload["done_reason"], unload["message"]["content"]) == (True, "unload", "")


REFUSED: dict[str, tuple[Any, Body, str]] = {
    "a suffix": (OllamaGenerate(), {"suffix": "x"}, "suffix"),
    "a template": (OllamaGenerate(), {"template": "{{.Prompt}}"}, "template"),
    "a context": (OllamaGenerate(), {"context": [1]}, "context"),
    "raw with a system prompt": (OllamaGenerate(), {"raw": True, "system": "x"}, "raw"),
    "another sampler": (OllamaGenerate(), {"options": {"mirostat": 2}}, "mirostat"),
    "no duration": (OllamaGenerate(), {"keep_alive": "soon"}, "keep_alive"),
    "log-probabilities": (OllamaGenerate(), {"logprobs": True}, "logprobs"),
    "another format": (OllamaGenerate(), {"format": "xml"}, "format"),
    "no picture": (OllamaGenerate(), {"images": ["AAAA"]}, "images[0]"),
    "no base64": (OllamaGenerate(), {"images": ["%"]}, "images[0]"),
    "a misspelt restriction of nothing": (OllamaChat(), {"weighbridge": {"label": ["x"]}}, "label"),
    "no model": (OllamaChat(), {"model": ""}, "model"),
    "a wrong option": (OllamaChat(), {"messages": [HI], "options": {"top_k": "x"}}, "options.top_k"),
    "nothing to embed": (OllamaEmbed(), {}, "input"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_an_error_that_names_it(name: str) -> None:
    protocol, fields, says = REFUSED[name]
    with pytest.raises(ApiError) as found:
        asked(protocol, **{"prompt": "hi", **fields})
    assert found.value.status == 400
    assert says in str(found.value)
    assert json.loads(protocol.error(found.value)) == {"error": str(found.value)}


# -- answers ---------------------------------------------------------------------------------------------


def begun(writer: Lines, **fields: Any) -> Lines:
    writer.begin(Ticket("ab12", "t", "m", "", 7, 9, arrived=1.0, **fields))
    return writer


def streamed(writer: Lines, parts: Sequence[Sequence[Part]]) -> list[Body]:
    out = b""
    for index, piece in enumerate(parts):
        out += writer.event(Event(b"x", lambda raw, piece=piece: piece, index == len(parts) - 1))
    return lines(out)


def lines(out: bytes) -> list[Body]:
    assert out.endswith(b"\n")
    return [json.loads(line) for line in out.splitlines()]


TIMES = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def test_lines_by_the_letter() -> None:
    found = streamed(
        begun(ChatLines("m"), first_token=2.0),
        [
            [ReasoningPart("h")],
            [TextPart("a"), TextPart("b")],
            [
                ToolCallPart(0, '{"x": ', "c1", "weigh"),
                ToolCallPart(0, "1}"),
                ToolCallPart(1, '{"cut', "c2", "weigh"),
            ],
            [FinishPart("length"), UsagePart(Usage(10, 5, 4))],
        ],
    )
    call = {"id": "c1", "function": {"index": 0, "name": "weigh", "arguments": {"x": 1}}}
    assert [line["message"] for line in found] == [
        {"role": "assistant", "content": "", "thinking": "h"},
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "assistant", "content": '{"cut', "tool_calls": [call]},
        {"role": "assistant", "content": ""},
    ]
    assert [line["done"] for line in found] == [False] * 4 + [True]
    last = found[-1]
    assert (last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == ("length", 10, 5)
    assert (last["prompt_eval_duration"], last["load_duration"]) == (10**9, 0)
    assert last["prompt_eval_duration"] + last["eval_duration"] == pytest.approx(
        last["total_duration"], abs=2
    )
    assert all(datetime.fromisoformat(line["created_at"]).tzinfo for line in found)


def test_what_nobody_measured_is_left_out() -> None:
    [last] = streamed(begun(GenerateLines("m")), [[FinishPart("stop")]])
    assert sorted(set(TIMES) & set(last)) == ["load_duration", "total_duration"]
    assert "eval_count" not in last


def test_an_answer_that_a_route_held_back_began_before_it_was_shown() -> None:
    held = begun(GenerateLines("m"), first_token=5.0, legs=[Leg("m", first_token=3.0), Leg("m")])
    assert streamed(held, [[FinishPart("stop")]])[-1]["prompt_eval_duration"] == 2 * 10**9


def test_an_error_is_the_last_line() -> None:
    found = streamed(begun(ChatLines("m")), [[TextPart("x"), ErrorPart("broke")], [FinishPart("stop")]])
    assert found[1:] == [{"error": "broke"}]


def test_a_whole_answer_is_one_line_of_all() -> None:
    parts = [ReasoningPart("hm"), TextPart("a"), TextPart("b"), FinishPart("stop"), UsagePart(Usage(3, 2))]
    for found in (
        streamed(begun(GenerateLines("m", gathers=True)), [[part] for part in parts]),
        lines(begun(GenerateLines("m", gathers=True)).whole(WholeAnswer(b"x", lambda raw: parts))),
    ):
        [one] = found
        assert (one["response"], one["thinking"], one["done"], one["eval_count"]) == ("ab", "hm", True, 2)


@pytest.mark.parametrize("gathers", [True, False])
@pytest.mark.parametrize("arguments", [r'{"a": "\ud800"}', r'{"\udc00": 1}', "[1]", '{"a": ' * 2000])
def test_a_call_that_cannot_be_written_is_text(arguments: str, gathers: bool) -> None:
    parts = [ToolCallPart(0, arguments, "c", "weigh"), FinishPart("tool_calls")]
    found = streamed(begun(ChatLines("m", gathers=gathers)), [[part] for part in parts])
    assert "".join(one["message"]["content"] for one in found) == arguments


def test_an_error_in_an_answer_that_nobody_saw_yet_is_an_error() -> None:
    with pytest.raises(ApiError, match="broke"):
        streamed(begun(ChatLines("m", gathers=True)), [[TextPart("x")], [ErrorPart("broke")]])


def test_vectors() -> None:
    data = [{"object": "embedding", "index": 0, "embedding": [0.5, 1.0]}, {"embedding": [2.0]}]
    body = json.dumps({"data": data, "usage": {"prompt_tokens": 4, "total_tokens": 4}}).encode()
    found = json.loads(Vectors("m").whole(WholeAnswer(body, lambda raw: [])))
    assert (found["embeddings"], found["prompt_eval_count"]) == ([[0.5, 1.0], [2.0]], 4)
    assert not {"eval_count", "eval_duration", "prompt_eval_duration"} & set(found)
    assert json.loads(OneVector("m").whole(WholeAnswer(body, lambda raw: []))) == {"embedding": [0.5, 1.0]}


WORDS = st.text(max_size=4)
SAID = st.one_of(WORDS.map(TextPart), WORDS.map(ReasoningPart), st.just(TextPart("other", 1)))


@given(st.lists(st.lists(SAID, max_size=3), max_size=8))
def test_whatever_comes_is_said_once(pieces: list[list[Any]]) -> None:
    found = streamed(begun(ChatLines("m")), [*pieces, [FinishPart("stop")]])
    flat = [one for piece in pieces for one in piece if not one.choice]
    said = [one.text for one in flat if isinstance(one, TextPart)]
    thought = [one.text for one in flat if isinstance(one, ReasoningPart)]
    assert "".join(line["message"]["content"] for line in found) == "".join(said)
    assert "".join(line["message"].get("thinking", "") for line in found) == "".join(thought)
    assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]


@pytest.mark.parametrize(
    "keep",
    [
        "--5",
        "-+5",
        "+-5m",
        "\u0663",
        "5\u0663s",
        "5 m",
        "5m ",
        "",
        ".",
        "5.5.5",
        "m",
        True,
        [],
        {},
        float("nan"),
    ],
)
def test_a_keep_alive_that_is_no_duration_is_refused(keep: object) -> None:
    with pytest.raises(ApiError):
        keep_alive_seconds(keep)


@pytest.mark.parametrize(
    ("keep", "seconds"),
    [
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("-1", math.inf),
        ("-1.5m", math.inf),
        (".5", 0.5),
        (0, 0.0),
        (10**400, 1e12),
    ],
)
def test_a_keep_alive_is_read_as_go_reads_it(keep: object, seconds: float) -> None:
    assert keep_alive_seconds(keep) == seconds
