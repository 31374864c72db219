"""Markdown in pieces: tables whose cells cannot break them, code, headings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

#: What every page of the reference says of itself.
MADE = "Made from the code by `python -m tools.reference --write`; a test fails when it is not current.\n"

_CODE = re.compile(r"(`[^`]*`)")


def filled(text: str) -> str:
    """A text whose paragraphs are lines, however they were broken where they stood; lists are left as they are."""
    parts = text.strip().split("\n\n")
    return (
        "\n\n".join(part if part.startswith(("- ", "#")) else " ".join(part.split()) for part in parts) + "\n"
    )


def cell(text: str) -> str:
    """A text as it may stand in a table."""
    return " ".join(text.split()).replace("|", "\\|")


def words(text: str) -> str:
    """A sentence of the code as Markdown: what looks like markup is escaped, code in backticks stays."""
    pieces = _CODE.split(" ".join(text.split()))
    plain = (re.sub(r"([\\*_<>\[\]])", r"\\\1", piece) for piece in pieces[::2])
    return "".join(part for pair in zip(plain, [*pieces[1::2], ""], strict=True) for part in pair)


def code(text: object) -> str:
    return f"`{text}`" if str(text) else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [
        "|" + "|".join(f" {text} " if (text := cell(one)) else " " for one in row) + "|" for row in rows
    ]
    return "\n".join(lines) + "\n"


def anchor(heading: str) -> str:
    """What links call a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def sentence(text: str) -> str:
    """A short text as a sentence."""
    text = " ".join(text.split())
    return text if not text or text.endswith((".", "!", "?", ":")) else text + "."
