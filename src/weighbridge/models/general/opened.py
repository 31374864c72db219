"""A model directory that is served through transformers: what is known of it, and then its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from weighbridge.errors import BadInput
from weighbridge.models.adapters.peft_file import MatrixShape
from weighbridge.models.adapters.shelf import AdapterShelf, ShelfSize
from weighbridge.models.compute.causal_model import CausalModel
from weighbridge.models.compute.kernels import load_kernels
from weighbridge.models.files.checkpoint import Checkpoint, SafetensorsDirectory
from weighbridge.models.general.adapted import general_sites
from weighbridge.models.general.decoder import GeneralDecoder
from weighbridge.models.general.description import describe
from weighbridge.models.general.loading import read_weights
from weighbridge.models.general.packed.linears import Packer, Report
from weighbridge.models.general.plain import called
from weighbridge.models.general.self_check import check_itself, check_packed, plain_model
from weighbridge.models.keeping import Cpu, Keeping, Quantize


class GeneralModel:
    """`config` has what the engine asks of a model: its sizes, and what a token keeps in each layer."""

    def __init__(self, path: Path, cpu: Cpu) -> None:
        self._files = SafetensorsDirectory(path)  # complete, and no pickles
        self.path, self._cpu = path, cpu
        self.native: Checkpoint | None = None
        self.description = describe(self._files)
        self.config = self.description.model

    def fingerprint(self) -> str:
        """Changes when the configuration or a file does."""
        return self._files.directory_fingerprint()

    def load(
        self,
        dtype: torch.dtype,
        scheme: Quantize,
        *,
        max_model_len: int,
        report: Report | None,
        expert_cache: int | None,
    ) -> GeneralDecoder:
        """Read the model and compare it with transformers' own forward pass. Raises BadInput or UnsupportedModel."""
        if expert_cache is not None:
            raise BadInput(
                f"--expert-cache is not for model type {self.config.architecture!r}: its experts are all in memory",
                param="expert_cache",
            )
        model, given = read_weights(self.path, self.description, dtype), self.description.given
        kernels = load_kernels()
        keeping = Keeping(scheme, str(dtype).removeprefix("torch."), self._cpu)
        packer = Packer(keeping, dtype, kernels, given.placed)
        if given.coded is not None:
            packer.take_coded(model, given.coded, report)
        if given.placed is not None:
            packer.take_placed(model, given.placed, report)
        decoder = GeneralDecoder(self.description, model, dtype, kernels)
        check_itself(decoder)
        plain = plain_model(decoder, self.description.shapes, max_model_len)
        packer.take_places(model, self.description.linears, report)
        packer.kept.log()
        decoder.listen()
        check_packed(decoder)
        if plain is not None:
            decoder.own = plain.decoder(dtype, max_model_len, called)
        return decoder

    def adaptable(self) -> Mapping[str, MatrixShape]:
        return self.description.adaptable

    def adapt(self, decoder: CausalModel, size: ShelfSize) -> AdapterShelf:
        assert isinstance(decoder, GeneralDecoder)
        decoder.own = None  # adapters add to the layers of the modules
        return AdapterShelf(general_sites(decoder), size, decoder.dtype)
