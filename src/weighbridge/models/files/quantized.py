"""Weights in few bits: as a GGUF file has them, and as our own rounding makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from weighbridge.errors import BadInput

GROUP_SIZE = 32

# Fractions of a 4-bit group's range to give up at the ends, and how often to refit the line for each.
RANGE_SHRINKS = (0.0, 0.05, 0.1, 0.15)
REFITS = 2

# Rounding makes a dozen temporaries: in slices of this many weights they stay in cache.
ELEMENTS_AT_ONCE = 1 << 19


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """A matrix in the blocks of a mapped GGUF file; nothing of it is read before it is asked for.

    blocks uint8 [stored rows, bytes of a row]; order int64 [rows]: the stored row of each row.
    """

    kind: Kind
    blocks: npt.NDArray[np.uint8]
    order: npt.NDArray[np.int64]
    release: Callable[[], None]  # gives the memory that reading took back to the system

    @property
    def rows(self) -> int:
        return len(self.order)

    @property
    def columns(self) -> int:
        block_columns, block_bytes = GGML_QUANT_SIZES[self.kind]
        return int(self.blocks.shape[1] // block_bytes * block_columns)

    @property
    def label(self) -> str:
        """What the log calls the type."""
        return str(self.kind.name)

    def dequantized(self, start: int, end: int) -> npt.NDArray[np.float32]:
        """Return the rows from `start` to `end` as floats [end - start, columns]."""
        values: npt.NDArray[np.float32] = dequantize(self.blocks[self.order[start:end]], self.kind)
        return values


@dataclass(frozen=True, slots=True)
class GroupQuantized:
    """A [rows, columns] matrix as w = scale * code + minimum, with a scale per row and 32 columns.

    bits 4: codes are uint8 in 0..15 and minimums is set. bits 8: codes are int8 and minimums is None.
    codes [rows, columns]; scales and minimums float32 [rows, columns / 32].
    """

    bits: int
    codes: npt.NDArray[np.uint8] | npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    minimums: npt.NDArray[np.float32] | None

    def dequantized(self) -> npt.NDArray[np.float32]:
        rows, columns = self.codes.shape
        groups = self.codes.reshape(rows, columns // GROUP_SIZE, GROUP_SIZE).astype(np.float32)
        values = groups * self.scales[:, :, None]
        if self.minimums is not None:
            values += self.minimums[:, :, None]
        return values.reshape(rows, columns)


def quantize(weight: torch.Tensor, bits: int) -> GroupQuantized:
    """Round `weight` [rows, columns] to groups of 32 columns: affine for 4 bits, symmetric for 8.

    4 bits: codes from the range of the group, then the scale and minimum that minimise the squared error,
    over a few narrower ranges. 8 bits: the largest magnitude maps to 127.
    Raises BadInput for other bits, or columns that do not divide into groups.
    """
    if bits not in (4, 8):
        raise BadInput(f"weights can be kept in 4 or 8 bits, not {bits}", param="quantize")
    if weight.dim() != 2 or weight.shape[1] % GROUP_SIZE:
        shape = tuple(weight.shape)
        raise BadInput(f"a matrix to quantise needs a multiple of {GROUP_SIZE} columns, not {shape}")
    rows_at_once = max(1, ELEMENTS_AT_ONCE // weight.shape[1])
    starts = range(0, max(weight.shape[0], 1), rows_at_once)
    return stack([_quantize_rows(weight[start : start + rows_at_once].detach(), bits) for start in starts])


def stack(parts: Sequence[GroupQuantized]) -> GroupQuantized:
    """Return the rows of several matrices with the same columns and bits as one matrix."""
    if len(parts) == 1:
        return parts[0]
    minimums = [part.minimums for part in parts if part.minimums is not None]
    return replace(
        parts[0],
        codes=np.concatenate([part.codes for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        minimums=np.concatenate(minimums) if minimums else None,
    )


def _quantize_rows(weight: torch.Tensor, bits: int) -> GroupQuantized:
    rows, columns = weight.shape
    groups = weight.float().reshape(rows, columns // GROUP_SIZE, GROUP_SIZE)
    if bits == 8:
        codes, scales = _round_symmetric(groups)
        return GroupQuantized(8, codes.reshape(rows, columns).numpy(), scales.numpy(), None)
    codes, scales, minimums = _round_affine(groups)
    return GroupQuantized(4, codes.reshape(rows, columns).numpy(), scales.numpy(), minimums.numpy())


def _round_symmetric(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = groups.abs().amax(dim=2) / 127.0
    inverse = torch.where(scales > 0, 1.0 / scales, torch.zeros_like(scales))
    codes = (groups * inverse[:, :, None]).round().clamp(-127, 127).to(torch.int8)
    return codes, scales


def _round_affine(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Try ranges that clip the outermost values a little; refit scale and minimum to the codes each time."""
    lowest, highest = groups.amin(dim=2), groups.amax(dim=2)
    best_error = torch.full_like(lowest, torch.inf)
    best_codes = torch.zeros(groups.shape, dtype=torch.uint8)
    best_scale, best_minimum = torch.zeros_like(lowest), lowest.clone()
    for shrink in RANGE_SHRINKS:
        inset = (highest - lowest) * (0.5 * shrink)
        scale, minimum = (highest - lowest - 2 * inset) / 15.0, lowest + inset
        for _ in range(REFITS):
            codes = _affine_codes(groups, scale, minimum)
            scale, minimum = _least_squares(groups, codes, scale, minimum)
        error = (codes * scale[:, :, None] + minimum[:, :, None] - groups).square().sum(dim=2)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_minimum = torch.where(better, minimum, best_minimum)
        best_codes = torch.where(better[:, :, None], codes.to(torch.uint8), best_codes)
    return best_codes, best_scale, best_minimum


def _affine_codes(groups: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
    inverse = torch.where(scale > 0, 1.0 / scale, torch.zeros_like(scale))
    return ((groups - minimum[:, :, None]) * inverse[:, :, None]).round().clamp(0, 15)


def _least_squares(
    groups: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the straight line through (code, weight) of each group; the old one where all codes are the same."""
    code_mean, value_mean = codes.mean(dim=2), groups.mean(dim=2)
    centred = codes - code_mean[:, :, None]
    variance = centred.square().sum(dim=2)
    slope = (centred * (groups - value_mean[:, :, None])).sum(dim=2) / variance.clamp_min(1e-12)
    flat = variance == 0
    scale = torch.where(flat, scale, slope)
    return scale, torch.where(flat, minimum, value_mean - slope * code_mean)
