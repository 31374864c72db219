"""One face for every checkpoint: a Hugging Face directory of safetensors, or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from weighbridge.errors import BadInput
from weighbridge.models import cache, gguf, hf_config
from weighbridge.models.config import ModelConfig
from weighbridge.models.hf_config import read_json
from weighbridge.models.quantized import GroupQuantized


class Checkpoint(Protocol):
    """Weights by their Hugging Face names, read one at a time from a mapped file."""

    config: ModelConfig
    path: Path

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in its stored float type (GGUF: float32). Raises BadInput when it is not there."""
        ...

    def quantized(self, name: str) -> GroupQuantized | None:
        """The file's own 4- or 8-bit codes of a matrix, or None when it has none."""
        ...

    def fingerprint(self) -> str:
        """Changes when the file does: hex of a hash over names, sizes and modification times."""
        ...


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a directory or a .gguf file. Raises BadInput or UnsupportedModel."""
    if path.is_dir():
        return SafetensorsCheckpoint(path)
    if not path.exists():
        raise BadInput(f"{path} does not exist")
    if path.suffix != ".gguf":
        raise BadInput(f"{path} is neither a model directory nor a .gguf file")
    return GgufCheckpoint(path)


class SafetensorsCheckpoint:
    """A Hugging Face directory: config.json and one or several safetensors files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = hf_config.read_config(path)
        self._file_of = _weight_map(path)
        self._open: dict[Path, safe_open] = {}

    def tensor(self, name: str) -> torch.Tensor:
        file = self._file_of.get(name)
        if file is None:
            raise BadInput(f"{self.path} has no tensor {name!r}: the checkpoint is incomplete")
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        tensor: torch.Tensor = self._open[file].get_tensor(name)
        return tensor

    def quantized(self, name: str) -> GroupQuantized | None:
        return None

    def fingerprint(self) -> str:
        return cache.fingerprint(sorted({self.path / "config.json", *self._file_of.values()}))


class GgufCheckpoint:
    """A GGUF file. Quantised tensors can be had as floats or as their codes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = gguf.GgufFile(path)
        self.config = gguf.read_config(self.file)

    def tensor(self, name: str) -> torch.Tensor:
        return self.file.tensor(name, self.config)

    def quantized(self, name: str) -> GroupQuantized | None:
        return self.file.quantized(name, self.config)

    def fingerprint(self) -> str:
        return cache.fingerprint([self.path])


def _weight_map(directory: Path) -> dict[str, Path]:
    """Tensor name -> file. Raises BadInput when there are no safetensors, naming what is there instead."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        names = {name: directory / file for name, file in read_json(index)["weight_map"].items()}
        missing = sorted({str(file) for file in names.values() if not file.exists()})
        if missing:
            raise BadInput(f"{index} names files that are not there: {', '.join(missing)}")
        return names
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        others = [file.name for suffix in ("*.bin", "*.pt", "*.pth") for file in directory.glob(suffix)]
        hint = (
            f"; {others[0]} is a pickle, which is never opened: convert it to safetensors" if others else ""
        )
        raise BadInput(f"{directory} has no .safetensors file{hint}")
    try:
        return {name: file for file in files for name in safe_open(file, framework="pt").keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise BadInput(f"a safetensors file in {directory} is damaged: {error}") from error
