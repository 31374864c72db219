"""Rules that move or steady what moves in agents' prompts, so that what stands behind it stays cached. Pure.

Each works on whole lines, so that no text outside of what it found is touched, and doing it twice is doing it once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class PromptRule(StrEnum):
    """What a rule does to the system prompt at the head of a chat, or to its tools.

    `BILLING` drops lines that an agent writes for its provider's bills. `DATES` moves lines that say nothing but the
    date to the end of the system prompt, and those with a time of day to the end of the last message. `GIT_STATUS`
    moves a snapshot of a repository to the end of the system prompt. `WHITESPACE` drops white space at the ends of
    lines. `TOOLS` sorts tools by name.
    """

    BILLING = "billing"
    DATES = "dates"
    GIT_STATUS = "git_status"
    WHITESPACE = "whitespace"
    TOOLS = "tools"


#: Characters of a line that may be a date or a header; longer ones are text.
LONGEST_LINE = 300

_BILLING = re.compile(r"x-anthropic-billing-header\s*:", re.IGNORECASE)
_GIT, _LAST_OF_GIT = "gitStatus:", "Recent commits:"

_LABEL = re.compile(
    r"""\s*[-*•>]*\s*\**(?:the\s+)?(?:
        (?:current|today['’]?s|present)\s+(?:local\s+|utc\s+)?
        (?:date\s*(?:and|&|/|,)\s*time|datetime|date|timestamp|time|day)
        | today | now | it\s+is\s+now | date\s+and\s+time
    )\**\s*(?:[:=]\**|\s(?:is|-)\s)\s*(?P<value>\S.*)""",
    re.IGNORECASE | re.VERBOSE,
)
_TIME = re.compile(r"\d{1,2}:\d{2}|\d\s*[ap]\.?m\b|\d{10}", re.IGNORECASE)
_DAY = re.compile(r"\d{4}|\d{1,2}[./-]\d{1,2}|\d{1,2}(?:st|nd|rd|th)\b", re.IGNORECASE)
_ZONE = re.compile(r"\b[A-Z][A-Za-z_]+/[A-Z][A-Za-z_]+(?:/[A-Z][A-Za-z_]+)?\b")
_WORD = re.compile(r"[^\W\d_]+")
_VALUE = re.compile(r"[\w\s,.:/+()*;'’-]+")
_SAID_OF_DAYS = """
monday tuesday wednesday thursday friday saturday sunday mon tue tues wed thu thur thurs fri sat sun
january february march april may june july august september october november december
jan feb mar apr jun jul aug sep sept oct nov dec
am pm a m p utc gmt z t cet cest est edt cst cdt mst mdt pst pdt bst ist jst st nd rd th
of the at in on and time timezone zone local week day year
"""
_WORDS = frozenset(_SAID_OF_DAYS.split())


def says_when(line: str) -> str:
    """`day` for a line that says nothing but which day it is, `time` where it says a time of day too; else empty."""
    if len(line) > LONGEST_LINE or (found := _LABEL.fullmatch(line.rstrip())) is None:
        return ""
    value = found["value"]
    words = _WORD.findall(_ZONE.sub(" ", value))
    if _VALUE.fullmatch(value) is None or not all(word.lower() in _WORDS for word in words):
        return ""
    if _TIME.search(value):
        return "time"
    return "day" if _DAY.search(value) else ""


def is_billing(line: str) -> bool:
    return _BILLING.match(line[:LONGEST_LINE]) is not None


@dataclass(slots=True)
class Piece:
    """Whole lines that a rule found: in which text, at which line, and which lines."""

    rule: PromptRule
    text: int
    line: int
    lines: list[str]


@dataclass(slots=True)
class SystemPrompt:
    """The texts of a system prompt, split by what rules found. `rest`: the lines of each text that stay in place."""

    rest: list[list[str]]
    dropped: list[Piece] = field(default_factory=list)
    behind: list[Piece] = field(default_factory=list)  # go behind the system prompt, in this order
    last: list[Piece] = field(default_factory=list)  # go behind the last message
    trimmed: list[Piece] = field(default_factory=list)  # lines as they were, before their ends were cut
    settled: int = 0  # how many of `behind`, from its end, stood there before

    @property
    def texts(self) -> list[str]:
        """The system prompt as it is to be: what stays, and behind the last text what goes there."""
        lines = [list(one) for one in self.rest]
        if lines:
            lines[-1] += [line for piece in self.behind for line in piece.lines]
        return ["\n".join(one) for one in lines]

    @property
    def touched(self) -> list[Piece]:
        """What is not where it was, in the order of the texts."""
        moved = self.behind[: len(self.behind) - self.settled]
        return sorted(
            [*self.dropped, *moved, *self.last, *self.trimmed], key=lambda one: (one.text, one.line)
        )


def split(texts: Sequence[str], rules: frozenset[PromptRule], *, has_last: bool) -> SystemPrompt:
    """What `rules` find in the texts of a system prompt. `has_last`: there is a message that a time of day can follow;
    else it stays where it is."""
    head = SystemPrompt([])
    days: list[Piece] = []
    gits: list[Piece] = []
    for number, text in enumerate(texts):
        lines = text.split("\n")
        if PromptRule.WHITESPACE in rules:
            lines = _trimmed(lines, number, head.trimmed)
        taken: dict[int, Piece] = {}
        if PromptRule.GIT_STATUS in rules:
            gits += (found := _snapshots(lines, number))
            taken = {line: one for one in found for line in range(one.line, one.line + len(one.lines))}
        rest: list[str] = []
        for at, line in enumerate(lines):
            if at in taken:
                continue
            if PromptRule.BILLING in rules and is_billing(line):
                head.dropped.append(Piece(PromptRule.BILLING, number, at, [line]))
                continue
            when = says_when(line) if PromptRule.DATES in rules else ""
            if when == "day" or (when == "time" and has_last):
                piece = Piece(PromptRule.DATES, number, at, [line])
                (days if when == "day" else head.last).append(piece)
            else:
                rest.append(line)
        head.rest.append(rest)
    head.behind = [*days, *gits]
    head.settled = _settled(head.behind, texts)
    return head


def _settled(behind: Sequence[Piece], texts: Sequence[str]) -> int:
    """How many pieces, from the last one on, stand at the end of the last text, one behind the other."""
    end = texts[-1].count("\n") + 1 if texts else 0
    for count, piece in enumerate(reversed(behind)):
        if piece.text != len(texts) - 1 or piece.line + len(piece.lines) != end:
            return count
        end = piece.line
    return len(behind)


def _trimmed(lines: list[str], text: int, found: list[Piece]) -> list[str]:
    cut = [line.rstrip(" \t\r") for line in lines]
    wrong = [(at, line) for at, (line, short) in enumerate(zip(lines, cut, strict=True)) if line != short]
    found += [Piece(PromptRule.WHITESPACE, text, at, [line]) for at, line in wrong]
    return cut


def _snapshots(lines: Sequence[str], text: int) -> list[Piece]:
    """Snapshots of a repository, each up to the empty line behind its last commits, the next one, or the end."""
    found: list[Piece] = []
    open_one: Piece | None = None
    in_commits = False
    for at, line in enumerate(lines):
        if line.startswith(_GIT):
            open_one, in_commits = Piece(PromptRule.GIT_STATUS, text, at, [line]), False
            found.append(open_one)
        elif open_one is not None and in_commits and not line.strip():
            open_one = None
        elif open_one is not None:
            open_one.lines.append(line)
            in_commits = in_commits or line.startswith(_LAST_OF_GIT)
    return found


def sorted_by_name(names: Sequence[str | None]) -> list[int] | None:
    """The order in which tools stand by their names; None where they do already, or one has none."""
    if any(name is None for name in names):
        return None
    order = sorted(range(len(names)), key=lambda at: (names[at] or "", at))
    return None if order == list(range(len(names))) else order


#: What stands between the last message and what was moved behind it.
MOVED = "From the system prompt:"


def with_moved(text: str, lines: Sequence[str]) -> str:
    """The text of a last message, with lines of the system prompt behind it."""
    return "\n".join([*([text, ""] if text else []), MOVED, *lines])
