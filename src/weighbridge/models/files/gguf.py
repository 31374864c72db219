"""GGUF models: tensors under Hugging Face names and in its row order, and quantised codes as they are."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.files import gguf_names
from weighbridge.models.files.config import ModelConfig
from weighbridge.models.files.gguf_format import GgufMetadata, TensorEntry
from weighbridge.models.files.quantized import GROUP_SIZE, GroupQuantized
from weighbridge.models.files.tensors import StoredTensor

#: Architectures whose query and key rows the converter reorders, so that rotated pairs are neighbours.
PERMUTED = frozenset({"llama", "smollm3"})

#: Types of tensors that can be read.
SUPPORTED = (
    *(Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0),
    *(Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K),
)


class GgufFile(GgufMetadata):
    """A memory-mapped GGUF file; a tensor is read when it is asked for, not before."""

    def __init__(self, path: Path) -> None:
        """Raises BadInput for what is not a whole GGUF file, UnsupportedModel for unknown tensor types."""
        super().__init__(path)
        for entry in self._contents.tensors.values():
            if entry.kind not in SUPPORTED:
                supported = ", ".join(kind.name for kind in SUPPORTED)
                raise UnsupportedModel(
                    f"tensor {entry.name!r} of {path.name} has type {entry.kind.name}, which is not "
                    f"supported ({supported} are)"
                )

    def __contains__(self, name: str) -> bool:
        return self._entry(name) is not None

    def names(self) -> list[str]:
        """Names of all tensors, as Hugging Face calls them."""
        names: list[str] = []
        for name, entry in self._contents.tensors.items():
            names += gguf_names.expert_names(entry) or [gguf_names.hf_name(name)]
        return names

    def own_names(self) -> Collection[str]:
        """Names of all tensors, as GGUF calls them."""
        return self._contents.tensors.keys()

    def stored(self, name: str, config: ModelConfig) -> StoredTensor | None:
        """Return what the file says of a tensor by its Hugging Face name; None: it has none.

        Raises BadInput where a tensor holds more or fewer experts than the model has.
        """
        entry = self._entry(name)
        if entry is None:
            return None
        whole = self._contents.tensors[entry.name]
        experts = config.experts
        if len(whole.shape) == 3 and experts is not None and whole.shape[0] != experts.count:
            raise BadInput(
                f"tensor {entry.name!r} of {self.path} has shape {list(whole.shape)}, but the model has "
                f"{experts.count} experts"
            )
        return StoredTensor(entry.name, entry.shape, entry.kind.name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor by its Hugging Face name, rows first."""
        return self._find(name).shape

    def tensor(self, name: str, config: ModelConfig | None = None) -> torch.Tensor:
        """Return a tensor by its Hugging Face name, float32; with `config`, rows in Hugging Face's order."""
        entry = self._find(name)
        coded = self._codes(entry)
        values = self._floats(entry) if coded is None else coded.dequantized()
        order = None if config is None else self._row_order(name, config)
        return torch.from_numpy(values if order is None else values[order])

    def quantized(self, name: str, config: ModelConfig) -> GroupQuantized | None:
        """Return the codes of a Q4_0, Q4_1 or Q8_0 matrix; None for every other type."""
        coded = self._codes(self._find(name))
        order = self._row_order(name, config)
        if coded is None or order is None:
            return coded
        minimums = None if coded.minimums is None else coded.minimums[order]
        return GroupQuantized(coded.bits, coded.codes[order], coded.scales[order], minimums)

    def _find(self, name: str) -> TensorEntry:
        entry = self._entry(name)
        if entry is None:
            raise BadInput(
                f"{self.path.name} has no tensor {gguf_names.own_name(name)!r}: the file is incomplete"
            )
        return entry

    def _entry(self, name: str) -> TensorEntry | None:
        tensors = self._contents.tensors
        return tensors.get(gguf_names.gguf_name(name)) or gguf_names.find_expert(name, tensors)

    def _row_order(self, name: str, config: ModelConfig) -> npt.NDArray[np.int64] | None:
        stem = name.rpartition(".")[0]
        if self.architecture not in PERMUTED or not stem.endswith(("q_proj", "k_proj")):
            return None
        heads = config.num_heads if stem.endswith("q_proj") else config.num_kv_heads
        return rotate_half_order(heads, config.head_dim)

    def _floats(self, entry: TensorEntry) -> npt.NDArray[np.float32]:
        blocks = self._contents.blocks(entry)
        if entry.kind == Kind.F32:
            values = blocks.view("<f4")
        elif entry.kind == Kind.F16:
            values = blocks.view("<f2")
        else:
            values = dequantize(blocks, entry.kind)
        return np.array(values, dtype=np.float32).reshape(entry.shape)  # a copy: the file is mapped read-only

    def _codes(self, entry: TensorEntry) -> GroupQuantized | None:
        """Blocks of 32: Q4_0 is scale, 16 bytes; Q4_1 scale, minimum, 16 bytes; Q8_0 scale, 32 bytes.

        A byte of the 4-bit kinds holds code j in its low and code j + 16 in its high half.
        """
        if entry.kind not in (Kind.Q4_0, Kind.Q4_1, Kind.Q8_0) or len(entry.shape) != 2:
            return None
        rows = entry.shape[0]
        head = 4 if entry.kind == Kind.Q4_1 else 2
        body = GROUP_SIZE if entry.kind == Kind.Q8_0 else GROUP_SIZE // 2
        blocks = self._contents.blocks(entry).reshape(rows, -1, head + body)
        packed, scales = np.ascontiguousarray(blocks[:, :, head:]), _half(blocks, 0)
        if entry.kind == Kind.Q8_0:
            return GroupQuantized(8, packed.view(np.int8).reshape(rows, -1), scales, None)
        codes = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(rows, -1)
        # Q4_0 centres its codes on 8.
        minimums = scales * np.float32(-8.0) if entry.kind == Kind.Q4_0 else _half(blocks, 2)
        return GroupQuantized(4, codes, scales, minimums)


def rotate_half_order(heads: int, head_dim: int) -> npt.NDArray[np.int64]:
    """Row of the file for each row of ours: the file interleaves the halves of a head, we keep them apart."""
    rows = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
    return rows.swapaxes(1, 2).reshape(-1)


def _half(blocks: npt.NDArray[np.uint8], offset: int) -> npt.NDArray[np.float32]:
    """Return the float16 at `offset` of each block, as float32 [rows, blocks]."""
    halves = np.ascontiguousarray(blocks[:, :, offset : offset + 2]).view("<f2")
    return halves[:, :, 0].astype(np.float32)
