"""The seam to transformers: every attention of its models that goes through its `AttentionInterface` comes here.

A model whose attention is `NAME` builds no mask and keeps no cache of its own: it hands over the queries, keys and
values of the batch, in one row of tokens, and whoever listens (`listening`) answers for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

#: As `attn_implementation` names it. No model of the hub can be loaded under it: it holds neither a slash nor a bar.
NAME = "weighbridge"


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What a layer asks of its attention beside queries, keys and values.

    window 0: all that is before a token; softcap 0: none. `sinks` [heads]: a logit for each head that takes its share
    of the softmax and gives nothing. `beyond` names what none of this says; it cannot be left out.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: torch.Tensor | None = None
    beyond: str | None = None


class AttentionListener(Protocol):
    """Answers for the attention of one forward pass."""

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        asked: AttentionCall,
    ) -> torch.Tensor:
        """query [1, heads, T, dim], key and value [1, kv heads, T, dim] to [1, T, heads, value dim]."""
        ...


_listener: ContextVar[AttentionListener] = ContextVar("weighbridge_attention")


@contextmanager
def listening(listener: AttentionListener) -> Iterator[None]:
    """Let `listener` answer for the attention of forward passes in this context."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


#: What layers pass along that changes nothing of what is computed here.
_IDLE = frozenset(
    {
        "position_ids",
        "cache_position",
        "position_embeddings",
        "layer_idx",
        "past_key_values",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "deterministic",
        "target_dtype",
    }
)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """`AttentionInterface`'s signature; what `others` hold is looked at once, by the listener that traces a model."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    beyond = None
    if attention_mask is not None:
        beyond = "a mask or a bias of its own"
    elif not causal:
        beyond = "sight of later tokens"
    elif others:
        beyond = next((name for name, value in others.items() if _matters(name, value)), None)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    asked = AttentionCall(scale, sliding_window or 0, softcap or 0.0, s_aux, beyond)
    return _listener.get().attend(module, query, key, value, asked), None


def _matters(name: str, value: object) -> bool:
    return (
        value is not None and value is not False and name not in _IDLE and (name != "dropout" or value != 0.0)
    )


AttentionInterface.register(NAME, _attention)
