"""What layers carry from token to token of a sequence, beside its keys and values: of convolutions and recurrences.

Each sequence has a slot, and a slot two copies of every state. A pass reads the one that has absorbed the tokens before
those it computes, and writes the other: a token that is computed again, or a whole pass that failed, finds the state
that was there before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from weighbridge.models.compute.kernels.api import BatchLayout, Int32
from weighbridge.models.files.config import NO_STATE, STATE_COPIES, StateShape

_NOTHING = -1  # tokens that a copy has absorbed which is nobody's


@dataclass(frozen=True, slots=True)
class StateKey:
    """Names a state of a model."""

    recurrent: bool  # False: the last inputs of a convolution
    layer: int
    index: int

    @classmethod
    def of(cls, shape: StateShape) -> StateKey:
        return cls(shape.recurrent, shape.layer, shape.index)


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """Sequences of a batch whose layers are computed at once, each with equally many tokens.

    `rows` [sequences, tokens]: where these are in the batch. `read` and `written` [sequences]: which copies, counted
    through all slots; None: they start from nothing, or leave nothing.
    """

    rows: torch.Tensor
    read: torch.Tensor | None
    written: torch.Tensor | None

    def steps(self, by_token: bool) -> Sequence[torch.Tensor]:
        """Return the rows that are computed at once: all, or, of a text that goes on, token by token."""
        if not by_token or self.read is None:
            return (self.rows,)
        return [self.rows[:, at : at + 1] for at in range(self.rows.shape[1])]


class StatePool:
    """States of up to `sequences` sequences, [copies of all slots, *size] each."""

    def __init__(self, shapes: Sequence[StateShape], sequences: int, dtype: torch.dtype) -> None:
        self._slots = sequences
        self._tensors = {
            StateKey.of(shape): torch.zeros(
                STATE_COPIES * sequences, *shape.size, dtype=torch.float32 if shape.in_float32 else dtype
            )
            for shape in shapes
        }
        self._absorbed = np.full((STATE_COPIES, sequences), _NOTHING, np.int64)  # tokens, by each copy
        self._latest = np.zeros(sequences, np.int64)  # the copy that was written last

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def __getitem__(self, key: StateKey) -> torch.Tensor:
        return self._tensors[key]

    def groups(self, layout: BatchLayout) -> list[SequenceGroup]:
        """Return the sequences of a batch: those that go on by one token together, the others one by one.

        Raises ValueError for a sequence whose tokens so far are in none of its copies.
        """
        if layout.state_slots is None:
            raise ValueError("this model keeps states: the batch does not say which are whose")
        read, written = self._copies(layout.state_slots, _starts(layout))
        together = (np.diff(layout.query_starts) == 1) & (read != _NOTHING)
        found = []
        if together.any():
            rows = torch.from_numpy(layout.query_starts[:-1][together].astype(np.int64))
            found.append(
                SequenceGroup(
                    rows[:, None], torch.from_numpy(read[together]), torch.from_numpy(written[together])
                )
            )
        for one in np.flatnonzero(~together):
            first, end = layout.query_starts[one : one + 2].tolist()
            found.append(SequenceGroup(torch.arange(first, end)[None], _of(read[one]), _of(written[one])))
        return found

    def settle(self, layout: BatchLayout) -> None:
        """Note that the tokens of a batch are absorbed."""
        assert layout.state_slots is not None
        kept = layout.state_slots != NO_STATE
        slots = layout.state_slots[kept]
        starts = _starts(layout)[kept]
        copies = self._written(slots, starts)
        self._absorbed[1 - copies, slots] = np.where(starts == 0, _NOTHING, self._absorbed[1 - copies, slots])
        self._absorbed[copies, slots] = layout.context_lens[kept]
        self._latest[slots] = copies

    def _copies(self, slots: Int32, starts: Int32) -> tuple[np.ndarray, np.ndarray]:
        """Return which copies the sequences read and write, counted through all slots."""
        read, written = np.full(len(slots), _NOTHING), np.full(len(slots), _NOTHING)
        kept = np.flatnonzero(slots != NO_STATE)
        target = self._written(slots[kept], starts[kept])
        written[kept] = target * self._slots + slots[kept]
        goes_on = starts[kept] > 0
        kept, source = kept[goes_on], 1 - target[goes_on]
        absorbed = self._absorbed[source, slots[kept]]
        if (absorbed != starts[kept]).any():
            raise ValueError(
                f"states of {absorbed.tolist()} tokens do not go on at positions {starts[kept].tolist()}"
            )
        read[kept] = source * self._slots + slots[kept]
        return read, written

    def _written(self, slots: Int32, starts: Int32) -> np.ndarray:
        """Return the copies that tokens from `starts` on are written to: not those that they are read from."""
        latest = self._latest[slots]
        return np.where(self._absorbed[latest, slots] == starts, 1 - latest, latest)


def _of(copy: np.integer) -> torch.Tensor | None:
    return None if copy == _NOTHING else torch.tensor([int(copy)])


def _starts(layout: BatchLayout) -> Int32:
    """Where the sequences of a batch go on."""
    return layout.context_lens - np.diff(layout.query_starts)
