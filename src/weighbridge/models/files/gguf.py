"""GGUF models: tensors under Hugging Face names and in its row order, as floats or in the blocks of the file."""

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
from weighbridge.models.files.quantized import StoredBlocks
from weighbridge.models.files.tensors import StoredTensor

#: Architectures whose query and key rows the converter reorders, so that rotated pairs are neighbours.
PERMUTED = frozenset({"llama", "smollm3"})

#: Types of plain floats.
FLOATS = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}

#: Types of tensors that can be read.
SUPPORTED = (
    *FLOATS,
    *(Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0),
    *(Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K),
    *(Kind.IQ1_S, Kind.IQ1_M, Kind.IQ2_XXS, Kind.IQ2_XS, Kind.IQ2_S, Kind.IQ3_XXS, Kind.IQ3_S),
    *(Kind.IQ4_NL, Kind.IQ4_XS, Kind.TQ1_0, Kind.TQ2_0, Kind.MXFP4),
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
            names += gguf_names.expert_names(entry) or [gguf_names.hf_name(name, self.architecture)]
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
        """Return a tensor by its Hugging Face name; with `config`, rows in Hugging Face's order.

        Floats have the type of the file, everything else is float32.
        """
        entry = self._find(name)
        values = self._floats(entry)
        order = None if config is None else self._row_order(name, config)
        return values if order is None else values[torch.from_numpy(order)]

    def blocks(self, name: str, config: ModelConfig) -> StoredBlocks | None:
        """Return a quantised matrix as the file has it; None for floats and for vectors."""
        entry = self._find(name)
        if entry.kind in FLOATS or len(entry.shape) != 2:
            return None
        order = self._row_order(name, config)
        return StoredBlocks(
            entry.kind,
            self._contents.blocks(entry),
            np.arange(entry.shape[0]) if order is None else order,
            lambda: self._contents.release(entry),
        )

    def _find(self, name: str) -> TensorEntry:
        entry = self._entry(name)
        if entry is None:
            raise BadInput(
                f"{self.path.name} has no tensor {gguf_names.own_name(name, self.architecture)!r}: the file is "
                "incomplete"
            )
        return entry

    def _entry(self, name: str) -> TensorEntry | None:
        tensors = self._contents.tensors
        return tensors.get(gguf_names.gguf_name(name, self.architecture)) or gguf_names.find_expert(
            name, tensors
        )

    def _row_order(self, name: str, config: ModelConfig) -> npt.NDArray[np.int64] | None:
        stem = name.rpartition(".")[0]
        if self.architecture not in PERMUTED or not stem.endswith(("q_proj", "k_proj")):
            return None
        heads = config.num_heads if stem.endswith("q_proj") else config.num_kv_heads
        return rotate_half_order(heads, config.head_dim)

    def _floats(self, entry: TensorEntry) -> torch.Tensor:
        blocks = self._contents.blocks(entry)
        if entry.kind not in FLOATS:
            return torch.from_numpy(dequantize(blocks, entry.kind).reshape(entry.shape))
        # A copy: the file is mapped read-only.
        return torch.from_numpy(np.array(blocks)).view(FLOATS[entry.kind]).reshape(entry.shape)


def rotate_half_order(heads: int, head_dim: int) -> npt.NDArray[np.int64]:
    """Row of the file for each row of ours: the file interleaves the halves of a head, we keep them apart."""
    rows = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
    return rows.swapaxes(1, 2).reshape(-1)
