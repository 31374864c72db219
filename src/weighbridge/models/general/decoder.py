"""A decoder of transformers over our paged cache: the face of `compute.decoder.Decoder`, with its modules inside."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.compute.kernels.api import BatchLayout, Int32, Kernels, KVCache, States
from weighbridge.models.compute.layers import DecoderLayer
from weighbridge.models.general.attention import PagedPass
from weighbridge.models.general.description import Description
from weighbridge.models.general.kv import GroupedKVCache
from weighbridge.models.general.seam import listening
from weighbridge.models.general.states.carrying import CarriedStates, cache_argument, carry
from weighbridge.models.general.states.pool import StatePool


class GeneralDecoder:
    """`model` is transformers' own; its linear layers may be ours."""

    def __init__(self, description: Description, model: Any, dtype: torch.dtype, kernels: Kernels) -> None:
        self.config = description.model
        self.dtype = dtype
        self.kernels = kernels
        self.layers: Sequence[DecoderLayer] = ()
        self.model = model
        self._shapes = description.shapes
        self._selects = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._cache_argument = cache_argument(model)
        self.own: Decoder | None = None  # computes the same as `model`, sooner
        self.by_token = False  # whether its states go on by single tokens alone
        self._states: torch.Tensor | None = None
        carry(model.get_submodule(name) for name in description.carriers)
        self.listen()

    def listen(self) -> None:
        """Keep what the output matrix reads; again where another module has taken its place."""
        self.model.get_output_embeddings().register_forward_pre_hook(self._keep_states)

    def allocate_kv(
        self, num_blocks: int, block_size: int, dtype: torch.dtype | None = None, sequences: int = 1
    ) -> KVCache:
        """As `CausalModel.allocate_kv`; states are in float32 where transformers has them so."""
        shapes = [shape.kv for shape in self._shapes if shape.writes]
        states = self.config.states
        pool = StatePool(states, sequences, self.dtype) if states else None
        return GroupedKVCache(self.kernels, shapes, num_blocks, block_size, dtype or self.dtype, pool)

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Int32,
        layout: BatchLayout,
        cache: KVCache,
        rows: Int32,
        states: States | None = None,
    ) -> torch.Tensor:
        """As `Decoder.forward`. The batch is one row of tokens: only attention knows whose each of them is."""
        if not isinstance(cache, GroupedKVCache):
            raise ValueError(
                f"this decoder cannot use a {type(cache).__name__}; allocate it with allocate_kv"
            )
        if self.own is not None:
            return self.own.forward(token_ids, layout, cache.only, rows, states)
        ids = torch.from_numpy(token_ids.astype(np.int64))[None]
        positions = torch.zeros_like(ids)
        positions[0, : len(layout.positions)] = torch.from_numpy(layout.positions)
        wanted = torch.from_numpy(rows.astype(np.int64))
        some = {"logits_to_keep": wanted if len(rows) else torch.zeros(1, dtype=torch.long)}
        passing = PagedPass(self.kernels, self._shapes, layout, cache, self.dtype)
        kept: dict[str, Any] = {"use_cache": False}
        if cache.states is not None:
            carried = CarriedStates(cache.states, cache.states.groups(layout), self.by_token)
            kept = {"use_cache": True, self._cache_argument: carried}
        with listening(passing):
            output = self.model(
                input_ids=ids, position_ids=positions, **kept, **(some if self._selects else {})
            )
        if cache.states is not None:
            cache.states.settle(layout)
        logits: torch.Tensor = output.logits[0]
        if not self._selects:
            logits = logits[wanted]
        if states is not None:
            self._give_states(states, wanted)
        return logits[: len(rows)].to(self.dtype).contiguous()

    def _keep_states(self, head: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._states = inputs[0]

    def _give_states(self, states: States, wanted: torch.Tensor) -> None:
        assert self._states is not None
        hidden = self._states.flatten(0, -2)
        if hidden.shape[0] != len(wanted):  # of all tokens
            hidden = hidden[wanted]
        states.out.copy_(hidden[torch.from_numpy(states.rows.astype(np.int64))])
