"""The seam to transformers for what is carried between tokens: its layers ask a cache for it, which here is ours.

A layer that does so sees one text at a time, or one token of each of several; a batch is one row of tokens of many. So
such a layer is called once for each group of sequences, with the states of these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Cache

from weighbridge.models.general.states.pool import SequenceGroup, StateKey, StatePool


class NoKeysKept(Cache):  # type: ignore[misc]
    """The part of a cache that attention asks: nothing is there, and nothing is added."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *others: Any, **more: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def is_recording_past(self, layer_idx: int) -> bool:
        return False


class CarriedStates(NoKeysKept):
    """The cache of a whole batch. Layers that carry something are given a part of it (`carry`).

    `by_token`: a text that goes on does so by one token at a time, which is all that some layers know.
    """

    def __init__(self, pool: StatePool, groups: list[SequenceGroup], by_token: bool = False) -> None:
        super().__init__()
        self.parts = [GroupStates(pool, group) for group in groups]
        self.by_token = by_token


class GroupStates(NoKeysKept):
    """The cache of one group of sequences, for one layer at a time."""

    def __init__(self, pool: StatePool, group: SequenceGroup) -> None:
        super().__init__()
        self.group = group
        self._pool = pool
        self._held: dict[StateKey, torch.Tensor] = {}  # as they are now: some layers write into them

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self._state(StateKey(False, layer_idx, state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self._state(StateKey(True, layer_idx, state_idx))

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return self.group.read is not None

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **others: Any
    ) -> torch.Tensor:
        """Return the inputs of a convolution, [sequences, channels, tokens], behind those that came before."""
        key = StateKey(False, layer_idx, state_idx)
        before, width = self._state(key), self._pool[key].shape[-1]
        seen = conv_states if before is None else torch.cat([before, conv_states], dim=-1)
        if seen.shape[-1] < width:
            seen = F.pad(seen, (width - seen.shape[-1], 0))
        self._held[key] = seen[..., -width:]
        return seen

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **others: Any
    ) -> torch.Tensor:
        self._held[StateKey(True, layer_idx, state_idx)] = recurrent_states
        return recurrent_states

    def put_down(self) -> None:
        """Leave what the layer has made of its states in the pool."""
        if self.group.written is not None:
            for key, state in self._held.items():
                kept = self._pool[key]
                kept.index_copy_(0, self.group.written, state.to(kept.dtype))
        self._held.clear()

    def _state(self, key: StateKey) -> torch.Tensor | None:
        held = self._held.get(key)
        if held is None and self.group.read is not None:
            held = self._held[key] = self._pool[key].index_select(0, self.group.read)
        return held


def cache_argument(model: torch.nn.Module) -> str:
    """Return what the model calls its cache: those with states alone have another name for it."""
    named = inspect.signature(model.forward).parameters
    return "cache_params" if "cache_params" in named else "past_key_values"


def carry(layers: Iterable[torch.nn.Module]) -> None:
    """Let each of these layers see the sequences of a batch by groups, where it is given the states of one."""
    for layer in layers:
        layer.forward = _by_groups(layer.forward)


def _by_groups(forward: Callable[..., Any]) -> Callable[..., Any]:
    def grouped(*args: Any, **kwargs: Any) -> Any:
        carried = next((one for one in (*args, *kwargs.values()) if isinstance(one, CarriedStates)), None)
        if carried is None:  # one text, as it is
            return forward(*args, **kwargs)
        given = (*args, *kwargs.values())
        tokens = next(one.shape[1] for one in given if isinstance(one, torch.Tensor) and one.dim() > 1)
        made: Any = None
        for part in carried.parts:
            for rows in part.group.steps(carried.by_token):
                cut = _Cut(part, rows, tokens)
                own = forward(*map(cut, args), **{name: cut(one) for name, one in kwargs.items()})
                made = _put(made, own, rows, tokens)
            part.put_down()
        return made

    return grouped


class _Cut:
    """Takes rows of a group out of what is given for a whole batch."""

    def __init__(self, part: GroupStates, rows: torch.Tensor, tokens: int) -> None:
        self._part, self._rows, self._tokens = part, rows, tokens

    def __call__(self, value: Any) -> Any:
        if isinstance(value, CarriedStates):
            return self._part
        if isinstance(value, torch.Tensor) and value.shape[:2] == (1, self._tokens):
            return value[0][self._rows]
        return tuple(map(self, value)) if type(value) is tuple else value


def _put(made: Any, own: Any, rows: torch.Tensor, tokens: int) -> Any:
    """Return `made`, of a whole batch, with what a layer made of the rows of a group."""
    if isinstance(own, torch.Tensor):
        if made is None:  # rows behind the last token of a batch are nobody's
            made = own.new_zeros(1, tokens, *own.shape[2:])
        made[0, rows] = own
        return made
    if type(own) is tuple:
        return tuple(
            _put(None if made is None else made[index], one, rows, tokens) for index, one in enumerate(own)
        )
    return own
