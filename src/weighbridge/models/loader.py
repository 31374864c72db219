"""From a checkpoint to a decoder that runs: merge, convert and pack the weights of each layer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from enum import StrEnum

import torch

from weighbridge.errors import BadInput
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.compute.kernels import load_kernels
from weighbridge.models.compute.kernels.api import Kernels
from weighbridge.models.compute.layers import DecoderLayer, DecoderWeights
from weighbridge.models.compute.linear import Linear, make_linear
from weighbridge.models.compute.linear_hybrid import hybrid_linear, measure_quantized_crossover
from weighbridge.models.compute.rope import cos_sin_table
from weighbridge.models.experts.cache import ExpertCache
from weighbridge.models.experts.moe_loader import build_mlp, make_cache, normed_projection
from weighbridge.models.files.cache import weighbridge_home
from weighbridge.models.files.checkpoint import Checkpoint
from weighbridge.models.files.quantized import GROUP_SIZE, GroupQuantized, quantize, stack

log = logging.getLogger("weighbridge.models")

#: Hidden size below which both forms take microseconds and a measurement would be noise.
SMALLEST_MEASURED = 256

Report = Callable[[int, int], None]  # layers done, layers in all


class Quantize(StrEnum):
    """How the weights of the linear layers are kept. Activations are rounded to 8 bits where weights are few-bit.

    `auto`: as the file keeps them, so 4- and 8-bit GGUF matrices stay what they are, whatever the compute
    dtype, and everything else is dense.
    """

    AUTO = "auto"
    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"


def choose_dtype(name: str) -> torch.dtype:
    """Return the compute dtype `name`; `auto` is bfloat16 where the CPU multiplies it natively, else float32.

    It does so with AVX512-BF16, AMX or Arm BF16.
    """
    if name == "float32":
        return torch.float32
    if name == "bfloat16":
        return torch.bfloat16
    if name != "auto":
        raise BadInput(f"dtype {name!r} is not known: use float32, bfloat16 or auto", param="dtype")
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


class _Builder:
    """Packs one checkpoint; `dtype` is the compute dtype of activations and dense weights."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, scheme: Quantize) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.scheme = scheme
        self.expert_cache: ExpertCache | None = (
            None  # once set, experts are resident only as far as it has room
        )
        self._dense_from: dict[int, int | None] = {}

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of the checkpoint. Raises BadInput where it holds what is no number."""
        tensor = self.checkpoint.tensor(name)
        # One pass without a copy; a sum may also be too large, which the exact question settles.
        if not math.isfinite(float(tensor.sum(dtype=torch.float32))) and not bool(tensor.isfinite().all()):
            raise self._damaged(name)
        return tensor

    def _damaged(self, name: str) -> BadInput:
        path, own_name = self.checkpoint.path, self.checkpoint.own_name(name)
        return BadInput(
            f"tensor {own_name!r} of {path} holds values that are not finite: the file is damaged"
        )

    def norm(self, name: str) -> torch.Tensor:
        return self.tensor(name).float().contiguous()

    def linear(self, names: Sequence[str], bias: bool, bits: int) -> Linear:
        """One linear layer from the rows of several matrices. `bits` is what a quantised scheme keeps."""
        return self._linear(names, bias, bits, self._crossover)

    def output_matrix(self, name: str) -> Linear:
        """Return the matrix that decides each token directly: it keeps 8 bits even where the layers keep 4.

        It sees sampled rows alone, rarely as many as make a dense copy pay, which in float32 is four times the
        codes and a third of a small model: there it is not kept.
        """
        crossover = self._crossover if self.dtype != torch.float32 else lambda bits: None
        return self._linear([name], False, 8, crossover)

    def _linear(
        self, names: Sequence[str], bias: bool, bits: int, crossover: Callable[[int], int | None]
    ) -> Linear:
        offset = None
        if bias:
            parts = [self.tensor(name.removesuffix("weight") + "bias") for name in names]
            offset = torch.cat(parts).to(self.dtype)
        if self.scheme is not Quantize.NONE:
            quantized = self._quantized(names, bits)
            if quantized is not None:
                return hybrid_linear(quantized, offset, self.dtype, crossover(quantized.bits))
        weight = torch.cat([self.tensor(name).to(self.dtype) for name in names])
        return make_linear(weight, offset, self.dtype)

    def _quantized(self, names: Sequence[str], bits: int) -> GroupQuantized | None:
        """Return the file's own codes where it has them, else our rounding; None: this layer stays dense."""
        parts = [self._codes(name) for name in names]
        coded = [part for part in parts if part is not None]
        alike = len(coded) == len(names) and len({part.bits for part in coded}) == 1
        if self.scheme is Quantize.AUTO:
            return stack(coded) if alike else None
        if alike and coded[0].bits == bits:
            return stack(coded)
        weight = torch.cat([self.tensor(name).float() for name in names])
        return quantize(weight, bits) if weight.shape[1] % GROUP_SIZE == 0 else None

    def _codes(self, name: str) -> GroupQuantized | None:
        """Return the file's own codes of a matrix, if any. Raises BadInput where a scale is no number."""
        codes = self.checkpoint.quantized(name)
        if codes is not None and not codes.is_finite():
            raise self._damaged(name)
        return codes

    def _crossover(self, bits: int) -> int | None:
        """Tokens from which a dense copy pays on this machine (AMX), measured on this model's widest layer."""
        config = self.checkpoint.config
        if config.hidden_size % GROUP_SIZE or config.hidden_size < SMALLEST_MEASURED:
            return None
        if bits not in self._dense_from:
            rows = min(2 * config.intermediate_size, 8192)
            self._dense_from[bits] = measure_quantized_crossover(rows, config.hidden_size, bits, self.dtype)
        return self._dense_from[bits]

    def make_cache(self, memory: int, kernels: Kernels) -> ExpertCache | None:
        form = f"{str(self.dtype).removeprefix('torch.')}-{self.scheme.value}"
        directory = weighbridge_home() / "experts" / f"{self.checkpoint.fingerprint()[:16]}-{form}"
        return make_cache(self, self.checkpoint.config, kernels, self._bits, memory, directory)

    @property
    def _bits(self) -> int:
        return 4 if self.scheme is Quantize.INT4 else 8

    def layer(self, index: int, kernels: Kernels) -> DecoderLayer:
        config = self.checkpoint.config
        prefix = f"model.layers.{index}."
        attention = prefix + "self_attn."
        bits = self._bits
        qkv = [f"{attention}{name}_proj.weight" for name in "qkv"]
        return DecoderLayer(
            input_norm=self.norm(prefix + "input_layernorm.weight"),
            qkv=normed_projection(self, config, index, self.linear(qkv, config.qkv_bias, bits)),
            output=self.linear([attention + "o_proj.weight"], config.output_bias, bits),
            post_attention_norm=self.norm(prefix + "post_attention_layernorm.weight"),
            mlp=build_mlp(self, config, index, kernels, bits, self.expert_cache),
            q_norm=self.norm(attention + "q_norm.weight") if config.qk_norm else None,
            k_norm=self.norm(attention + "k_norm.weight") if config.qk_norm else None,
            rotates=config.rotary_layers[index],
            window=config.sliding_windows[index],
        )


def load_decoder(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    scheme: Quantize = Quantize.AUTO,
    *,
    max_model_len: int | None = None,
    kernels: Kernels | None = None,
    report: Report | None = None,
    expert_cache: int | None = None,
) -> Decoder:
    """Pack every layer of `checkpoint` for this CPU. `report` is called after each layer.

    expert_cache: bytes for the experts of a mixture; those that do not fit are mapped. None: all are resident.
    """
    config = checkpoint.config
    kernels = kernels or load_kernels()
    builder = _Builder(checkpoint, dtype, scheme)
    if expert_cache is not None:
        builder.expert_cache = builder.make_cache(expert_cache, kernels)
    layers = []
    for index in range(config.num_layers):
        layers.append(builder.layer(index, kernels))
        if report is not None:
            report(index + 1, config.num_layers)
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    weights = DecoderWeights(
        config,
        dtype,
        embedding=builder.tensor("model.embed_tokens.weight").to(dtype).contiguous(),
        layers=layers,
        final_norm=builder.norm("model.norm.weight"),
        lm_head=builder.output_matrix(head),
        cos_sin=cos_sin_table(config.rope, config.head_dim, max_model_len or config.max_position_embeddings),
    )
    return Decoder(weights, kernels)
