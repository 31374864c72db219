"""An adapter's directory: checked against its base by the file's header, before any weight is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from weighbridge.errors import BadInput, UnsupportedModel, some_of
from weighbridge.models.adapters.peft_config import LoraConfig, lora_config
from weighbridge.models.compute.finite import is_finite
from weighbridge.models.files.checkpoint import open_safetensors
from weighbridge.models.files.fields import Fields, shown
from weighbridge.models.files.hf_config import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "adapter_model.ckpt")
_DTYPES = ("F32", "F16", "BF16")
#: What PEFT calls the matrices of a module; the adapter's own name, which it mostly leaves out, is `default`.
_MATRIX = re.compile(r"base_model\.model\.(.{1,400})\.lora_([AB])(?:\.default)?\.weight")
#: What else a file may have, and what it is.
_OTHERS = (
    ("lora_magnitude_vector", "part of DoRA"),
    ("lora_embedding_", "an embedding's"),
    (".lora_A.bias", "a bias"),
    (".lora_B.bias", "a bias"),
)


class MatrixShape(NamedTuple):
    """A matrix of the base that adapters may add to."""

    out_features: int
    in_features: int


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to one module: `scale` times `up` [out, rank] times `down` [rank, in], by their names."""

    shape: MatrixShape
    rank: int
    scale: float
    down: str
    up: str


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A checked adapter. `matrices` by the base's module names; `fingerprint`: 32 bytes that its contents give."""

    path: Path
    matrices: Mapping[str, LowRank]
    fingerprint: bytes

    @property
    def rank(self) -> int:
        """The largest of its modules'."""
        return max(matrix.rank for matrix in self.matrices.values())

    @property
    def parameters(self) -> int:
        return sum(
            one.rank * (one.shape.in_features + one.shape.out_features) for one in self.matrices.values()
        )

    def read(self, dtype: torch.dtype) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return `down` [rank, in] and scaled `up`, transposed to [rank, out], of each module in `dtype`.

        Raises BadInput for what is no number there.
        """
        with open_safetensors(self.path / WEIGHTS) as file:
            return {module: self._pair(file, module, one, dtype) for module, one in self.matrices.items()}

    def _pair(
        self, file: Any, module: str, one: LowRank, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        down = file.get_tensor(one.down).float().to(dtype)
        up = (file.get_tensor(one.up).float() * one.scale).to(dtype).T.contiguous()
        for name, tensor in ((one.down, down), (one.up, up)):
            if not is_finite(tensor):
                kind = str(dtype).removeprefix("torch.")
                raise BadInput(
                    f"tensor {shown(name)} of {self.path / WEIGHTS} holds NaN or infinity in {kind}: the adapter is "
                    "damaged, or its scale is too large"
                )
        return down, up


def open_adapter(directory: Path, modules: Mapping[str, MatrixShape], max_rank: int) -> AdapterFile:
    """Check an adapter against the matrices of its base. Raises BadInput or UnsupportedModel naming what is wrong."""
    _check_files(directory)
    config = lora_config(Fields(read_json(directory / CONFIG), str(directory / CONFIG)))
    with open_safetensors(directory / WEIGHTS) as file:
        matrices = _matrices(directory, file, config, modules)
    _check_whole(directory, config, matrices, modules)
    rank = max(one.rank for one in matrices.values())
    if rank > max_rank:
        raise BadInput(
            f"{directory}: its rank is {rank}, more than --max-lora-rank {max_rank}: start the server with more",
            param="max_lora_rank",
        )
    return AdapterFile(directory, matrices, _fingerprint(directory))


def _check_files(directory: Path) -> None:
    if not directory.is_dir():
        raise BadInput(
            f"{directory} is no directory: an adapter is one with {CONFIG} and {WEIGHTS}", param="lora"
        )
    if not (directory / CONFIG).is_file():
        raise BadInput(f"{directory} has no {CONFIG}: it is no adapter as PEFT saves them", param="lora")
    if (directory / WEIGHTS).is_file():
        return
    pickle = next((name for name in _PICKLES if (directory / name).exists()), None)
    if pickle is None:
        raise BadInput(f"{directory} has no {WEIGHTS}: it is no adapter as PEFT saves them", param="lora")
    raise BadInput(
        f"{directory} has only {pickle}, a pickle, which can run code and is never opened: convert the adapter with "
        "PEFT, `PeftModel.from_pretrained(BASE, DIR).save_pretrained(NEW_DIR)`",
        param="lora",
    )


def _matrices(
    directory: Path, file: Any, config: LoraConfig, modules: Mapping[str, MatrixShape]
) -> dict[str, LowRank]:
    names: dict[str, dict[str, str]] = {}
    for name in file.keys():  # noqa: SIM118 (no dict)
        module, side = _named(directory, name)
        if side in names.setdefault(module, {}):
            raise BadInput(f"{directory / WEIGHTS} has {shown(name)} twice, under two names")
        names[module][side] = name
    if not names:
        raise BadInput(f"{directory / WEIGHTS} has no tensors")
    return {
        module: _matrix(directory, file, config, module, sides, modules) for module, sides in names.items()
    }


def _named(directory: Path, name: str) -> tuple[str, str]:
    """Return the module and the side of a tensor. Raises UnsupportedModel for what is no matrix of a linear layer."""
    match = _MATRIX.fullmatch(name)
    if match is None:
        what = next((what for part, what in _OTHERS if part in name), "no matrix of a linear layer")
        raise UnsupportedModel(
            f"{directory / WEIGHTS}: {shown(name)} is {what}, which is not computed; merge the adapter into its base "
            "(PEFT's merge_and_unload()) and serve the result"
        )
    return match[1], match[2]


def _matrix(
    directory: Path,
    file: Any,
    config: LoraConfig,
    module: str,
    sides: Mapping[str, str],
    modules: Mapping[str, MatrixShape],
) -> LowRank:
    base = modules.get(module)
    if base is None:
        raise BadInput(
            f"{directory / WEIGHTS} adds to {shown(module)}, and the model has no linear layer of that name that "
            f"adapters can add to: they can to {_kinds(modules)}"
        )
    if len(sides) < 2:
        lost = "B" if "A" in sides else "A"
        raise BadInput(f"{directory / WEIGHTS} has no lora_{lost} of {shown(module)}: it is incomplete")
    rank = config.rank_of(module)
    wanted = {"A": [rank, base.in_features], "B": [base.out_features, rank]}
    for side, name in sides.items():
        held = file.get_slice(name)
        if list(held.get_shape()) != wanted[side]:
            raise BadInput(
                f"{directory / WEIGHTS}: {shown(name)} has shape {shown(held.get_shape())}, not {wanted[side]} as rank "
                f"{rank} and the model have it: it is of another model, or damaged"
            )
        if held.get_dtype() not in _DTYPES:
            raise UnsupportedModel(
                f"{directory / WEIGHTS}: {shown(name)} has type {held.get_dtype()} ({', '.join(_DTYPES)} are read)"
            )
    return LowRank(base, rank, config.scale_of(module), sides["A"], sides["B"])


def _kinds(modules: Mapping[str, MatrixShape]) -> str:
    """The last parts of the names, once each."""
    return some_of(list(dict.fromkeys(name.rpartition(".")[2] for name in modules)), 12) or "none"


def _check_whole(
    directory: Path, config: LoraConfig, found: Mapping[str, LowRank], modules: Mapping[str, MatrixShape]
) -> None:
    lost = [name for name in modules if name not in found and config.wants(name)]
    if lost:
        raise BadInput(
            f"{directory / WEIGHTS} has no matrices of {some_of(lost)}, which its target_modules name: it is incomplete"
        )


def _fingerprint(directory: Path) -> bytes:
    """32 bytes of a hash over the contents: what is cached of prompts is kept apart by it."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        digest.update(name.encode())
        with (directory / name).open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.digest()
