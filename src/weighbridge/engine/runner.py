"""Runs one batch: lays its tokens out over the paged cache, computes the logits, samples."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np
import torch

from weighbridge.engine.batch import Batch, Sampled, Slice
from weighbridge.engine.experts.telemetry import ExpertTelemetry
from weighbridge.models.adapters.shelf import AdapterShelf
from weighbridge.models.compute.causal_model import CausalModel
from weighbridge.models.compute.kernels.api import BatchLayout, Int32, States
from weighbridge.models.compute.low_rank import NO_SLOT


class TokenSampler(Protocol):
    def sample(
        self, logits: torch.Tensor, batch: Batch, states: torch.Tensor | None, patience: float
    ) -> Sampled: ...


class Runner:
    """Executes batches on a decoder and a KV pool of `num_blocks` blocks of `block_size` tokens."""

    def __init__(
        self,
        decoder: CausalModel,
        sampler: TokenSampler,
        num_blocks: int,
        block_size: int,
        experts: ExpertTelemetry | None = None,
        kv_dtype: torch.dtype | None = None,
        adapters: AdapterShelf | None = None,
        sequences: int = 1,
    ) -> None:
        """`sequences`: how many run at once, each with its states where the model keeps some."""
        self.experts = experts
        self._adapters = adapters
        self._decoder = decoder
        self._sampler = sampler
        self._block_size = block_size
        self.hidden_size = decoder.config.hidden_size
        self._keeps_states = bool(decoder.config.states)
        self.cache = decoder.allocate_kv(num_blocks, block_size, kv_dtype, sequences)

    def execute(self, batch: Batch) -> Sampled:
        """Compute every slice of `batch`; keys and values are written, sampling slices get their tokens."""
        for source, target in batch.copies:
            self.cache.copy_block(source, target)
        token_ids, layout = lay_out(batch.slices, self._block_size)
        if self._keeps_states:
            layout.state_slots = np.array([piece.request.state_slot for piece in batch.slices], np.int32)
        rows = sampled_rows(batch.slices, layout.query_starts)
        padding = sum(piece.padding for piece in batch.slices)
        if padding:
            token_ids = np.concatenate([token_ids, np.zeros(padding, np.int32)])
        if self.experts is not None:
            self.experts.begin()
        if self._adapters is not None:
            counts = [piece.count for piece in batch.slices]
            self._adapters.begin(slots_of(batch.slices), counts, len(token_ids))
        states = self._states_needed(batch.slices)
        began = time.perf_counter()
        logits = self._decoder.forward(token_ids, layout, self.cache, rows, states)
        took = time.perf_counter() - began  # what a mask may cost the others: as much again
        if self.experts is not None:
            decodes = np.array([_decodes(piece) for piece in batch.slices], np.bool_)
            batch.experts_touched = self.experts.record(layout, rows, decodes)
        sampled = self._sampler.sample(logits, batch, None if states is None else states.out, took)
        sampled.model_seconds = took
        return sampled

    def _states_needed(self, slices: list[Slice]) -> States | None:
        """Make room for the hidden states of requests that embed and have their last position in this batch."""
        rows = embedding_rows(slices)
        if not len(rows):
            return None
        return States(rows, torch.empty(len(rows), self.hidden_size, dtype=self._decoder.dtype))


def slots_of(slices: list[Slice]) -> list[int]:
    """Return where the adapter of each slice is; NO_SLOT: it has none."""
    adapters = (piece.request.adapter for piece in slices)
    return [NO_SLOT if adapter is None else adapter.slot for adapter in adapters]


def lay_out(slices: list[Slice], block_size: int) -> tuple[Int32, BatchLayout]:
    """Return the token ids [T] of `slices` in order, and where each of them sits in the cache."""
    counts = np.fromiter((s.count for s in slices), np.int32, len(slices))
    starts = np.fromiter((s.start for s in slices), np.int32, len(slices))
    query_starts = np.zeros(len(slices) + 1, np.int32)
    np.cumsum(counts, out=query_starts[1:])
    token_ids = np.fromiter((t for s in slices for t in s.token_ids()), np.int32, int(query_starts[-1]))
    block_tables = np.zeros((len(slices), max(len(s.request.block_table) for s in slices)), np.int32)
    for row, piece in enumerate(slices):
        table = piece.request.block_table
        block_tables[row, : len(table)] = table
    sequence = np.repeat(np.arange(len(slices), dtype=np.int32), counts)
    positions = np.arange(len(token_ids), dtype=np.int32) - query_starts[sequence] + starts[sequence]
    slots = block_tables[sequence, positions // block_size] * block_size + positions % block_size
    return token_ids, BatchLayout(
        positions=positions,
        slots=slots.astype(np.int32),
        query_starts=query_starts,
        context_lens=starts + counts,
        block_tables=block_tables,
    )


def sampled_rows(slices: list[Slice], query_starts: Int32) -> Int32:
    """Return the rows of the batch whose logits are needed: of a slice those that are scored, then, where it samples,
    the last of its own tokens and one per draft."""
    rows: list[int] = []
    for piece, start, end in zip(slices, query_starts.tolist(), query_starts[1:].tolist(), strict=False):
        if piece.scored:
            rows.extend(range(start, start + piece.scored))
        if piece.samples:
            rows.extend(range(end - 1 - len(piece.drafts), end))
    return np.array(rows, np.int32)


def embedding_rows(slices: list[Slice]) -> Int32:
    """Return which of the sampled rows are needed as hidden states."""
    if not any(piece.request.embeds for piece in slices):
        return np.empty(0, np.int32)
    counts = [piece.scored + piece.sampled_rows for piece in slices]
    ends = np.cumsum(counts, dtype=np.int32)
    embeds = [piece.samples and piece.request.embeds for piece in slices]
    return ends[embeds] - np.int32(1)


def _decodes(piece: Slice) -> bool:
    """Whether a slice is one token of an answer: it may be all that the cache has left of a prompt, too."""
    request = piece.request
    return piece.count == 1 and not 0 < request.num_cached_tokens == piece.start < request.num_prompt_tokens
