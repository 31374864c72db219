"""One face for every checkpoint: a Hugging Face directory of safetensors, or a GGUF file.

Some safetensors hold all experts of a layer in one tensor, as transformers 5 keeps them: `experts.gate_up_proj` is
[experts, 2 * size, hidden], gate above up, and `experts.down_proj` [experts, hidden, size]; some files have each
matrix transposed. Every family calls the block `mlp` there, and its router `mlp.gate`. One expert's part is read.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from weighbridge.errors import BadInput, UnsupportedModel, said
from weighbridge.models.files import cache, gguf, gguf_config, gguf_names, hf_config
from weighbridge.models.files.config import ModelConfig
from weighbridge.models.files.fields import Fields, shown
from weighbridge.models.files.hf_config import read_json
from weighbridge.models.files.packed_tensors import PackedTensors, is_part
from weighbridge.models.files.packing import packing_of
from weighbridge.models.files.quantized import StoredBlocks
from weighbridge.models.files.tensors import PLAIN, StoredTensor, TensorTable, check_tensors

_BODY, _EMBEDDING = "model.", "model.embed_tokens.weight"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_EXPERT = re.compile(r"(model\.layers\.\d+)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight")
_ROUTER = re.compile(r"(model\.layers\.\d+)\.block_sparse_moe\.gate\.weight")
_PARTS = {"gate_proj": 0, "w1": 0, "up_proj": 1, "w3": 1, "down_proj": 2, "w2": 2}


class Checkpoint(TensorTable, Protocol):
    """Weights by their Hugging Face names, read one at a time from a mapped file."""

    def names(self) -> list[str]:
        """Hugging Face names of all tensors."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor in its stored float type (float32 where it is quantised).

        Raises BadInput when it is not there, UnsupportedModel for a type that is not a plain float.
        """
        ...

    def blocks(self, name: str) -> StoredBlocks | None:
        """Return a quantised matrix as the file has it; None: it is in plain floats."""
        ...

    def fingerprint(self) -> str:
        """Changes when the file does: hex of a hash over names, sizes and modification times."""
        ...


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a directory or a .gguf file, whose tensors are then those of its configuration.

    Raises BadInput or UnsupportedModel.
    """
    checkpoint: Checkpoint
    if path.is_dir():
        checkpoint = SafetensorsCheckpoint(path)
    elif not path.exists():
        raise BadInput(f"{path} does not exist")
    elif path.suffix != ".gguf" or not path.is_file():
        raise BadInput(f"{path} is neither a model directory nor a .gguf file")
    else:
        checkpoint = GgufCheckpoint(path)
    check_tensors(checkpoint)
    return checkpoint


def open_safetensors(file: Path) -> Any:
    """Return the mapped file. Raises BadInput when it cannot be read, is not safetensors, or is cut short."""
    try:
        with open(file, "rb"):  # the library says of a file that may not be read that there is none
            pass
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from error
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file} is not a complete safetensors file: {said(error)}") from error


