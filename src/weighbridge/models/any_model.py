"""Any model on this disk: by our own decoder where its family is ours, else by transformers over our cache."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import torch

from weighbridge.errors import BadInput
from weighbridge.models.adapters.peft_file import MatrixShape
from weighbridge.models.adapters.shelf import AdapterShelf, ShelfSize
from weighbridge.models.adapters.sites import native_modules, native_sites
from weighbridge.models.compute.causal_model import CausalModel
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.file_model import file_model
from weighbridge.models.files.checkpoint import Checkpoint, open_checkpoint
from weighbridge.models.files.config import ModelConfig
from weighbridge.models.files.hf_config import FAMILIES, read_json
from weighbridge.models.loader import Quantize, Report, load_decoder, this_cpu


class ModelImpl(StrEnum):
    """What computes a model. `auto`: ours where it is one of our families."""

    AUTO = "auto"
    NATIVE = "native"
    TRANSFORMERS = "transformers"


class OpenedModel(Protocol):
    """A model whose weights are not read yet. `load` reads them; only `native` has them by name."""

    path: Path
    config: ModelConfig

    @property
    def native(self) -> Checkpoint | None:
        """The checkpoint that our own loader reads; None: transformers does."""
        ...

    def fingerprint(self) -> str:
        """Changes when a file does."""
        ...

    def load(
        self,
        dtype: torch.dtype,
        scheme: Quantize,
        *,
        max_model_len: int,
        report: Report | None,
        expert_cache: int | None,
    ) -> CausalModel:
        """Read the weights; `report` is called after each layer. Raises BadInput or UnsupportedModel."""
        ...

    def adaptable(self) -> Mapping[str, MatrixShape]:
        """The matrices that adapters may add to, by the names that transformers gives their modules."""
        ...

    def adapt(self, decoder: CausalModel, size: ShelfSize) -> AdapterShelf:
        """Let adapters add to a decoder that `load` returned."""
        ...


class NativeModel:
    """A model of our families."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.native: Checkpoint | None = checkpoint
        self._checkpoint = checkpoint
        self.path, self.config = checkpoint.path, checkpoint.config

    def fingerprint(self) -> str:
        return self._checkpoint.fingerprint()

    def load(
        self,
        dtype: torch.dtype,
        scheme: Quantize,
        *,
        max_model_len: int,
        report: Report | None,
        expert_cache: int | None,
    ) -> CausalModel:
        return load_decoder(
            self._checkpoint,
            dtype,
            scheme,
            max_model_len=max_model_len,
            report=report,
            expert_cache=expert_cache,
        )

    def adaptable(self) -> Mapping[str, MatrixShape]:
        return native_modules(file_model(self._checkpoint))

    def adapt(self, decoder: CausalModel, size: ShelfSize) -> AdapterShelf:
        assert isinstance(decoder, Decoder)
        shelf = AdapterShelf(native_sites(decoder.config, decoder.layers), size, decoder.dtype)
        decoder.adapt(shelf)
        return shelf


def open_model(path: Path, impl: str = ModelImpl.AUTO) -> OpenedModel:
    """Open a directory or a .gguf file. Raises BadInput or UnsupportedModel."""
    if impl not in list(ModelImpl):
        names = ", ".join(ModelImpl)
        raise BadInput(f"--model-impl {impl!r} is not known: use one of {names}", param="model_impl")
    if path.is_dir() and (impl == ModelImpl.TRANSFORMERS or (impl == ModelImpl.AUTO and not _is_ours(path))):
        # transformers takes seconds to import, which no start of ours should pay
        from weighbridge.models.general.opened import GeneralModel

        return GeneralModel(path, this_cpu())
    if impl == ModelImpl.TRANSFORMERS:
        raise BadInput(
            f"{path} is no model directory, and transformers is given nothing else", param="model_impl"
        )
    return NativeModel(open_checkpoint(path))


def _is_ours(directory: Path) -> bool:
    file = directory / "config.json"
    return not file.is_file() or read_json(file).get("model_type") in FAMILIES
