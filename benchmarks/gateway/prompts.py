"""Prompts that no run has sent before: text as people write it, or letters by chance."""

from __future__ import annotations

import random
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
#: Every so manieth word of a prompt was never seen by anybody: names, misspellings, identifiers. In ordinary
#: text that is so after about a million words (Heaps' law with an exponent of 0.6 to 0.75).
NEW_WORD_EVERY = 40
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def prose(size: int, count: int, seed: int) -> list[str]:
    """Lines of running text from this repository's documentation in random order; 3.6 bytes a token."""
    return _lines(
        size, count, seed, [line for line in _documentation() if line[0].isalnum() and "`" not in line]
    )


def markdown(size: int, count: int, seed: int) -> list[str]:
    """Any of its lines: tables, numbers, code, names; 2.6 bytes a token."""
    return _lines(size, count, seed, _documentation())


def _documentation() -> list[str]:
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    return [line for page in pages for line in page.read_text(encoding="utf-8").splitlines() if line]


def _lines(size: int, count: int, seed: int, lines: list[str]) -> list[str]:
    rng = random.Random(seed)
    words = [line.split(" ") for line in lines]
    return [_cut(_natural(size, words, rng), size) for _ in range(count)]


def _natural(size: int, lines: list[list[str]], rng: random.Random) -> str:
    made: list[str] = []
    left = size
    while left > 0:
        words = list(rng.choice(lines))
        for at in range(rng.randrange(NEW_WORD_EVERY), len(words), NEW_WORD_EVERY):
            words[at] = "".join(rng.choices(LETTERS, k=rng.randint(4, 10)))
        made.append(" ".join(words))
        left -= len(made[-1]) + 1
    return "\n".join(made)


def letters(size: int, count: int, seed: int) -> list[str]:
    """The worst that a client can send: words of random letters, hardly one of which comes twice."""
    rng = random.Random(seed)
    return ["".join(rng.choices(LETTERS + " " * 5, k=size)) for _ in range(count)]


def _cut(text: str, size: int) -> str:
    """At most `size` bytes of it."""
    return text.encode()[:size].decode(errors="ignore")


KINDS = {"prose": prose, "markdown": markdown, "letters": letters}
