"""What became of each class of weights on the way from the file to memory, for the log."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import torch

from weighbridge.models.compute.linear_packed import PackedRows
from weighbridge.models.compute.repack import form_of
from weighbridge.models.files.quantized import GroupQuantized, StoredBlocks

log = logging.getLogger("weighbridge.models")

_CLASSES = (
    ("embed_tokens", "embedding"),
    ("lm_head", "output"),
    ("self_attn", "attention"),
    (".experts.", "experts"),
    ("mlp", "feed-forward"),
)


class KeptWeights:
    """Bytes in memory by class of tensor and by what the weights are there."""

    def __init__(self) -> None:
        self.bytes: Counter[tuple[str, str]] = Counter()

    def codes(
        self, names: Sequence[str], stored: Sequence[StoredBlocks], packed: Sequence[PackedRows]
    ) -> None:
        """Note matrices that are codes in the file and in memory."""
        for name, matrix in zip(names, stored, strict=True):
            form = form_of(matrix.kind)
            same = [rows for rows in packed if rows.form is form]
            each = sum(rows.nbytes for rows in same) / sum(rows.rows * rows.columns for rows in same)
            kind = matrix.label if matrix.label == form.name else f"{matrix.label} as {form.name}"
            self.bytes[_class_of(name), kind] += round(each * matrix.rows * matrix.columns)

    def rounded(self, names: Sequence[str], quantized: GroupQuantized) -> None:
        """Note matrices of our own rounding."""
        size = quantized.codes.size * quantized.bits // 8 + 2 * quantized.scales.size * (8 // quantized.bits)
        self.bytes[_class_of(names[0]), f"rounded to int{quantized.bits}"] += size

    def dense(self, names: Sequence[str], weight: torch.Tensor) -> None:
        """Note matrices in floats."""
        self.bytes[_class_of(names[0]), str(weight.dtype).removeprefix("torch.")] += weight.nbytes

    def shared(self, name: str) -> None:
        """Note a matrix that is another one's memory."""
        self.bytes[_class_of(name), "shared with the output"] += 0

    def lines(self) -> list[str]:
        """One line a class: what its weights are in memory, with the bytes of each."""
        classes: dict[str, list[str]] = {}
        for (name, kind), size in self.bytes.items():
            classes.setdefault(name, []).append(f"{kind} {size / 1e6:.1f} MB" if size else kind)
        return [f"{name}: {', '.join(kinds)}" for name, kinds in classes.items()]

    def log(self) -> None:
        """Say it once, in the order in which the classes were loaded."""
        log.info("weights in memory: %s", "; ".join(self.lines()))


def _class_of(name: str) -> str:
    return next((word for part, word in _CLASSES if part in name), "other")
