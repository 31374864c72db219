"""When a failed attempt is tried again: before the first byte only, within a budget, never in a storm."""

from __future__ import annotations

from dataclasses import dataclass

#: Answers that another replica, or the same one later, may do better. A 500 may be the request's own fault,
#: so it gets one more chance and no further ones.
OVERLOADED = frozenset({429, 503})
BROKEN_BEHIND = frozenset({502, 504, 529})
#: What a replica answers when *our* key for it is wrong; the client cannot do anything about it.
KEY_REFUSED = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """`attempts` of a request in all; of all requests at most a share of `budget` is sent again, plus `burst`;
    a Retry-After of at most `longest_wait` seconds is waited for when no other replica is there."""

    attempts: int = 3
    budget: float = 0.2
    burst: float = 10.0
    longest_wait: float = 10.0


class EarnedBudget:
    """A bucket: what is sent fills it by a share of its size, what is sent again empties it by its own.

    When the whole fleet fails, retries then add at most `share` to the load instead of multiplying it
    (Finagle's retry budget). Sizes are requests for retries and tokens for hedges; `full` bounds the bucket.
    """

    def __init__(self, share: float, full: float, level: float = 0.0) -> None:
        self._share = share
        self._full = full
        self._level = level

    def earn(self, size: float = 1.0) -> None:
        self._level = min(self._level + self._share * size, self._full)

    def spend(self, size: float = 1.0) -> bool:
        """Whether one more of `size` may be sent; counts it."""
        if self._level < size:
            return False
        self._level -= size
        return True


def may_retry(status: int, attempt: int, has_deadline: bool) -> bool:
    """Whether an answer with `status` at the `attempt`-th try (from 1) may be tried elsewhere."""
    if status in OVERLOADED or status in KEY_REFUSED:
        return True
    if status == 504:
        return not has_deadline  # a replica's own "the deadline has passed" holds everywhere
    return status in BROKEN_BEHIND or (status == 500 and attempt == 1)


def backoff(attempt: int, jitter: float) -> float:
    """Seconds before trying the same replica again; `jitter` in [0, 1). Short: 50, 100, 200 ms at most.

    A client's patience is about two seconds to the first token, so longer waits would turn a hiccup into a
    failure.
    """
    return float(min(0.05 * 2 ** (attempt - 1), 0.2)) * (0.5 + 0.5 * jitter)
