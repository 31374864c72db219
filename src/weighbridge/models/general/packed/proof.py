"""A matrix that stays in few bits against what its file means: the layer that was made of it, asked with a few rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from weighbridge.errors import UnsupportedModel
from weighbridge.models.compute.linear import Linear
from weighbridge.models.compute.repack import WEIGHTS_AT_ONCE
from weighbridge.models.files.packed_tensors import ComputedBlocks

#: Rows that a layer is asked with.
ASKED = 2
#: By how much answers may be apart, as a share of their length, where weights keep so many bits: what rounding of
#: activations and weights makes is below a third of it, and any other order of rows, columns or groups far above.
APART = {8: 0.05, 4: 0.35}


def check_made(
    name: str,
    made: Linear,
    pieces: Sequence[ComputedBlocks],
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    rounded_to: int,
) -> None:
    """Raise UnsupportedModel where a layer does not multiply with the weights that `pieces` mean, in floats.

    They are made some rows at a time, so no matrix is ever whole in floats for it.
    """
    asked = torch.randn(ASKED, pieces[0].columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    meant = torch.cat([answer for piece in pieces for answer in _answers(piece, asked.float())], dim=1)
    found = made(asked).float() - (0.0 if bias is None else bias.float())
    apart = float((found - meant).norm() / meant.norm().clamp(min=1e-30))
    if not apart <= APART[rounded_to]:
        raise UnsupportedModel(f"matrix {name} as it is kept differs by {100 * apart:.2g} % from its file's")


def _answers(piece: ComputedBlocks, asked: torch.Tensor) -> list[torch.Tensor]:
    step = max(WEIGHTS_AT_ONCE // piece.columns, 1)
    starts = range(0, piece.rows, step)
    rows = (piece.dequantized(start, min(start + step, piece.rows)) for start in starts)
    return [asked @ torch.from_numpy(some).T for some in rows]
