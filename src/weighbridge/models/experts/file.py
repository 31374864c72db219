"""Packed experts in safetensors files, mapped into memory: what a cache loads without packing anew.

One file per layer, bytes in the order the kernels read them, so that a load is one copy. Quantising an expert takes
a hundred times as long as reading it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from weighbridge.errors import WeighbridgeError, said
from weighbridge.models.compute.kernels.api import Kernels
from weighbridge.models.compute.layers import Mlp
from weighbridge.models.compute.linear import Linear
from weighbridge.models.compute.linear_hybrid import HybridLinear
from weighbridge.models.compute.linear_packed import PackedLinear, PackedRows
from weighbridge.models.compute.packed_forms import Form
from weighbridge.state.schema import VERSION_KEY, Schema, unchanged

_PARTS = ("gate_up", "down")
_UNREADABLE = (SafetensorError, OSError, KeyError, TypeError, ValueError)

#: A file of packed experts; its version stands in the metadata of safetensors.
PACKED: Schema[object] = Schema("file of packed experts", (unchanged,))


def packed(linear: Linear) -> PackedLinear | None:
    """Return the packed form of a linear layer whose rows are all in one."""
    few = linear.few if isinstance(linear, HybridLinear) else linear
    return few if isinstance(few, PackedLinear) and len(few.parts) == 1 else None


def write_layer(path: Path, experts: list[Mlp]) -> None:
    """Write all experts of one layer; every matrix must be packed."""
    tensors: dict[str, torch.Tensor] = {}
    shapes: dict[str, list[Any]] = {}
    for index, expert in enumerate(experts):
        for part in _PARTS:
            linear = packed(getattr(expert, part))
            assert linear is not None
            rows = linear.parts[0]
            tensors[f"{index}.{part}.codes"] = rows.codes
            if rows.scales is not None:
                tensors[f"{index}.{part}.scales"] = rows.scales
            shapes[f"{index}.{part}"] = [rows.rows, rows.columns, int(rows.form), rows.multiplier]
    save_file(tensors, path, metadata={"linears": json.dumps(shapes), VERSION_KEY: str(PACKED.version)})


class MappedExperts:
    """Experts of all sparse layers in a directory that `write` made."""

    def __init__(self, directory: Path, layers: int, dtype: torch.dtype, kernels: Kernels) -> None:
        self._directory = directory
        try:
            self._files: list[Any] = [
                safe_open(_file(directory, layer), framework="pt") for layer in range(layers)
            ]
            told = [file.metadata() for file in self._files]
            self._shapes = [json.loads(one["linears"]) for one in told]
            versions = [int(one.get(VERSION_KEY, 0)) for one in told]
        except _UNREADABLE as error:
            raise self._damaged(error) from error
        for layer, version in enumerate(versions):
            PACKED.check(version, str(_file(directory, layer)))  # nothing but the version was added so far
        self._dtype = dtype
        self._kernels = kernels

    def load(self, layer: int, expert: int) -> Mlp:
        gate_up, down = (self._linear(layer, f"{expert}.{part}") for part in _PARTS)
        return Mlp(gate_up, down, self._kernels)

    def _linear(self, layer: int, name: str) -> PackedLinear:
        file = self._files[layer]
        try:
            rows, columns, form, multiplier = self._shapes[layer][name]
            codes = file.get_tensor(f"{name}.codes").clone()  # its own memory, aligned as the kernels need it
            scales = None if form == Form.BFLOAT16 else file.get_tensor(f"{name}.scales").clone()
            part = PackedRows(Form(form), rows, columns, codes, scales, multiplier)
            return PackedLinear([part], None, self._dtype)
        except _UNREADABLE as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> WeighbridgeError:
        return WeighbridgeError(
            f"the packed experts in {self._directory} are damaged ({said(error)}): delete that directory, and they are "
            "packed again at the next start"
        )


def write(directory: Path, layers: int, pack: Callable[[int], list[Mlp]]) -> None:
    """Pack layer by layer into `directory`, which appears once it is complete. Raises WeighbridgeError."""
    if directory.exists():
        return
    unfinished = directory.with_name(f"{directory.name}.{os.getpid()}.part")
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        for layer in range(layers):
            write_layer(_file(unfinished, layer), pack(layer))
        unfinished.rename(directory)
    except OSError as error:
        if directory.exists():  # another process was first
            return
        raise WeighbridgeError(
            f"the packed experts cannot be written to {directory}: {said(error)}; free some room or set "
            "WEIGHBRIDGE_HOME to a directory that has it"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _file(directory: Path, layer: int) -> Path:
    return directory / f"layer-{layer:05d}.safetensors"
