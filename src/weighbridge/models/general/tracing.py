"""What a model's layers are: a forward pass of four tokens without weights, and what it asks of attention and cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from weighbridge.errors import UnsupportedModel, said
from weighbridge.models.files.config import MAX_HEAD_DIM, KvShape, StateShape
from weighbridge.models.general.seam import AttentionCall, listening
from weighbridge.models.general.states.carrying import NoKeysKept, cache_argument
from weighbridge.models.general.watching import LinearCalls, watched

TOKENS = 4


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """One attention of a forward pass, in the order in which they come.

    `kept` numbers the keys and values that it reads, among those that are kept; where `writes` is false, an earlier
    layer has written them (Gemma 3n shares them).
    """

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    kept: int
    writes: bool
    scale: float = 1.0
    window: int = 0
    bare: bool = True  # neither soft caps nor sinks

    @property
    def kv(self) -> KvShape:
        """What is kept of a token: keys and values in one size that the kernels take, padded with zeros."""
        widest = max(self.key_dim, self.value_dim)
        return KvShape(self.kv_heads, widest + widest % 2)


class _Running:
    """Which modules of a model are being computed, outermost first, by their names."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @contextmanager
    def noted(self, model: torch.nn.Module) -> Iterator[None]:
        """Note it while this is open."""
        hooks = []
        for name, module in model.named_modules():
            hooks += [
                module.register_forward_pre_hook(lambda *_, name=name: self.names.append(name)),
                module.register_forward_hook(lambda *_: self._end(), always_call=True),
            ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _end(self) -> None:
        self.names.pop()


class _StateRecorder(NoKeysKept):
    """Notes which states layers keep; there are none yet."""

    def __init__(self, running: _Running) -> None:
        super().__init__()
        self.shapes: dict[tuple[int, bool, int], StateShape] = {}
        self.carriers: list[str] = []
        self._running = running

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        self._asked()

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> None:
        self._asked()

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return False

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **others: Any,
    ) -> torch.Tensor:
        width = conv_kernel_size or conv_states.shape[-1]
        self._note(StateShape(layer_idx, False, state_idx, (*conv_states.shape[1:-1], width), False))
        return conv_states

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **others: Any
    ) -> torch.Tensor:
        in_float32 = recurrent_states.dtype is torch.float32
        self._note(StateShape(layer_idx, True, state_idx, tuple(recurrent_states.shape[1:]), in_float32))
        return recurrent_states

    def _note(self, shape: StateShape) -> None:
        self._asked()
        self.shapes[shape.layer, shape.recurrent, shape.index] = shape

    def _asked(self) -> None:
        name = self._running.names[-1]
        if name not in self.carriers:
            self.carriers.append(name)


class _Recorder:
    """Notes what each layer asks. Tensors are held, so that one that comes again is known by its identity."""

    def __init__(self, running: _Running) -> None:
        self.shapes: list[AttentionShape] = []
        self.within: list[tuple[str, ...]] = []  # the modules around each of them
        self._running = running
        self._keys: list[torch.Tensor] = []

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        asked: AttentionCall,
    ) -> torch.Tensor:
        _check(module, query, key, value, asked)
        known = next((index for index, one in enumerate(self._keys) if one is key), None)
        if known is None:
            self._keys.append(key)
        kept = len(self._keys) - 1 if known is None else known
        heads, kv_heads = query.shape[1], key.shape[1]
        shape = AttentionShape(
            heads,
            kv_heads,
            query.shape[3],
            value.shape[3],
            kept,
            writes=known is None,
            scale=asked.scale,
            window=asked.window,
            bare=not asked.softcap and asked.sinks is None,
        )
        self.shapes.append(shape)
        self.within.append(tuple(self._running.names))
        return query.new_empty(1, query.shape[2], heads, value.shape[3])


def _check(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, asked: AttentionCall
) -> None:
    """Raise UnsupportedModel for an attention that the paged kernels do not compute."""
    kind = type(module).__name__
    if asked.beyond is not None:
        raise UnsupportedModel(f"its attention ({kind}) asks for {asked.beyond}, which is not computed")
    if not query.shape[2] == key.shape[2] == value.shape[2] == TOKENS:
        raise UnsupportedModel(
            f"its attention ({kind}) is not of the tokens of one text: {key.shape[2]} of them"
        )
    if query.shape[0] != 1 or query.shape[1] % key.shape[1] or key.shape[1] != value.shape[1]:
        raise UnsupportedModel(f"its attention ({kind}) has heads that do not share keys and values evenly")
    if max(query.shape[3], value.shape[3]) > MAX_HEAD_DIM:
        raise UnsupportedModel(f"its heads are {query.shape[3]} wide, and {MAX_HEAD_DIM} is the most")


@dataclass(frozen=True, slots=True)
class Traced:
    """`linears`: layers that are only called. `by_token`: those of them that see every token once, as the batch has
    them, so that something can be added to the rows of some. `carriers`: modules that keep `states`."""

    shapes: tuple[AttentionShape, ...]
    linears: frozenset[str]
    by_token: tuple[str, ...]
    states: tuple[StateShape, ...]
    carriers: tuple[str, ...]


def trace(model: Any, carries: bool) -> Traced:
    """Return the attentions of a model on the meta device, what its layers carry from token to token, and what is known
    of its linear layers. `carries`: whether it says that it carries something.

    Raises UnsupportedModel where an attention is not ours to compute, or a state not ours to keep.
    """
    running, called = _Running(), dict[str, LinearCalls]()
    recorder, states = _Recorder(running), _StateRecorder(running)
    ids = torch.ones(1, TOKENS, dtype=torch.long, device="meta")
    positions = torch.arange(TOKENS, device="meta")[None]
    kept = {"use_cache": True, cache_argument(model): states} if carries else {"use_cache": False}
    try:
        with listening(recorder), watched(model, called), running.noted(model), torch.inference_mode():
            model(input_ids=ids, position_ids=positions, **kept)
    except UnsupportedModel:
        raise
    except Exception as error:
        raise UnsupportedModel(f"transformers does not run it on tokens alone: {said(error)}") from error
    if not recorder.shapes and not states.shapes:
        raise UnsupportedModel("it computes its attention itself, not through transformers' interface")
    carriers = tuple(states.carriers)
    if any(set(carriers) & set(within) for within in recorder.within):
        raise UnsupportedModel("its attention carries a state of its own from token to token")
    once = (name for name, calls in called.items() if calls == LinearCalls(1, TOKENS))
    by_token = tuple(name for name in once if not any(is_within(name, carrier) for carrier in carriers))
    kept_states = tuple(states.shapes.values())
    return Traced(tuple(recorder.shapes), frozenset(called), by_token, kept_states, carriers)


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")
