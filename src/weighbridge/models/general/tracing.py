"""What a model's attention layers are: a forward pass of four tokens without weights, and what it asks of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from weighbridge.errors import UnsupportedModel, said
from weighbridge.models.files.config import MAX_HEAD_DIM, KvShape
from weighbridge.models.general.seam import AttentionCall, listening
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

    @property
    def kv(self) -> KvShape:
        """What is kept of a token: keys and values in one size that the kernels take, padded with zeros."""
        widest = max(self.key_dim, self.value_dim)
        return KvShape(self.kv_heads, widest + widest % 2)


class _Recorder:
    """Notes what each layer asks. Tensors are held, so that one that comes again is known by its identity."""

    def __init__(self) -> None:
        self.shapes: list[AttentionShape] = []
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
        shape = AttentionShape(heads, kv_heads, query.shape[3], value.shape[3], kept, known is None)
        self.shapes.append(shape)
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
    them, so that something can be added to the rows of some."""

    shapes: list[AttentionShape]
    linears: frozenset[str]
    by_token: tuple[str, ...]


def trace(model: Any) -> Traced:
    """Return the attentions of a model on the meta device, and what is known of its linear layers.

    Raises UnsupportedModel where an attention is not ours to compute.
    """
    recorder, called = _Recorder(), dict[str, LinearCalls]()
    ids = torch.ones(1, TOKENS, dtype=torch.long, device="meta")
    positions = torch.arange(TOKENS, device="meta")[None]
    try:
        with listening(recorder), watched(model, called), torch.inference_mode():
            model(input_ids=ids, position_ids=positions, use_cache=False)
    except UnsupportedModel:
        raise
    except Exception as error:
        raise UnsupportedModel(f"transformers does not run it on tokens alone: {said(error)}") from error
    if not recorder.shapes:
        raise UnsupportedModel("none of its layers has attention that goes through transformers' interface")
    by_token = tuple(name for name, calls in called.items() if calls == LinearCalls(1, TOKENS))
    return Traced(recorder.shapes, frozenset(called), by_token)
