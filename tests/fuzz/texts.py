"""Fuzz targets of texts that are programs or settings: chat templates and YAML."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from random import Random

import yaml

from tests.fuzz import seeds
from tests.fuzz.forms import INPUT_BYTES
from tests.fuzz.forms.templates import changed_template
from tests.fuzz.forms.trees import changed, written
from tests.fuzz.target import Target
from tests.fuzz.typed import check_fields
from weighbridge.errors import BadInput
from weighbridge.models.text.chat_template import ChatTemplate
from weighbridge.routes.config import load_configuration, modernised, parse_configuration

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


def parse_template(data: bytes) -> None:
    """The source of a template, over a conversation with a tool."""
    template = ChatTemplate({"default": data.decode("utf-8", "replace")}, {"bos_token": "<s>"})
    text = template.render(MESSAGES, TOOLS, enable_thinking=False)
    assert len(text) <= MOST_CHARACTERS, f"{len(text)} characters"


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="weighbridge-fuzz-")


def parse_yaml(data: bytes) -> None:
    """The configuration of a gateway with routes, as a file."""
    path = Path(_folder().name) / "weighbridge.yaml"
    path.write_bytes(data)
    configuration = load_configuration(path)
    check_fields(configuration)
    assert (
        parse_configuration(modernised(data.decode(), "now", path.parent), "now", path.parent)
        == configuration
    )


def _change_yaml(data: bytes, draw: Random) -> bytes | None:
    """Change the values that a text stands for; the text is then in one of the ways in which YAML can be written."""
    try:
        value = yaml.load(data, yaml.CSafeLoader)
        made = written(changed(value, draw, seeds.YAML_PIECES))
        if draw.random() < 0.5:
            made = yaml.dump(json.loads(made), Dumper=yaml.CSafeDumper, allow_unicode=True).encode()
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError, LookupError):
        return None
    return made if len(made) <= INPUT_BYTES else None


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
    changed_template,
    # Its budget is a tenth of a second and some megabytes for these messages, and one operation over.
    max_cpu_s=3.0,
    max_growth_bytes=64 << 20,
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
    _change_yaml,
)
