"""The order in which an earlier life of a run saw results, and how a resumed run comes to see them in that order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

GoOn = Callable[[], None]


class RecordedOrder:
    """Results wait here for their turn: first the recorded ones in their order, then everything else.

    A call that had not settled before the run was interrupted cannot have been seen before those that had.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys
        self._known = frozenset(keys)
        self._next = 0
        self._here: dict[str, GoOn] = {}
        self._gone: set[str] = set()
        self._others: list[GoOn] = []

    @property
    def next_key(self) -> str | None:
        """The call whose turn it is; None when all recorded ones have had theirs."""
        while self._next < len(self._keys) and self._keys[self._next] in self._gone:
            self._next += 1
        return self._keys[self._next] if self._next < len(self._keys) else None

    def arrives(self, key: str, go_on: GoOn) -> None:
        """A result is there. `go_on` lets the flow see it; of several for one call the first counts."""
        if key in self._known:
            self._here.setdefault(key, go_on)
        else:
            self._others.append(go_on)

    def let_go(self, key: str) -> None:
        """Nobody waits for a call any more, so that its turn is passed over."""
        if key not in self._here:
            self._gone.add(key)

    def take(self) -> GoOn | None:
        """Return what lets the next recorded result be seen, and move on; None while it is not there."""
        key = self.next_key
        go_on = None if key is None else self._here.pop(key, None)
        if go_on is not None:
            self._next += 1
        return go_on

    def rest(self) -> list[GoOn]:
        """Return all that still waits, recorded ones first, and forget it."""
        recorded = [self._here[key] for key in self._keys[self._next :] if key in self._here]
        rest, self._here, self._others = recorded + self._others, {}, []
        return rest
