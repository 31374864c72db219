"""Weights that are numbers."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from weighbridge.errors import BadInput


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether a tensor holds nothing but numbers."""
    # One pass without a copy; a sum may also be too large, which the exact question settles.
    total = tensor.detach().sum(dtype=torch.float32)
    return math.isfinite(float(total)) or bool(tensor.isfinite().all())


def not_finite(name: str, path: Path) -> BadInput:
    """The error of one that does not, called `name` in the files at `path`."""
    return BadInput(f"tensor {name!r} of {path} holds values that are not finite: the file is damaged")
