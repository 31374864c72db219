"""The forms in which our kernels multiply few-bit weights, the types of GGUF that each holds, and its bytes."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from gguf.constants import GGMLQuantizationType as Kind


class Form(IntEnum):
    """How rows of a matrix lie in memory. `native/linear_forms.h` describes each; files of experts have the numbers."""

    Q4_1 = 4
    Q8_0 = 8
    BFLOAT16 = 16
    Q4_0 = 40
    IQ4_NL = 41
    IQ4_XS = 42
    MXFP4 = 43
    Q4_K = 44
    Q5_0 = 50
    Q5_1 = 51
    Q5_K = 54
    Q6_K = 64


#: Types that are kept without loss. Q3_K takes the form of Q6_K, which has its scales and room for its codes.
FORM_OF = {
    Kind.Q4_0: Form.Q4_0,
    Kind.Q4_1: Form.Q4_1,
    Kind.Q5_0: Form.Q5_0,
    Kind.Q5_1: Form.Q5_1,
    Kind.Q8_0: Form.Q8_0,
    Kind.Q3_K: Form.Q6_K,
    Kind.Q4_K: Form.Q4_K,
    Kind.Q5_K: Form.Q5_K,
    Kind.Q6_K: Form.Q6_K,
    Kind.IQ4_NL: Form.IQ4_NL,
    Kind.IQ4_XS: Form.IQ4_XS,
    Kind.MXFP4: Form.MXFP4,
}

#: Bits of a code, for what `--quantize` asks for.
_FOUR = (Form.Q4_0, Form.Q4_1, Form.Q4_K, Form.IQ4_NL, Form.IQ4_XS, Form.MXFP4)


def form_of(kind: Kind) -> Form:
    """Return the form of a type: its own, or 8 bits where it has none."""
    return FORM_OF.get(kind, Form.Q8_0)


ROWS_PER_TILE = 16
COLUMNS_PER_GROUP = 32


class _Layout(NamedTuple):
    """Bytes of a tile of 16 rows, as `native/linear_forms.h` has them."""

    codes: int  # of a group of 32 columns
    head: int  # of scales, once for `head_groups` groups
    scales: int  # of a group
    head_groups: int


_LAYOUTS = {
    Form.Q4_0: _Layout(256, 0, 32, 1),
    Form.IQ4_NL: _Layout(256, 0, 32, 1),
    Form.MXFP4: _Layout(256, 0, 32, 1),
    Form.Q4_1: _Layout(256, 0, 64, 1),
    Form.Q5_0: _Layout(320, 0, 32, 1),
    Form.Q5_1: _Layout(320, 0, 64, 1),
    Form.Q8_0: _Layout(512, 0, 32, 1),
    Form.Q4_K: _Layout(256, 64, 32, 8),
    Form.Q5_K: _Layout(320, 64, 32, 8),
    Form.Q6_K: _Layout(384, 32, 32, 8),
    Form.IQ4_XS: _Layout(256, 32, 16, 8),
}


def packed_bytes(form: Form, rows: int, columns: int) -> int:
    """Return what a matrix in this form takes, codes and scales; rows are rounded up to whole tiles."""
    tiles = -(-rows // ROWS_PER_TILE)
    if form is Form.BFLOAT16:
        return tiles * ROWS_PER_TILE * columns * 2
    layout, groups = _LAYOUTS[form], columns // COLUMNS_PER_GROUP
    return tiles * (groups * (layout.codes + layout.scales) + groups // layout.head_groups * layout.head)


def has_bits(kind: Kind, bits: int) -> bool:
    """Whether a matrix of this type is already kept in `bits` bits."""
    form = FORM_OF.get(kind)
    return form in _FOUR if bits == 4 else form is Form.Q8_0
