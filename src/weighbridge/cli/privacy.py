"""`weighbridge privacy`: what detectors see in a file."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from weighbridge.cli.options import JsonOutput
from weighbridge.cli.terminal import outside, print_json, whole_table
from weighbridge.errors import BadInput
from weighbridge.routes.build import build_guard
from weighbridge.routes.privacy import walk
from weighbridge.routes.privacy.guard import Guard
from weighbridge.routes.privacy.hits import DEFAULT_TYPES
from weighbridge.routes.privacy.ner import model_directory
from weighbridge.routes.settings import PrivacySettings


def scan(
    file: Annotated[
        Path,
        typer.Argument(help="A text, or JSON / JSONL of texts or chat requests; - reads a pipe."),
    ],
    ner: Annotated[
        bool | None, typer.Option("--ner/--no-ner", help="The NER model; default: if it is installed.")
    ] = None,
    deny: Annotated[list[str] | None, typer.Option(help="A phrase that must not leave; repeatable.")] = None,
    locations: Annotated[bool, typer.Option(help="Report places named on their own, too.")] = False,
    show: Annotated[bool, typer.Option(help="Show the values; default: only where they are.")] = False,
    json_output: JsonOutput = False,
) -> None:
    """List the sensitive values in FILE: type, line, place and detector."""
    text = _read(file)
    guard, with_ner = _guard(ner, deny or [], locations)
    found = []
    for line, one in _texts(text):
        for hit in guard.scan(one):
            place: dict[str, Any] = {"type": hit.type, "line": line, "start": hit.start, "end": hit.end}
            found.append(place | {"detector": hit.detector} | ({"value": hit.value} if show else {}))
    guard.close()
    counts = dict(sorted(Counter(one["type"] for one in found).items()))
    if json_output:
        print_json({"file": str(file), "ner": with_ner, "counts": counts, "found": found})
        return
    table = whole_table("type", "line", "from", "to", "detector", *(["value"] if show else []))
    for row in found:
        table.add_row(*map(outside, row.values()))
    Console().print(table)
    if not with_ner:
        Console(stderr=True).print("names and addresses were not looked for: the NER model is not in use")


def _read(file: Path) -> str:
    try:
        if str(file) == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise BadInput(f"cannot read {file}: {str(reason).lower()}") from error


def _guard(ner: bool | None, deny: list[str], locations: bool) -> tuple[Guard, bool]:
    types = DEFAULT_TYPES | ({"LOCATION"} if locations else set())
    wanted = ner if ner is not None else _ner_is_installed()
    return build_guard(PrivacySettings(wanted, tuple(deny), frozenset(types))), wanted


def _ner_is_installed() -> bool:
    try:
        return model_directory().is_dir()
    except BadInput:
        return False


def _texts(text: str) -> list[tuple[int, str]]:
    """Texts with the line each is on: the strings of JSON or JSONL, else the whole text, paragraph by paragraph."""
    values = []
    try:
        values = [(1, json.loads(text))]
    except (ValueError, RecursionError):
        try:
            values = [(n, json.loads(line)) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        except (ValueError, RecursionError):
            return _paragraphs(text)
    return [(line, one) for line, value in values for one in walk.strings(value)]


def _paragraphs(text: str) -> list[tuple[int, str]]:
    parts, line = [], 1
    for part in text.split("\n\n"):
        if part.strip():
            parts.append((line, part))
        line += part.count("\n") + 2
    return parts
