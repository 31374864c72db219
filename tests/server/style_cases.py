"""Answers in every style of writing calls and thoughts, and what they come to. Texts of our own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

#: The tools that every case offers.
TOOLS: dict[str, Any] = {
    "look": {
        "type": "object",
        "properties": {
            "key": {"type": "string"},
            "depth": {"type": "integer"},
            "scale": {"type": "number"},
            "deep": {"type": "boolean"},
            "filter": {"type": "object"},
            "places": {"type": "array", "items": {"type": "string"}},
            "note": {"type": ["string", "null"]},
            "unit": {"$ref": "#/$defs/Unit"},
        },
        "$defs": {"Unit": {"enum": ["m", "ft"]}},
    },
    "weigh": {"type": "object", "properties": {"kg": {"type": "number"}}},
    "now": {"type": "object", "properties": {}},
}


@dataclass(frozen=True)
class Case:
    """An answer, and what is said, thought and called in it. `broken`: it is not as the style asks for."""

    style: str
    text: str
    said: str = ""
    calls: tuple[tuple[str, Any], ...] = ()  # arguments as a value; as text where they are no JSON
    broken: bool = False
    thought: str = ""


def call(name: str, **arguments: Any) -> tuple[str, Any]:
    return name, arguments


def text(style: str, written: str) -> Case:
    """One that is no call, and stays as it is."""
    return Case(style, written, written, broken=True)


def _json(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


A, B = _json("look", key="a"), _json("weigh", kg=2.5)
TWO = (call("look", key="a"), call("weigh", kg=2.5))
ONE = TWO[:1]
ODD = 'a "quoted" </tool_call> {[ \\ é\n日本😀'


def hermes() -> list[Case]:
    def tag(body: str) -> str:
        return f"<tool_call>\n{body}\n</tool_call>"

    return [
        Case("hermes", tag(A), "", ONE),
        Case("hermes", f"Let me see.\n{tag(A)}", "Let me see.", ONE),
        Case("hermes", f"{tag(A)}\n{tag(B)}", "", TWO),
        Case("hermes", tag(A).replace("\n", ""), "", ONE),
        Case("hermes", tag(_json("now")), "", (call("now"),)),
        Case("hermes", tag(_json("look", key=ODD)), "", (call("look", key=ODD),)),
        Case(
            "hermes",
            tag(_json("look", filter={"a": [1, {"b": None}]}, deep=True)),
            "",
            (call("look", filter={"a": [1, {"b": None}]}, deep=True),),
        ),
        Case("hermes", tag('{"arguments": {"key": "a"}, "name": "look"}'), "", ONE),
        Case("hermes", f"{tag(A)}\nThat is all.", "\nThat is all.", ONE),
        Case("hermes", "1 < 2, and <tool is no mark", "1 < 2, and <tool is no mark"),
        Case("hermes", "No tool is needed.", "No tool is needed."),
        Case("hermes", f"```json\n{A}\n```", "", ONE),
        Case("hermes", f"I call it:\n```json\n{A}\n{B}\n```\nDone.", "I call it:\nDone.", TWO),
        Case("hermes", f"```\n[{A}, {B}]\n```", "", TWO),
        Case("hermes", A, "", ONE),
        text("hermes", tag(_json("unknown", key="a"))),
        text("hermes", tag("look(key='a')")),
        text("hermes", tag('{"name": "look"}')),
        text("hermes", '```json\n{"answer": 42}\n```'),
        text("hermes", f"```json\n{_json('unknown')}\n```"),
        text("hermes", "```python\nprint('a')\n```"),
        Case("hermes", f"<tool_call>\n{A[:-4]}", "", (("look", '{"key": "'),), broken=True),
        Case("hermes", f"<tool_call>\nnone\n{tag(A)}", "<tool_call>\nnone", ONE, broken=True),
    ]


def llama() -> list[Case]:
    a, b = A.replace("arguments", "parameters"), B.replace("arguments", "parameters")
    return [
        Case("llama3", a, "", ONE),
        Case("llama3", f"{a}; {b}", "", TWO),
        Case("llama3", f"<|python_tag|>{a}", "", ONE),
        Case("llama3", f"<|python_tag|>{a}; {b}", "", TWO),
        Case("llama3", f"{a}\n{b}", "", TWO),
        Case("llama3", json.dumps(json.loads(a), indent=2), "", ONE),
        Case("llama3", A, "", ONE),
        Case("llama3", "It is warm.", "It is warm."),
        text("llama3", _json("unknown")),
        text("llama3", '{"answer": 42}'),
        text("llama3", '<|python_tag|>look.call(key="a")'),
        text("llama3", '{"name": "look"}'),
        text("llama3", '{"name": "look", "parameters": 7}'),
        Case("llama3", a[:-2], "", (("look", '{"key": "a"'),), broken=True),
    ]


def mistral() -> list[Case]:
    mark = "[TOOL_CALLS]"
    return [
        Case("mistral", f"{mark} [{A}]", "", ONE),
        Case("mistral", f"{mark}[{A}, {B}]", "", TWO),
        Case("mistral", f"Let me see.{mark}[{A}]", "Let me see.", ONE),
        Case("mistral", f'{mark}look[ARGS]{{"key": "a"}}', "", ONE),
        Case("mistral", f'{mark}look[ARGS]{{"key": "a"}}{mark}weigh[ARGS]{{"kg": 2.5}}', "", TWO),
        Case("mistral", f'{mark}look{{"key": "a"}}', "", ONE),
        Case("mistral", f'{mark}look[CALL_ID]a1b2c3d4e[ARGS]{{"key": "a"}}', "", ONE),
        Case("mistral", f"I look. {mark}now[ARGS]{{}}", "I look.", (call("now"),)),
        Case("mistral", f"{mark}look[ARGS]{json.dumps({'key': ODD})}", "", (call("look", key=ODD),)),
        Case("mistral", "Nothing [TOOL] is needed.", "Nothing [TOOL] is needed."),
        text("mistral", f"{mark}unknown[ARGS]{{}}"),
        text("mistral", f"{mark} [{_json('unknown')}]"),
        text("mistral", f"{mark} none today"),
        text("mistral", f"{mark}look[ARGS]key=a"),
        text("mistral", f"{mark}look"),
        Case("mistral", f'{mark}look[ARGS]{{"key": "a', "", (("look", '{"key": "a'),), broken=True),
    ]


def qwen_coder() -> list[Case]:
    style = "qwen3-coder"

    def function(name: str, **values: str) -> str:
        parameters = "".join(f"<parameter={key}>\n{one}\n</parameter>\n" for key, one in values.items())
        return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"

    look, weigh = function("look", key="a"), function("weigh", kg="2.5")
    code = 'def f(a):\n    return {"b": a < 2}\n'
    return [
        Case(style, look, "", ONE),
        Case(style, f"{look}\n{weigh}", "", TWO),
        Case(style, f"Let me see.\n{look}", "Let me see.", ONE),
        Case(style, f"{look}\nDone.", "\nDone.", ONE),
        Case(style, function("now"), "", (call("now"),)),
        Case(style, function("look", key=code), "", (call("look", key=code),)),
        Case(style, function("look", key="7", depth="7"), "", (call("look", key="7", depth=7),)),
        Case(style, function("look", deep="True", scale="2"), "", (call("look", deep=True, scale=2),)),
        Case(
            style, function("look", filter='{"a": [1, null]}'), "", (call("look", filter={"a": [1, None]}),)
        ),
        Case(style, function("look", filter="{'a': True}"), "", (call("look", filter={"a": True}),)),
        Case(style, function("look", places='["b", "c"]'), "", (call("look", places=["b", "c"]),)),
        Case(style, function("look", note="null"), "", (call("look", note=None),)),
        Case(style, function("look", note="nullify"), "", (call("look", note="nullify"),)),
        Case(style, function("look", unit="ft"), "", (call("look", unit="ft"),)),
        Case(style, function("look", depth="deep"), "", (call("look", depth="deep"),)),
        Case(style, function("look", other="5"), "", (call("look", other="5"),)),
        Case(style, function("look", key=ODD), "", (call("look", key=ODD),)),
        Case(style, look.replace("<tool_call>\n", ""), "", ONE),
        Case(style, look.replace(">\na\n<", ">a<"), "", ONE),
        Case(style, "It is <b>warm</b>.", "It is <b>warm</b>."),
        text(style, function("unknown", key="a")),
        text(style, "<tool_call>\nlook\n</tool_call>"),
        text(style, "<tool_call>\n<function=look"),
        text(style, f"<tool_call>\n{A}\n</tool_call>"),
        Case(
            style,
            "<tool_call>\n<function=look>\n<parameter=key>\nab",
            "",
            (("look", '{"key": "ab'),),
            broken=True,
        ),
        Case(style, look.replace("</function>\n", ""), "", ONE, broken=True),
    ]


def glm() -> list[Case]:
    def function(name: str, **values: str) -> str:
        pairs = "".join(
            f"<arg_key>{key}</arg_key>\n<arg_value>{one}</arg_value>\n" for key, one in values.items()
        )
        return f"<tool_call>{name}\n{pairs}</tool_call>"

    look, weigh = function("look", key="a"), function("weigh", kg="2.5")
    return [
        Case("glm", look, "", ONE),
        Case("glm", f"{look}\n{weigh}", "", TWO),
        Case("glm", look.replace("\n", ""), "", ONE),
        Case("glm", f"Let me see.\n{look}", "Let me see.", ONE),
        Case("glm", function("now"), "", (call("now"),)),
        Case("glm", function("look", depth="7", key="7"), "", (call("look", depth=7, key="7"),)),
        Case("glm", function("look", deep="false"), "", (call("look", deep=False),)),
        Case("glm", function("look", filter='{"a": 1}'), "", (call("look", filter={"a": 1}),)),
        Case("glm", function("look", places='["b"]'), "", (call("look", places=["b"]),)),
        Case("glm", function("look", key="a\n b"), "", (call("look", key="a\n b"),)),
        Case("glm", "It is warm.", "It is warm."),
        text("glm", function("unknown", key="a")),
        text("glm", f"<tool_call>{A}</tool_call>"),
        text("glm", "<tool_call>look at this"),
        text("glm", "<tool_call>look\n<arg_value>a</arg_value>"),
        Case(
            "glm",
            "<tool_call>look\n<arg_key>key</arg_key>\n<arg_value>ab",
            "",
            (("look", '{"key": "ab'),),
            broken=True,
        ),
    ]


def deepseek() -> list[Case]:
    begin, end = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
    mark, close, sep = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"

    def old(name: str, arguments: str) -> str:
        return f"{mark}function{sep}{name}\n```json\n{arguments}\n```{close}"

    def new(name: str, arguments: str) -> str:
        return f"{mark}{name}{sep}{arguments}{close}"

    a, b = '{"key": "a"}', '{"kg": 2.5}'
    style = "deepseek-v3"
    return [
        Case(style, begin + old("look", a) + end, "", ONE),
        Case(style, begin + old("look", a) + "\n" + old("weigh", b) + end, "", TWO),
        Case(style, f"Let me see.{begin}{old('look', a)}{end}", "Let me see.", ONE),
        Case(style, begin + new("look", a) + end, "", ONE),
        Case(style, begin + new("look", a) + new("weigh", b) + end, "", TWO),
        Case(style, begin + new("now", "{}") + end, "", (call("now"),)),
        Case(style, begin + new("look", json.dumps({"key": ODD})) + end, "", (call("look", key=ODD),)),
        Case(style, new("look", a), "", ONE),
        Case(style, "It is warm.", "It is warm."),
        text(style, begin + old("unknown", a) + end),
        text(style, begin + new("unknown", a) + end),
        text(style, begin + "none" + end),
        text(style, f"{begin}{mark}look"),
        text(style, f"{begin}{mark}look{sep}key=a{close}{end}"),
        Case(style, f'{begin}{mark}look{sep}{{"key": "a', "", (("look", '{"key": "a'),), broken=True),
    ]


def kimi() -> list[Case]:
    begin, end = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"

    def one(name: str, arguments: str) -> str:
        return f"<|tool_call_begin|>{name}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"

    a, b = '{"key": "a"}', '{"kg": 2.5}'
    style = "kimi-k2"
    return [
        Case(style, begin + one("functions.look:0", a) + end, "", ONE),
        Case(style, begin + one("functions.look:0", a) + one("functions.weigh:1", b) + end, "", TWO),
        Case(style, f"Let me see.{begin}{one('functions.look:3', a)}{end}", "Let me see.", ONE),
        Case(style, begin + one(" functions.now:0 ", " {} ") + end, "", (call("now"),)),
        Case(style, begin + one("look:0", a) + end, "", ONE),
        Case(
            style,
            begin + one("functions.look:0", json.dumps({"key": ODD})) + end,
            "",
            (call("look", key=ODD),),
        ),
        Case(style, "It is warm.", "It is warm."),
        text(style, begin + one("functions.unknown:0", a) + end),
        text(style, begin + one("functions.look:0", "key=a") + end),
        text(style, begin + "none" + end),
        text(style, f"{begin}<|tool_call_begin|>functions.look:0"),
        text(style, f"{begin}<|tool_call_begin|>{a}<|tool_call_end|>{end}"),
        Case(style, begin + one("functions.look:0", a)[:-20], "", (("look", '{"key": "'),), broken=True),
    ]


def granite() -> list[Case]:
    return [
        Case("granite", f"<|tool_call|>[{A}]", "", ONE),
        Case("granite", f"<|tool_call|>[{A}, {B}]", "", TWO),
        Case("granite", f"<|tool_call|> [{A}]", "", ONE),
        Case("granite", f"<tool_call>[{A}]", "", ONE),
        Case("granite", f"<tool_call>{A}</tool_call>", "", ONE),
        Case("granite", f"[{A}, {B}]", "", TWO),
        Case("granite", "It is warm.", "It is warm."),
        text("granite", f"<|tool_call|>[{_json('unknown')}]"),
        text("granite", "<|tool_call|>none"),
        text("granite", "<|tool_call|>[]"),
        text("granite", '<|tool_call|>[{"name": "look"}]'),
        text("granite", "[1, 2]"),
        Case("granite", f"<|tool_call|>[{A[:-3]}", "", (("look", '{"key": "a'),), broken=True),
    ]


def harmony() -> list[Case]:
    def message(channel: str, body: str, end: str = "<|end|>") -> str:
        return f"<|channel|>{channel}<|message|>{body}{end}"

    def called(name: str, arguments: str) -> str:
        return message(f"commentary to=functions.{name} <|constrain|>json", arguments, "<|call|>")

    start, style = "<|start|>assistant", "harmony"
    thought, answer = message("analysis", "A key, then."), message("final", "The key is a.", "<|return|>")
    look, weigh = called("look", '{"key": "a"}'), called("weigh", '{"kg": 2.5}')
    return [
        Case(style, answer, "The key is a."),
        Case(style, thought + start + answer, "The key is a.", thought="A key, then."),
        Case(style, thought + start + look, "", ONE, thought="A key, then."),
        Case(style, look + start + weigh, "", TWO),
        Case(style, message("commentary", "I look.") + start + look, "I look.", ONE),
        Case(style, ' to=functions.look<|channel|>commentary json<|message|>{"key": "a"}<|call|>', "", ONE),
        Case(
            style,
            f'{thought}{start} to=functions.look<|channel|>commentary<|message|>{{"key": "a"}}',
            "",
            ONE,
            thought="A key, then.",
        ),
        Case(style, message("analysis", "One.") + start + message("analysis", "Two."), thought="One.\nTwo."),
        Case(
            style,
            message("analysis", '<tool_call>{"name": "look", "arguments": {}}</tool_call>'),
            thought='<tool_call>{"name": "look", "arguments": {}}</tool_call>',
        ),
        Case(style, called("look", json.dumps({"key": ODD})), "", (call("look", key=ODD),)),
        Case(style, message("analysis", "Half a th", ""), thought="Half a th", broken=True),
        Case(style, message("final", "1 < 2 <| and", ""), "1 < 2 <| and", broken=True),
        Case(style, "No channel at all.", "No channel at all.", broken=True),
        Case(
            style, called("unknown", "{}").replace("<|call|>", ""), called("unknown", "{}")[:-8], broken=True
        ),
        Case(style, look[:-11], "", (("look", '{"key": "'),), broken=True),
        Case(style, "<|channel|>final<|mess", "", broken=True),
    ]


CASES = [
    *hermes(),
    *llama(),
    *mistral(),
    *qwen_coder(),
    *glm(),
    *deepseek(),
    *kimi(),
    *granite(),
    *harmony(),
]


CALL = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'

#: Thoughts: the answer, whether its prompt ends within a thought, what is said and what is thought.
THOUGHTS = [
    ("<think>A key, then.</think>It is a.", False, "It is a.", "A key, then."),
    ("<think>\nA key,\n\nthen.\n</think>\n\nIt is a.\n", False, "It is a.\n", "A key,\n\nthen."),
    ("A key, then.\n</think>\n\nIt is a.", True, "It is a.", "A key, then."),
    ("\n<think>\nA key, then.</think>It is a.", True, "It is a.", "A key, then."),
    ("<think>\n\n</think>\n\nIt is a.", False, "It is a.", ""),
    ("</think>It is a.", True, "It is a.", ""),
    ("<think>A key, th", False, "", "A key, th"),
    ("A key, th", True, "", "A key, th"),
    ("A </thin key", True, "", "A </thin key"),
    ("It is a.", False, "It is a.", ""),
    ("It is <think>no</think> mark.", False, "It is <think>no</think> mark.", ""),
    ("<thin is no mark", False, "<thin is no mark", ""),
    ("It is</think> a.", False, "It is</think> a.", ""),
    ("<think>One.</think><think>Two.</think>", False, "<think>Two.</think>", "One."),
    (f"<think>maybe {CALL}</think>No.", False, "No.", f"maybe {CALL}"),
    (f"maybe {CALL}</think>No.", True, "No.", f"maybe {CALL}"),
    (f"<think>maybe {CALL}", False, "", f"maybe {CALL}"),
    ("", False, "", ""),
    ("<", False, "<", ""),
]
