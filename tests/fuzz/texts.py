"""Fuzz targets of texts that are programs or settings: chat templates and YAML."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from tests.fuzz import seeds
from tests.fuzz.target import Target
from weighbridge.errors import BadInput
from weighbridge.models.text.chat_template import ChatTemplate
from weighbridge.routes.config import load_configuration

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "<b>7 &amp; 8</b>\n\t% {} 東京"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 7}'}}],
    },
    {"role": "tool", "content": "15", "tool_call_id": "1"},
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
#: Far more than the budget of a template lets these messages become.
MOST_CHARACTERS = 32 << 20


def parse_template(data: bytes) -> str:
    """The source of a template, over a conversation with a tool."""
    template = ChatTemplate({"default": data.decode("utf-8", "replace")}, {"bos_token": "<s>"})
    text = template.render(MESSAGES, TOOLS, enable_thinking=False)
    assert len(text) <= MOST_CHARACTERS, f"{len(text)} characters"
    return text


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="weighbridge-fuzz-")


def parse_yaml(data: bytes) -> str:
    """The configuration of a gateway with routes, as a file."""
    path = Path(_folder().name) / "weighbridge.yaml"
    path.write_bytes(data)
    model = load_configuration(path).fleet.models[0]
    return " ".join((*model.aliases, model.name))


TEMPLATE = Target(
    "template",
    parse_template,
    (BadInput,),
    seeds.templates,
    (
        *(b"{{", b"}}", b"{%", b"%}", b"{#", b"for x in ", b"endfor", b"if ", b"endif", b"else", b"set x = "),
        *(
            b"macro m(a)",
            b"endmacro",
            b"call m()",
            b"endcall",
            b"filter ",
            b"namespace(",
            b"range(",
            b"loop.",
        ),
        *(
            b"messages",
            b"tools",
            b"|tojson",
            b"|map(",
            b"|select(",
            b"|join(",
            b".items()",
            b".format(",
            b"[::-1]",
        ),
        *(
            b"|sort",
            b"|groupby(",
            b"|replace(",
            b"|attr(",
            b"__class__",
            b"raise_exception(",
            b"strftime_now(",
        ),
        *(
            b"generation",
            b"endgeneration",
            b"break",
            b"continue",
            b"**",
            b"//",
            b"~",
            b"is defined",
            b"self.",
        ),
    ),
)
YAML = Target(
    "yaml",
    parse_yaml,
    (BadInput,),
    seeds.yaml,
    (
        *(b"models:", b"replicas:", b"routes:", b"tenants:", b"keys:", b"expires: ", b"listen: ", b"url: "),
        *(
            b"process: ",
            b"edge: ",
            b"cloud: ",
            b"rules: ",
            b"budgets: ",
            b"limits: ",
            b"&a ",
            b"*a",
            b"<<: ",
            b"!!",
        ),
        *(
            b"!!int ",
            b"!!float ",
            b"!!binary ",
            b"!!timestamp ",
            b"!!set ",
            b"%YAML 1.1\n---\n",
            b"0x",
            b"1:2:3",
            b".nan",
        ),
        *(b"? ", b"|\n ", b">-\n ", b"{", b"}", b"[", b"]", b"2026-02-30", b"1_000", b"~"),
    ),
)
