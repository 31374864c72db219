"""Where a prompt leaves the one before it: what moved in it, and what that cost. Of one tenant's prompts alone.

An agent sends its whole history with every turn. Where something near the beginning has moved, a date or the order of
tools, all that follows is computed again; the ticket then says where, what stood there, and what stands there now.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from weighbridge.cost.step import StepCost

#: Prompts of a tenant that are remembered, tenants, and tokens of all together.
MOST_PROMPTS, MOST_TENANTS, MOST_TOKENS = 8, 256, 4 << 20
#: Tokens that two prompts must have in common for one to be the other's successor.
LEAST_COMMON = 16
#: Tokens that are shown, and those around them that are looked at for what must not be.
SHOWN, AROUND = 8, 32

Tokens = np.ndarray[Any, np.dtype[np.int32]]
Decode = Callable[[Sequence[int]], str]
#: Finds what must not be shown in a text: where it begins and ends, and what it is.
Hide = Callable[[str], Sequence[tuple[int, int, str]]]


def common(one: Tokens, other: Tokens) -> int:
    """How many tokens two prompts have in common from their beginning on."""
    size = min(len(one), len(other))
    differs = one[:size] != other[:size]
    return int(differs.argmax()) if differs.any() else size


class Predecessors:
    """The last prompts of each tenant, in memory, under a name that keeps tenants and salts apart. Any thread."""

    def __init__(self, decode: Decode, hide: Hide) -> None:
        self._decode, self._hide = decode, hide
        self._prompts: OrderedDict[str, deque[Tokens]] = OrderedDict()  # who asked last is last
        self._held = 0
        self._lock = threading.Lock()

    def follow(self, whose: str, prompt: Sequence[int], cost: StepCost | None) -> dict[str, Any] | None:
        """Remember a prompt; say where it left its nearest predecessor. None: it has none, or goes on from it."""
        now = np.asarray(prompt, dtype=np.int32)
        with self._lock:
            before = self._prompts.setdefault(whose, deque())
            self._prompts.move_to_end(whose)
            nearest = max(before, key=lambda one: common(one, now), default=None)
            before.append(now)
            self._held += len(now)
            self._make_room(before)
        at = 0 if nearest is None else common(nearest, now)
        if nearest is None or at < LEAST_COMMON or at in (len(nearest), len(now)):
            return None
        again = min(len(nearest), len(now)) - at
        seconds = None if cost is None else cost.prefill_work(again, at)
        return {
            "left_at_token": at,
            "stood": self._shown(nearest, at),
            "stands": self._shown(now, at),
            "tokens_behind": again,
            "ms": None if seconds is None else round(1e3 * seconds, 3),
        }

    def _make_room(self, own: deque[Tokens]) -> None:
        while len(own) > MOST_PROMPTS:
            self._held -= len(own.popleft())
        while len(self._prompts) > MOST_TENANTS or self._held > MOST_TOKENS:
            name, oldest = next(iter(self._prompts.items()))
            if oldest:
                self._held -= len(oldest.popleft())
            if not oldest:
                del self._prompts[name]

    def _shown(self, prompt: Tokens, at: int) -> str:
        """A few tokens from a place on, without what is found in and around them."""
        before = self._decode(prompt[max(at - AROUND, 0) : at].tolist())
        text = self._decode(prompt[at : at + SHOWN].tolist())
        behind = self._decode(prompt[at + SHOWN : at + SHOWN + AROUND].tolist())
        start, end = len(before), len(before) + len(text)
        parts, done = [], start
        for first, last, kind in sorted(self._hide(before + text + behind)):
            if last > done and first < end:
                parts += [(before + text)[done : max(first, done)], f"[{kind}]"]
                done = min(last, end)
        return "".join([*parts, (before + text)[done:end]])
