"""The page of the command line: every command with its arguments and options.

It is made from the snapshot that `tests/cli/test_options.py` compares with the commands themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tools.reference.markdown import MADE, anchor, code, filled, sentence, table, words

OPTIONS = Path(__file__).resolve().parents[2] / "tests" / "cli" / "help" / "options.json"
_INTRODUCTION = """# Commands

{made}

Every command has `--help`; those that report have `--json`. Exit codes: 0 done, 1 failure, 2 bad input. A
switch is turned off with
its `--no-` form where it has one. Variables that commands read are on [a page of their own](environment.md).
"""


@cache
def page() -> str:
    commands: dict[str, Any] = json.loads(OPTIONS.read_text(encoding="utf-8"))
    shown = {path: one for path, one in commands.items() if not _is_hidden(path, commands)}
    parts = [filled(_INTRODUCTION.format(made=MADE)), _contents(shown)]
    parts += ["\n".join(_command(path, one)) for path, one in shown.items()]
    return "\n".join(parts)


def _is_hidden(path: str, commands: Mapping[str, Any]) -> bool:
    """Whether a command is listed nowhere: it is for the program itself."""
    parent, _, name = path.rpartition(" ")
    return bool(parent) and name not in commands[parent]["commands"]


def _contents(commands: Mapping[str, Any]) -> str:
    rows = [
        (f"[{code(path)}](#{anchor(path)})", words(_first(one["help"] or "")))
        for path, one in commands.items()
        if not one["commands"]
    ]
    return table(("command", "what it does"), rows)


def _first(text: str) -> str:
    return sentence(text.split("\n\n")[0].split(". ")[0])


def _command(path: str, one: Mapping[str, Any]) -> Iterator[str]:
    yield f"{'#' * min(len(path.split()) + 1, 4)} {path}\n"
    for paragraph in (one["help"] or "").split("\n\n"):
        if paragraph.strip():
            yield words(sentence(paragraph)) + "\n"
    arguments = {name: of for name, of in one["parameters"].items() if of["kind"] == "argument"}
    options = {name: of for name, of in one["parameters"].items() if of["kind"] == "option"}
    if not one["commands"]:
        usage = " ".join(
            [path, *map(_argument, arguments, arguments.values()), *(["[OPTIONS]"] if options else [])]
        )
        yield f"    {usage}\n"
    if one["commands"]:
        rows = [
            (f"[{code(name)}](#{anchor(f'{path} {name}')})", words(text))
            for name, text in one["commands"].items()
        ]
        yield table(("command", "what it does"), rows)
    if arguments:
        yield table(("argument", "what it is"), [(code(n.upper()), _what(of)) for n, of in arguments.items()])
    if options:
        rows = [(_flags(name), _kind(of), _default(of), _what(of)) for name, of in options.items()]
        yield table(("option", "value", "default", "what it does"), rows)


def _argument(name: str, of: Mapping[str, Any]) -> str:
    shown = name.upper() + ("..." if of.get("repeats") else "")
    return shown if of.get("required") else f"[{shown}]"


def _flags(name: str) -> str:
    return ", ".join(code(flag) for flag in name.split())


def _kind(of: Mapping[str, Any]) -> str:
    kind = of["type"].strip("<>").removeprefix("list[").removesuffix("]").replace(" range", "")
    kind = {"bool": "", "str": "text", "int": "number", "float": "number"}.get(kind, kind)
    least, most = of.get("bounds") or (None, None)
    bounds = [f"at least {least:g}"] if least is not None else []
    bounds += [f"at most {most:g}"] if most is not None else []
    shown = " or ".join(kind.split("|")) if "|" in kind else kind
    return ", ".join([*filter(None, [shown]), *bounds, *(["may repeat"] if of.get("repeats") else [])])


def _default(of: Mapping[str, Any]) -> str:
    if of.get("required"):
        return "required"
    if of["type"] == "<bool>":
        return "on" if of["default"] else "off"
    return code(of["default"]) if of["default"] not in (None, "", "()") else ""


def _what(of: Mapping[str, Any]) -> str:
    variable = of.get("environment")
    read = f" Also read from {code(variable)}." if variable else ""
    return words(sentence(of.get("help") or "")) + read
