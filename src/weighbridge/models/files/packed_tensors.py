"""Matrices in few bits out of safetensors: checked, then as codes of the nearest type that is kept, or as floats.

AWQ (Lin et al. 2023) has words of 8 outputs in an order of its own, GPTQ (Frantar et al. 2022) words of 8 inputs,
compressed-tensors words along each row; FP8 and int8 are as they are, with scales beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from gguf.constants import GGMLQuantizationType as Kind

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.files.fields import shown
from weighbridge.models.files.packing import WAY_OUT, Packing, PackingFormat
from weighbridge.models.files.quantized import GROUP_SIZE, StoredBlocks

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

#: Column of each 4 bits of an AWQ word, from the lowest.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
#: A scale that float16 misses by more than this part of it is not kept in float16.
_SCALE_ERROR = 2.0**-10
#: What an E2M1 code (OCP Microscaling, 2023) stands for, by its lower three bits.
_E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)

#: Beside packed matrices: what their own runtimes round activations and caches by, and shapes that are known.
_BESIDE = (
    "input_scale",
    "input_zero_point",
    "output_scale",
    "activation_scale",
    "k_scale",
    "v_scale",
    "q_scale",
    "weight_shape",
)
_PARTS = (
    "qzeros",
    "scales",
    "g_idx",
    "weight_scale",
    "weight_scale_inv",
    "weight_zero_point",
    "weight_g_idx",
)
_MAIN = ("qweight", "weight_packed")


class TensorReader(Protocol):
    """A file of tensors by name."""

    def held(self, name: str) -> tuple[tuple[int, ...], str] | None:
        """Return a tensor's shape and type; None: there is none."""
        ...

    def whole(self, name: str) -> torch.Tensor:
        """Return a whole tensor."""
        ...


@dataclass(frozen=True, slots=True)
class ComputedBlocks(StoredBlocks):
    """Blocks of a matrix that another format packed. `exact`: its rows as that format means them.

    Where `kind` is F32 there are no blocks, and what is kept of it is rounded.
    """

    exact: Callable[[int, int], Floats]
    width: int
    said: str

    @property
    def columns(self) -> int:
        return self.width

    @property
    def label(self) -> str:
        return self.said

    def dequantized(self, start: int, end: int) -> Floats:
        return self.exact(start, end)


