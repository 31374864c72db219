"""Room for adapters, worked out before weights are read: what does not fit, or is no adapter, is refused then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from weighbridge.errors import BadInput
from weighbridge.knobs import bytes_text
from weighbridge.models.adapters.named import AdapterOptions, NamedAdapter
from weighbridge.models.adapters.peft_file import AdapterFile, MatrixShape, open_adapter
from weighbridge.models.adapters.shelf import ShelfSize

OpenAdapter = Callable[[Path], AdapterFile]


@dataclass(frozen=True, slots=True)
class AdapterRoom:
    """`first`: the adapters that a server starts with, checked; `root`: below it others may be loaded later."""

    size: ShelfSize
    first: Sequence[tuple[NamedAdapter, AdapterFile]]
    open: OpenAdapter
    root: Path | None
    base_parameters: int  # of the layers that adapters can add to

    def nbytes(self, dtype: torch.dtype) -> int:
        return self.size.nbytes(dtype)


def adapter_room(
    model_name: str, modules: Callable[[], Mapping[str, MatrixShape]], options: AdapterOptions
) -> AdapterRoom | None:
    """Return the room that the options ask for; None: no adapters. Raises BadInput or UnsupportedModel.

    `modules`: the matrices of the model that adapters may add to. Without a root for others there is room for the
    adapters that are named, and no more.
    """
    if not options.wanted:
        return None
    shapes = modules()
    _check_names(model_name, options)

    def opened(path: Path) -> AdapterFile:
        return open_adapter(path, shapes, options.max_rank)

    first = [(named, opened(named.path)) for named in options.lora]
    if options.root is None:
        touched = {module for _, file in first for module in file.matrices}
        size = ShelfSize(
            len(first),
            max(file.rank for _, file in first),
            {module: shape for module, shape in shapes.items() if module in touched},
        )
        root = None
    else:
        root = _root(options.root)
        size = ShelfSize(options.most, options.max_rank, shapes)
    parameters = sum(shape.in_features * shape.out_features for shape in shapes.values())
    return AdapterRoom(size, first, opened, root, parameters)


def check_room(room: AdapterRoom, dtype: torch.dtype, free: int, beside: int = 0) -> None:
    """Raise BadInput where adapters, and `beside` bytes of cache, are more than the `free` ones."""
    size = room.nbytes(dtype)
    if size + beside > free:
        cache = f" beside {bytes_text(beside)} of KV cache" if beside else ""
        raise BadInput(
            f"{room.size.slots} adapters of rank {room.size.rank} take {size / 2**20:,.0f} MiB{cache}, and "
            f"{free / 2**20:,.0f} MiB are free: lower --max-loras or --max-lora-rank, or --kv-cache-memory",
            param="max_loras",
        )


def _check_names(model_name: str, options: AdapterOptions) -> None:
    names = [named.name for named in options.lora]
    twice = next((name for name in names if names.count(name) > 1 or name == model_name), None)
    if twice is not None:
        raise BadInput(
            f"--lora: {twice!r} is the name of two models; each needs one of its own", param="lora"
        )
    if len(names) > options.most:
        raise BadInput(
            f"--lora is given {len(names)} times, and --max-loras is {options.most}: raise it",
            param="max_loras",
        )


def _root(path: Path) -> Path:
    root = path.expanduser()
    if not root.is_dir():
        raise BadInput(f"--lora-root {path} is no directory", param="lora_root")
    return root.resolve()