class SafetensorsDirectory:
    """`file_of` maps names of tensors to files. Raises BadInput for a directory whose files are not complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: dict[Path, Any] = {}
        self.file_of = self._weight_map()

    def names(self) -> list[str]:
        return list(self.file_of)

    def directory_fingerprint(self) -> str:
        """Changes when the configuration or a file does."""
        return cache.fingerprint(sorted({self.path / "config.json", *self.file_of.values()}))

    def opened(self, file: Path) -> Any:
        """Return the mapped file. Raises BadInput when it is not safetensors, or is cut short."""
        if file not in self._open:
            self._open[file] = open_safetensors(file)
        return self._open[file]

    def own_name(self, name: str) -> str:
        """Return what the files call a tensor."""
        return name

    def held(self, name: str) -> tuple[tuple[int, ...], str] | None:
        """Return shape and type of a tensor by its own name; None: there is none."""
        file = self.file_of.get(name)
        if file is None:
            return None
        try:
            tensor = self.opened(file).get_slice(self.own_name(name))
        except SafetensorError as error:
            raise BadInput(f"{file} has no readable tensor {name!r}: {said(error)}") from error
        return tuple(tensor.get_shape()), str(tensor.get_dtype())

    def whole(self, name: str) -> torch.Tensor:
        """Return a tensor by its own name, of whatever type."""
        tensor: torch.Tensor = self.opened(self.file_of[name]).get_tensor(self.own_name(name))
        return tensor

    def _weight_map(self) -> dict[str, Path]:
        """Map tensor names to files. Raises BadInput when there are no safetensors, naming what is there."""
        index = self.path / "model.safetensors.index.json"
        if index.exists():
            return self._indexed(index)
        files = sorted(file for file in self.path.glob("*.safetensors") if file.is_file())
        if not files:
            raise BadInput(f"{self.path} has no .safetensors file{self._pickle_hint()}")
        file_of: dict[str, Path] = {}
        for file in files:
            for name in self.opened(file).keys():  # noqa: SIM118 (no dict)
                if name in file_of:
                    raise BadInput(
                        f"tensor {shown(name)} is in {file_of[name].name} and in {file.name} of {self.path}: "
                        "remove one of them, or add the model.safetensors.index.json that says which counts"
                    )
                file_of[name] = file
        return file_of

    def _indexed(self, index: Path) -> dict[str, Path]:
        entries = read_json(index).get("weight_map")
        if not isinstance(entries, dict) or not all(isinstance(file, str) for file in entries.values()):
            raise BadInput(f"{index} has no weight_map from tensors to files")
        # A file name, never a path: an index must not reach outside its directory.
        files = {file: self.path / Path(file).name for file in entries.values()}
        missing = sorted(name for name, file in files.items() if not file.is_file())
        if missing:
            raise BadInput(f"{index} names files that are not there: {', '.join(missing)}")
        held = {file: set(self.opened(file).keys()) for file in files.values()}
        lost = next((name for name, file in entries.items() if name not in held[files[file]]), None)
        if lost is not None:
            raise BadInput(f"{index} says that {entries[lost]} has a tensor {shown(lost)}, which it has not")
        return {name: files[file] for name, file in entries.items()}

    def _pickle_hint(self) -> str:
        pickles = sorted(file.name for pattern in _PICKLES for file in self.path.glob(pattern))
        if not pickles:
            return ""
        return (
            f"; {pickles[0]} is a pickle, which can run code and is never opened: convert the model with "
            "transformers, `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)`"
        )


class SafetensorsCheckpoint(SafetensorsDirectory):
    """A Hugging Face directory: config.json and one or several safetensors files."""

    def __init__(self, path: Path) -> None:
        self.config = hf_config.read_config(path)
        super().__init__(path)
        #: A body that was saved without a head around it: its names lack what everybody else's begin with.
        self._is_bare = _EMBEDDING not in self.file_of and _EMBEDDING.removeprefix(_BODY) in self.file_of
        if self._is_bare:
            self.file_of = {f"{_BODY}{name}": file for name, file in self.file_of.items()}
        packing = packing_of(Fields(read_json(path / "config.json")))
        self._packed = None if packing is None else PackedTensors(packing, self, path)

    def tensor(self, name: str) -> torch.Tensor:
        packed = self.blocks(name)
        if packed is not None:
            return torch.from_numpy(packed.dequantized(0, packed.rows))
        part = self._part(name)
        if part is None:
            raise BadInput(f"{self.path} has no tensor {name!r}: the checkpoint is incomplete")
        file = self.file_of[part.name]
        try:
            tensor = self._read(file, part)
        except SafetensorError as error:
            raise BadInput(f"{file} has no readable tensor {part.name!r}: {said(error)}") from error
        if tensor.dtype not in _FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UnsupportedModel(
                f"tensor {name!r} has type {kind}, which is not supported (float32, float16 and bfloat16 are)"
            )
        return tensor

    def blocks(self, name: str) -> StoredBlocks | None:
        packed = self._packed
        return None if packed is None or packed.main(name) is None else packed.blocks(name)

    @property
    def matrix_kinds(self) -> tuple[str, ...]:
        return PLAIN if self._packed is None else (*PLAIN, self._packed.label)

    def own_name(self, name: str) -> str:
        return name.removeprefix(_BODY) if self._is_bare else name

    def own_names(self) -> Collection[str]:
        names = self.file_of.keys()
        return names if self._packed is None else {name for name in names if not is_part(name, names)}

    def stored(self, name: str) -> StoredTensor | None:
        main = None if self._packed is None else self._packed.main(name)
        if self._packed is not None and main is not None:
            return StoredTensor(main, self._packed.shape(name), self._packed.label)
        part = self._part(name)
        if part is None:
            return None
        file = self.file_of[part.name]
        try:
            held = self.opened(file).get_slice(self.own_name(part.name))
        except SafetensorError as error:
            raise BadInput(f"{file} has no readable tensor {part.name!r}: {said(error)}") from error
        shape = tuple(held.get_shape())
        if part.expert is not None:
            shape = _cut(part, held.get_shape(), self.config).shape
        return StoredTensor(part.name, shape, str(held.get_dtype()))

    def fingerprint(self) -> str:
        return self.directory_fingerprint()

    def _part(self, name: str) -> _Part | None:
        return _Part(name) if name in self.file_of else _locate(name, self.file_of)

    def _read(self, file: Path, part: _Part) -> torch.Tensor:
        """Return a whole tensor, or what one expert has of it: nothing else is read."""
        tensor: torch.Tensor
        if part.expert is None:
            return self.whole(part.name)
        stored = self.opened(file).get_slice(self.own_name(part.name))
        cut = _cut(part, stored.get_shape(), self.config)
        if cut.transposed:
            tensor = stored[part.expert, :, cut.start : cut.end]
            return tensor.T.contiguous()
        tensor = stored[part.expert, cut.start : cut.end]
        return tensor


@dataclass(frozen=True, slots=True)
class _Part:
    """Where a matrix is: all of tensor `name` (expert None), or of one expert the half `half` (None: both)."""

    name: str
    expert: int | None = None
    half: int | None = None


def _locate(name: str, stored: Collection[str]) -> _Part | None:
    """Return the place of what a checkpoint does not have under its usual `name`; None: it has it nowhere."""
    router = _ROUTER.fullmatch(name)
    if router is not None:
        return _if_stored(_Part(f"{router[1]}.mlp.gate.weight"), stored)
    match = _EXPERT.fullmatch(name)
    kind = None if match is None else _PARTS.get(match[3])
    if match is None or kind is None:
        return None
    stem = f"{match[1]}.mlp.experts"
    tensor = f"{stem}.down_proj" if kind == 2 else f"{stem}.gate_up_proj"
    return _if_stored(_Part(tensor, int(match[2]), None if kind == 2 else kind), stored)


def _if_stored(part: _Part, stored: Collection[str]) -> _Part | None:
    return part if part.name in stored else None


@dataclass(frozen=True, slots=True)
class _Cut:
    """Rows or columns of one expert's matrix: `start` to `end` along the outer or inner axis, then turned or not."""

    start: int
    end: int
    columns: int
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix as it is read."""
        return self.end - self.start, self.columns


def _cut(part: _Part, shape: list[int], config: ModelConfig) -> _Cut:
    """Return how to take `part` out of a tensor of this shape. Raises BadInput when it is not that of the model."""
    experts = config.experts
    assert experts is not None
    size, hidden = experts.intermediate_size, config.hidden_size
    usual = (hidden, size) if part.half is None else (2 * size, hidden)
    if len(shape) != 3 or shape[0] != experts.count or tuple(shape[1:]) not in (usual, usual[::-1]):
        expected = [experts.count, *usual]
        raise BadInput(
            f"tensor {part.name!r} has shape {shown(shape)}, not {expected}: the checkpoint is damaged"
        )
    transposed = tuple(shape[1:]) != usual
    if part.half is None:
        return _Cut(0, *usual, transposed)
    return _Cut(part.half * size, (part.half + 1) * size, hidden, transposed)


class GgufCheckpoint:
    """A GGUF file. Quantised tensors are read as floats, or as the blocks that they are in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = gguf.GgufFile(path)
        self.config = gguf_config.read_config(self.file)

    def names(self) -> list[str]:
        return self.file.names()

    def tensor(self, name: str) -> torch.Tensor:
        return self.file.tensor(name, self.config)

    def blocks(self, name: str) -> StoredBlocks | None:
        return self.file.blocks(name, self.config)

    @property
    def matrix_kinds(self) -> tuple[str, ...]:
        return tuple(kind.name for kind in gguf.SUPPORTED)

    def own_name(self, name: str) -> str:
        return gguf_names.own_name(name, self.file.architecture)

    def own_names(self) -> Collection[str]:
        return self.file.own_names()

    def stored(self, name: str) -> StoredTensor | None:
        return self.file.stored(name, self.config)

    def fingerprint(self) -> str:
        return cache.fingerprint(self.file.files)