@dataclass(frozen=True, slots=True)
class _Codes:
    """w = scale * (code - zero). codes [rows, columns]; scales and zeros [rows, groups]; groups: that of each column,
    None: they are neighbours."""

    bits: int
    codes: Bytes
    scales: Floats
    zeros: npt.NDArray[np.int32]
    groups: npt.NDArray[np.int64] | None = None

    def exact(self, start: int, end: int) -> Floats:
        columns = self.codes.shape[1]
        groups = self.groups
        if groups is None:
            groups = np.arange(columns) // (columns // self.scales.shape[1])
        zeros = self.zeros[start:end].astype(np.float32)[:, groups]
        values: Floats = (self.codes[start:end] - zeros) * self.scales[start:end][:, groups]
        return values

    def kept(self) -> tuple[Kind, Bytes]:
        """The nearest type that is kept, and its blocks; F32 where none holds the codes as they are."""
        columns, groups = self.codes.shape[1], self.scales.shape[1]
        middle = bool((self.zeros == 1 << (self.bits - 1)).all())
        fits = self.groups is None and columns // groups % GROUP_SIZE == 0
        if not fits or self.bits not in (4, 8) or (self.bits == 8 and not middle):
            return Kind.F32, np.empty((len(self.codes), 0), np.uint8)
        scales = np.repeat(self.scales, columns // groups // GROUP_SIZE, axis=1)
        with np.errstate(over="ignore"):
            halves = [scales.astype(np.float16)]
            if self.bits == 4 and not middle:
                zeros = np.repeat(self.zeros, columns // groups // GROUP_SIZE, axis=1)
                halves.append((-zeros * scales).astype(np.float16))
        if not bool((np.abs(halves[0].astype(np.float32) - scales) <= np.abs(scales) * _SCALE_ERROR).all()):
            return Kind.F32, np.empty((len(self.codes), 0), np.uint8)
        if self.bits == 8:
            signed = (self.codes ^ np.uint8(0x80)).reshape(*scales.shape, GROUP_SIZE)
            return Kind.Q8_0, _blocks(halves, signed)
        return Kind.Q4_0 if middle else Kind.Q4_1, _blocks(halves, _nibbles(self.codes))


def mxfp4_blocks(packed: Bytes, exponents: Bytes, label: str) -> ComputedBlocks:
    """Return a matrix in MXFP4 as GGUF has it: [rows, columns / 2] of two codes a byte, the first one low, and
    [rows, columns / 32] of powers of two, from 2**-127 on (OCP Microscaling Formats 1.0)."""
    rows, columns = packed.shape[0], packed.shape[1] * 2
    codes = np.stack([packed & 15, packed >> 4], axis=2).reshape(rows, columns)
    blocks = np.concatenate([exponents[:, :, None], _nibbles(codes)], axis=2).reshape(rows, -1)

    def exact(start: int, end: int) -> Floats:
        part = codes[start:end]
        values = np.where(part & 8, -_E2M1[part & 7], _E2M1[part & 7])
        powers = np.exp2(exponents[start:end].astype(np.float32) - 127.0)
        values = values.reshape(len(part), -1, GROUP_SIZE) * powers[:, :, None]
        return np.ascontiguousarray(values.reshape(len(part), columns), np.float32)

    return ComputedBlocks(Kind.MXFP4, blocks, np.arange(rows), _nothing, exact, columns, label)


def _nibbles(codes: Bytes) -> Bytes:
    """Codes of 4 bits as GGUF has them: of each 32, the first half below the second."""
    groups = codes.reshape(len(codes), -1, GROUP_SIZE)
    packed: Bytes = groups[:, :, :16] | groups[:, :, 16:] << np.uint8(4)
    return packed


def _blocks(heads: list[Any], codes: Bytes) -> Bytes:
    """Scales before the codes of each block, all blocks of a row side by side."""
    rows, groups = codes.shape[:2]
    parts = [head.astype("<f2").view(np.uint8).reshape(rows, groups, 2) for head in heads]
    return np.concatenate([*parts, codes], axis=2).reshape(rows, -1)


def is_part(name: str, names: Collection[str]) -> bool:
    """Whether a tensor is only what belongs to a packed matrix beside it, or nothing that is computed with here."""
    stem, _, kind = name.rpartition(".")
    if kind in _BESIDE:
        return True
    mains = (*(f"{stem}.{main}" for main in _MAIN), f"{stem}.weight")
    return kind in _PARTS and any(main in names for main in mains)


class PackedTensors:
    """The packed matrices of one model."""

    def __init__(self, packing: Packing, reader: TensorReader, path: object) -> None:
        self._packing = packing
        self._reader = reader
        self._path = path
        self._last: dict[str, ComputedBlocks] = {}

    @property
    def label(self) -> str:
        return self._packing.label

    def matrices(self, names: Iterable[str]) -> Iterator[str]:
        """Yield the packed matrices among tensors, by the names that they have in floats."""
        for name in names:
            stem, _, kind = name.rpartition(".")
            if kind in (*_MAIN, "weight") and self.main(f"{stem}.weight") == name:
                yield f"{stem}.weight"

    def main(self, name: str) -> str | None:
        """Return the tensor that holds the codes of a matrix; None: it is in plain floats, or not there."""
        stem = name.removesuffix(".weight")
        if stem == name:
            return None
        for word in _MAIN:
            if self._reader.held(f"{stem}.{word}") is not None:
                return f"{stem}.{word}"
        held = self._reader.held(name)
        return name if held is not None and held[1] in ("F8_E4M3", "F8_E5M2", "I8") else None

    def shape(self, name: str) -> tuple[int, int]:
        """Return rows and columns of a packed matrix, whose parts all fit together.

        Raises BadInput or UnsupportedModel naming the part that does not.
        """
        main, format = self.main(name), self._packing.format
        assert main is not None
        first, second = self._pair(main)
        per_word = 32 // self._packing.bits
        if format is PackingFormat.AWQ:
            rows, columns, kind = second * per_word, first, "I32"
        elif format in (PackingFormat.GPTQ, PackingFormat.GPTQ_V2):
            rows, columns, kind = second, first * per_word, "I32"
        elif format is PackingFormat.INT_PACKED:
            rows, columns, kind = first, second * per_word, "I32"
        elif format is PackingFormat.MXFP4:
            rows, columns, kind = first, second * 2, "U8"
        else:
            rows, columns, kind = first, second, "F8_E4M3" if format is PackingFormat.FP8 else "I8"
        self._check_kind(main, kind)
        if format not in (PackingFormat.FP8, PackingFormat.INT8) and main == name:
            raise UnsupportedModel(
                f"tensor {name!r} of {self._path} is not as its configuration packs: {WAY_OUT}"
            )
        self._check_parts(main.rpartition(".")[0], rows, columns)
        return rows, columns

    def _pair(self, name: str) -> tuple[int, int]:
        held = self._reader.held(name)
        if held is None or len(held[0]) != 2 or 0 in held[0]:
            raise BadInput(f"tensor {name!r} of {self._path} is no matrix of codes: the file is damaged")
        return held[0][0], held[0][1]

    def _check_kind(self, name: str, *kinds: str) -> None:
        held = self._reader.held(name)
        if held is None or held[1] not in kinds:
            found = "missing" if held is None else f"of type {held[1]}"
            raise UnsupportedModel(
                f"tensor {name!r} of {self._path} is {found}, but {self.label} needs {' or '.join(kinds)}"
            )

    def _check_parts(self, stem: str, rows: int, columns: int) -> None:
        packing = self._packing
        size = packing.group_size or columns
        if columns % size:
            raise BadInput(
                f"{stem} of {self._path} has {columns} columns, which groups of {size} do not divide"
            )
        groups, floats = columns // size, ("F16", "BF16", "F32")
        words = 32 // packing.bits
        match packing.format:
            case PackingFormat.AWQ | PackingFormat.GPTQ | PackingFormat.GPTQ_V2:
                self._need(f"{stem}.qzeros", (groups, rows // words), ("I32",))
                self._need(f"{stem}.scales", (groups, rows), floats)
                if self._reader.held(f"{stem}.g_idx") is not None:
                    self._need(f"{stem}.g_idx", (columns,), ("I32", "I64"))
            case PackingFormat.INT_PACKED:
                self._need(f"{stem}.weight_scale", (rows, groups), floats)
                if not packing.symmetric:
                    self._need(f"{stem}.weight_zero_point", (-(-rows // words), groups), ("I32",))
                if self._reader.held(f"{stem}.weight_g_idx") is not None:
                    self._need(f"{stem}.weight_g_idx", (columns,), ("I32", "I64"))
            case PackingFormat.INT8:
                self._need(f"{stem}.weight_scale", (rows, 1), floats)
            case PackingFormat.MXFP4:
                self._need(f"{stem}.weight_scale", (rows, columns // GROUP_SIZE), ("U8",))
            case PackingFormat.FP8:
                self._scale_of_fp8(stem, rows, columns)

    def _need(self, name: str, shape: tuple[int, ...], kinds: tuple[str, ...]) -> None:
        held = self._reader.held(name)
        if held is None:
            raise BadInput(
                f"{self._path} has no tensor {name!r}, which {self.label} needs: the file is incomplete"
            )
        if held[0] != shape:
            raise BadInput(
                f"tensor {name!r} of {self._path} has shape {shown(list(held[0]))}, not {list(shape)}: the "
                "file is damaged"
            )
        self._check_kind(name, *kinds)

    def _scale_of_fp8(self, stem: str, rows: int, columns: int) -> str:
        """Return the name of the scale: for all, for each row, or for each block."""
        block = self._packing.block
        shapes: list[tuple[int, ...]] = [(), (1,), (1, 1), (rows,), (rows, 1)]
        if block is not None:
            shapes = [(-(-rows // block[0]), -(-columns // block[1]))]
        for word in ("weight_scale_inv", "weight_scale"):
            held = self._reader.held(f"{stem}.{word}")
            if held is not None:
                if held[0] not in shapes:
                    raise BadInput(
                        f"tensor {stem}.{word} of {self._path} has shape {shown(list(held[0]))}, which is no scale of "
                        f"{rows} rows and {columns} columns: the file is damaged"
                    )
                self._check_kind(f"{stem}.{word}", "F32", "BF16", "F16")
                return f"{stem}.{word}"
        raise BadInput(
            f"{self._path} has no tensor '{stem}.weight_scale', which FP8 needs: the file is incomplete"
        )

    # -- reading ---------------------------------------------------------------------------------------

    def blocks(self, name: str) -> ComputedBlocks:
        """Return a packed matrix. Raises BadInput for codes of groups that are not there."""
        if name not in self._last:
            rows, columns = self.shape(name)
            main = self.main(name)
            assert main is not None
            made = self._made(main, rows, columns)
            if len(self._last) > 2:  # what is loaded together: query, key and value
                self._last.clear()
            self._last[name] = made
        return self._last[name]

    def _made(self, main: str, rows: int, columns: int) -> ComputedBlocks:
        order, label = np.arange(rows), self.label
        if self._packing.format is PackingFormat.FP8:
            none = np.empty((rows, 0), np.uint8)
            return ComputedBlocks(
                Kind.F32, none, order, _nothing, self._fp8(main, rows, columns), columns, label
            )
        if self._packing.format is PackingFormat.MXFP4:
            return self._mxfp4(main, rows, columns)
        codes = self._codes(main, rows, columns)
        kind, blocks = codes.kept()
        return ComputedBlocks(kind, blocks, order, _nothing, codes.exact, columns, label)

    def _array(self, name: str) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = self._reader.whole(name).numpy()
        return array

    def _floats(self, name: str) -> Floats:
        floats: Floats = self._reader.whole(name).float().numpy()
        return floats

    def _fp8(self, main: str, rows: int, columns: int) -> Callable[[int, int], Floats]:
        stem = main.rpartition(".")[0]
        weight, scale = self._reader.whole(main), self._floats(self._scale_of_fp8(stem, rows, columns))
        block = self._packing.block

        def exact(start: int, end: int) -> Floats:
            values: Floats = weight[start:end].float().numpy()
            if block is not None:
                by_row = scale[np.arange(start, end) // block[0]]
                return values * by_row[:, np.arange(columns) // block[1]]
            whole = scale.size == 1
            return values * (scale.reshape(-1)[0] if whole else scale.reshape(-1, 1)[start:end])

        return exact

    def _mxfp4(self, main: str, rows: int, columns: int) -> ComputedBlocks:
        stem = main.rpartition(".")[0]
        return mxfp4_blocks(self._array(main), self._array(f"{stem}.weight_scale"), self.label)

    def _codes(self, main: str, rows: int, columns: int) -> _Codes:
        packing, stem = self._packing, main.rpartition(".")[0]
        bits = packing.bits
        match packing.format:
            case PackingFormat.AWQ:
                codes = _awq_unpacked(self._array(main)).T
                zeros = _awq_unpacked(self._array(f"{stem}.qzeros")).T.astype(np.int32)
                return _Codes(bits, np.ascontiguousarray(codes), self._scales(stem), zeros)
            case PackingFormat.GPTQ | PackingFormat.GPTQ_V2:
                codes = _unpacked(self._array(main).T, bits)
                zeros = _unpacked(self._array(f"{stem}.qzeros"), bits).T.astype(np.int32)
                if packing.format is PackingFormat.GPTQ:
                    zeros = zeros + 1
                groups = self._groups(f"{stem}.g_idx", columns, zeros.shape[1])
                return _Codes(bits, np.ascontiguousarray(codes), self._scales(stem), zeros, groups)
            case PackingFormat.INT8:
                codes = self._array(main).view(np.uint8) ^ np.uint8(0x80)
                zeros = np.full((rows, 1), 128, np.int32)
                return _Codes(8, codes, self._floats(f"{stem}.weight_scale"), zeros)
            case _:
                return self._compressed(main, stem, rows, columns)

    def _compressed(self, main: str, stem: str, rows: int, columns: int) -> _Codes:
        bits = self._packing.bits
        codes, scales = _unpacked(self._array(main), bits), self._floats(f"{stem}.weight_scale")
        zeros = np.full(scales.shape, 1 << (bits - 1), np.int32)
        if not self._packing.symmetric:
            stored = self._array(f"{stem}.weight_zero_point")
            zeros = _unpacked(np.ascontiguousarray(stored.T), bits).T[:rows].astype(np.int32)
        groups = self._groups(f"{stem}.weight_g_idx", columns, scales.shape[1])
        return _Codes(bits, codes, scales, zeros, groups)

    def _scales(self, stem: str) -> Floats:
        return np.ascontiguousarray(self._floats(f"{stem}.scales").T)

    def _groups(self, name: str, columns: int, count: int) -> npt.NDArray[np.int64] | None:
        """Return the group of each column where they are out of order (act-order); None: they are neighbours."""
        if self._reader.held(name) is None:
            return None
        groups = self._array(name).astype(np.int64)
        if (groups == -1).all() or np.array_equal(groups, np.arange(columns) // (columns // count)):
            return None
        if groups.min() < 0 or groups.max() >= count:
            raise BadInput(
                f"tensor {name!r} of {self._path} names groups beyond the {count} there are: it is damaged"
            )
        return groups


def _nothing() -> None:
    """Nothing to give back: the codes were copied."""


def _unpacked(words: npt.NDArray[Any], bits: int) -> Bytes:
    """Codes of each row of words, the lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    unsigned = np.ascontiguousarray(words).view(np.uint32)
    codes = (unsigned[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    return codes.astype(np.uint8).reshape(len(words), -1)


def _awq_unpacked(words: npt.NDArray[Any]) -> Bytes:
    """Codes of each row of words in the order of their columns."""
    codes = _unpacked(words, 4).reshape(len(words), -1, 8)
    ordered = np.empty_like(codes)
    ordered[:, :, list(_AWQ_ORDER)] = codes
    return ordered.reshape(len(words), -1)
