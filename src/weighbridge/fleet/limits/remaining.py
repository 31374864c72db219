"""What an answer's headers say is left of an account's limits: OpenAI's, Anthropic's, and the plain ones of others."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

#: No limit is heeded for longer than this, in seconds: then it is tried again.
LONGEST_REST = 3600.0

#: What is counted, and the headers that say how many are left and when the count starts anew.
_HEADERS = (
    ("requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("requests", "anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
    ("tokens", "anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
    ("input tokens", "anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset"),
    (
        "output tokens",
        "anthropic-ratelimit-output-tokens-remaining",
        "anthropic-ratelimit-output-tokens-reset",
    ),
    ("requests", "x-ratelimit-remaining", "x-ratelimit-reset"),
    ("requests", "ratelimit-remaining", "ratelimit-reset"),
)
_REMAINING = frozenset(remaining for _, remaining, _ in _HEADERS)
_PARTS = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d)")
#: Characters of a time; what is longer is none, and looking for its parts would take the square of it.
LONGEST_WORD = 64
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: Numbers from which on a reset is a time of the epoch: in seconds, and in milliseconds.
_EPOCH_S, _EPOCH_MS = 1e9, 1e12


@dataclass(frozen=True, slots=True)
class UsedUp:
    """Nothing is left of `kind` for `rest_s` seconds."""

    kind: str
    rest_s: float


def used_up(headers: Mapping[str, str], wall_now: float) -> UsedUp | None:
    """The limit of which nothing is left for longest; None while something is left of each. `wall_now`: epoch seconds.

    A limit that does not say when it starts anew is not heeded: the refusal that follows will say it.
    """
    if _REMAINING.isdisjoint(headers):
        return None
    wall_now = _answered_at(headers, wall_now)
    longest: UsedUp | None = None
    for kind, remaining, reset in _HEADERS:
        left = headers.get(remaining)
        if left is None or not _is_nothing(left):
            continue
        rest = seconds_of(headers.get(reset, ""), wall_now) or 0.0
        if rest > 0.0 and (longest is None or rest > longest.rest_s):
            longest = UsedUp(kind, rest)
    return longest


def seconds_of(text: str, wall_now: float) -> float | None:
    """Seconds until a time that an answer's header names: `1s`, `6m0s`, `20ms`, plain seconds, a time of the epoch, of
    HTTP or of RFC 3339. At most an hour, at least 0; None where it names none."""
    text = text.strip()
    if len(text) > LONGEST_WORD:
        return None
    parts = _PARTS.findall(text.lower())
    if parts and "".join(number + unit for number, unit in parts) == text.replace(" ", "").lower():
        return _bounded(sum(float(number) * _SECONDS[unit] for number, unit in parts))
    try:
        number = float(text)
    except ValueError:
        at = _epoch_of(text)
        return None if at is None else _bounded(at - wall_now)
    if number >= _EPOCH_MS:
        return _bounded(number / 1e3 - wall_now)
    return _bounded(number - wall_now if number >= _EPOCH_S else number)


#: Characters that are read of what may be several times.
LONGEST = 128


def retry_after(headers: Mapping[str, str], wall_now: float) -> float | None:
    """Seconds that an answer asks to wait: a number, or a date against the epoch seconds `wall_now`.

    Of several the longest; OpenAI's and Azure's milliseconds before the whole seconds beside them.
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        try:
            return seconds_of(str(float(headers.get(name, "")) / 1e3), wall_now)
        except ValueError:
            pass
    given = headers.get("retry-after", "")[:LONGEST]
    wall_now = _answered_at(headers, wall_now)
    if (whole := seconds_of(given, wall_now)) is not None:
        return whole
    parts = [seconds_of(part, wall_now) for part in given.split(",")]  # of two lines of that name
    return max((part for part in parts if part is not None), default=None)


def _answered_at(headers: Mapping[str, str], wall_now: float) -> float:
    """When an answer was given by the clock that its dates are of, where it says so: ours may be another."""
    said = headers.get("date", "")
    at = _epoch_of(said) if 0 < len(said) <= LONGEST_WORD else None
    return wall_now if at is None else at


def _epoch_of(text: str) -> float | None:
    """Seconds of the epoch of a date."""
    try:
        at = datetime.fromisoformat(text)
        return at.timestamp() if at.tzinfo is not None else None
    except (ValueError, OverflowError, OSError):
        pass
    try:
        parsed = email.utils.parsedate_tz(text)
        return None if parsed is None else float(email.utils.mktime_tz(parsed))
    except (ValueError, OverflowError, IndexError, TypeError):  # a year 12026, a 99th day
        return None


def _bounded(seconds: float) -> float | None:
    return min(max(seconds, 0.0), LONGEST_REST) if seconds == seconds else None


def _is_nothing(text: str) -> bool:
    try:
        return float(text) <= 0.0
    except ValueError:
        return False
