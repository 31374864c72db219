"""What an answer's headers say is left of an account's limits: OpenAI's, Anthropic's, and the plain ones of others."""

from __future__ import annotations

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
_PARTS = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
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
    longest: UsedUp | None = None
    for kind, remaining, reset in _HEADERS:
        left = headers.get(remaining)
        if left is None or not _is_nothing(left):
            continue
        rest = seconds_of(headers.get(reset, ""), wall_now)
        if rest > 0.0 and (longest is None or rest > longest.rest_s):
            longest = UsedUp(kind, rest)
    return longest


def seconds_of(reset: str, wall_now: float) -> float:
    """Seconds until a reset: `1s`, `6m0s`, `20ms`, plain seconds, a time of the epoch or of RFC 3339. 0 for none."""
    text = reset.strip()
    if len(text) > LONGEST_WORD:
        return 0.0
    parts = _PARTS.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return _bounded(sum(float(number) * _SECONDS[unit] for number, unit in parts))
    try:
        number = float(text)
    except ValueError:
        return _bounded(_epoch_of(text) - wall_now)
    if number >= _EPOCH_MS:
        return _bounded(number / 1e3 - wall_now)
    return _bounded(number - wall_now if number >= _EPOCH_S else number)


def _epoch_of(text: str) -> float:
    try:
        at = datetime.fromisoformat(text)
        return at.timestamp() if at.tzinfo is not None else 0.0
    except (ValueError, OverflowError, OSError):
        return 0.0


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_REST) if seconds == seconds else 0.0


def _is_nothing(text: str) -> bool:
    try:
        return float(text) <= 0.0
    except ValueError:
        return False
