"""From a checkpoint to a decoder that runs: merge, convert and pack the weights of each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

import torch

from weighbridge.errors import BadInput
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.compute.kernels import load_kernels
from weighbridge.models.compute.kernels.api import Kernels
from weighbridge.models.compute.layers import DecoderLayer, DecoderWeights
from weighbridge.models.compute.linear import Linear, make_linear
from weighbridge.models.compute.linear_hybrid import HybridLinear, hybrid_linear, measure_quantized_crossover
from weighbridge.models.compute.linear_packed import PackedLinear, PackedRows
from weighbridge.models.compute.packed_forms import Form, has_bits
from weighbridge.models.compute.repack import WEIGHTS_AT_ONCE, NotFiniteError, form_of, keeps, repacked
from weighbridge.models.compute.rope import cos_sin_table
from weighbridge.models.experts.cache import ExpertCache
from weighbridge.models.experts.moe_loader import build_mlp, make_cache, normed_projection
from weighbridge.models.files.cache import weighbridge_home
from weighbridge.models.files.checkpoint import Checkpoint
from weighbridge.models.files.quantized import GROUP_SIZE, GroupQuantized, quantize, stack
from weighbridge.models.files.tensors import layer_norms
from weighbridge.models.kept_weights import KeptWeights

EMBEDDING = "model.embed_tokens.weight"

#: Hidden size below which both forms take microseconds and a measurement would be noise.
SMALLEST_MEASURED = 256

Report = Callable[[int, int], None]  # layers done, layers in all


class Quantize(StrEnum):
    """How the weights of the linear layers are kept. Activations are rounded to 8 bits where weights are few-bit.

    `auto`: as the file keeps them, so the matrices of a GGUF file stay codes, whatever the compute dtype, and
    everything else is dense.
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
        self.kept = KeptWeights()
        self._dense_from: dict[int, int | None] = {}

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of the checkpoint. Raises BadInput where it holds what is no number."""
        return self._checked(self.checkpoint.tensor(name), name)

    def _checked(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
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
        weight = self.tensor(name).float()
        return (weight + 1.0 if self.checkpoint.config.norms_from_one else weight).contiguous()

    def dense(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Return a matrix in `dtype`; one that is in few bits is expanded some rows at a time."""
        blocks = self.checkpoint.blocks(name)
        if blocks is None:
            return self.tensor(name).to(dtype).contiguous()
        matrix, start = torch.empty(blocks.rows, blocks.columns, dtype=dtype), 0
        for rows in self._rows(name):
            matrix[start : start + len(rows)] = rows
            start += len(rows)
        return matrix

    def linear(self, names: Sequence[str], bias: bool, bits: int) -> Linear:
        """One linear layer from the rows of several matrices. `bits` is what a quantised scheme keeps."""
        return self._linear(names, bias, bits, self._crossover)

    def ends(self) -> tuple[torch.Tensor | PackedLinear, Linear]:
        """Return the embedding and the output matrix, in one piece of memory where they are the same.

        The output matrix decides each token directly: it keeps 8 bits even where the layers keep 4. It sees sampled
        rows alone, rarely as many as make a dense copy pay, which in float32 is four times the codes and a third of a
        small model: there it is not kept.
        """
        crossover = self._crossover if self.dtype != torch.float32 else lambda bits: None
        tied = self.checkpoint.config.tie_word_embeddings
        head = self._linear([EMBEDDING if tied else "lm_head.weight"], False, 8, crossover)
        packed = head.few if isinstance(head, HybridLinear) else head
        if tied and isinstance(packed, PackedLinear) and self._is_exact(packed):
            self.kept.shared(EMBEDDING)
            return packed, head
        own = self._repacked([EMBEDDING]) if self.scheme is not Quantize.NONE else None
        if own is not None:
            return PackedLinear(own, None, self.dtype), head
        embedding = self.dense(EMBEDDING, self.dtype)
        self.kept.dense([EMBEDDING], embedding)
        return embedding, head

    def _is_exact(self, packed: PackedLinear) -> bool:
        """Whether reading rows of the packed embedding gives what the file has, or what `dtype` keeps of it."""
        blocks = self.checkpoint.blocks(EMBEDDING)
        if blocks is None:
            return packed.forms == [Form.BFLOAT16]
        return packed.forms == [form_of(blocks.kind)]

    def _linear(
        self, names: Sequence[str], bias: bool, bits: int, crossover: Callable[[int], int | None]
    ) -> Linear:
        offset = None
        if bias:
            parts = [self.tensor(name.removesuffix("weight") + "bias") for name in names]
            offset = torch.cat(parts).to(self.dtype)
        if self._keeps_codes(names, bits):
            packed = self._repacked(names)
            if packed is not None:
                return PackedLinear(packed, offset, self.dtype)
        if self.scheme in (Quantize.INT8, Quantize.INT4):
            quantized = self._rounded(names, bits)
            if quantized is not None:
                self.kept.rounded(names, quantized)
                return hybrid_linear(quantized, offset, self.dtype, crossover(quantized.bits))
        weight = torch.cat([self.dense(name, self.dtype) for name in names])
        self.kept.dense(names, weight)
        return make_linear(weight, offset, self.dtype)

    def _keeps_codes(self, names: Sequence[str], bits: int) -> bool:
        """Whether the scheme leaves these matrices as the file has them."""
        if self.scheme is Quantize.AUTO:
            return True
        stored = [self.checkpoint.blocks(name) for name in names]
        wanted = self.scheme is not Quantize.NONE
        return wanted and all(blocks is not None and has_bits(blocks.kind, bits) for blocks in stored)

    def _repacked(self, names: Sequence[str]) -> list[PackedRows] | None:
        """Return the file's own codes in the order of the kernels; None where it has floats, or no kernel has a form.

        Raises BadInput where a scale is no number.
        """
        matrices = []
        for name in names:
            blocks = self.checkpoint.blocks(name)
            if blocks is None or not keeps(blocks):
                return None
            matrices.append(blocks)
        try:
            packed = repacked(matrices)
        except NotFiniteError as error:
            raise self._damaged(names[error.index]) from error
        self.kept.codes(names, matrices, packed)
        return packed

    def _rounded(self, names: Sequence[str], bits: int) -> GroupQuantized | None:
        """Return our own rounding, some rows at a time; None: the columns do not divide into groups."""
        parts = []
        for name in names:
            for rows in self._rows(name):
                if rows.shape[1] % GROUP_SIZE:
                    return None
                parts.append(quantize(rows, bits))
        return stack(parts)

    def _rows(self, name: str) -> Iterator[torch.Tensor]:
        """All rows of a matrix, in floats; where it is in few bits, some at a time."""
        blocks = self.checkpoint.blocks(name)
        if blocks is None:
            yield self.tensor(name)
            return
        step = max(WEIGHTS_AT_ONCE // blocks.columns, 1)
        for start in range(0, blocks.rows, step):
            values = blocks.dequantized(start, min(start + step, blocks.rows))
            yield self._checked(torch.from_numpy(values), name)
        blocks.release()

    def _crossover(self, bits: int) -> int | None:
        """Tokens from which a dense copy pays on this machine, measured on this model's widest layer.

        None without AMX: nothing else is so much faster that it is worth two to eight times the memory.
        """
        config = self.checkpoint.config
        if not torch.cpu._is_amx_tile_supported():
            return None
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
        wrapped = config.output_norms
        prefix = f"model.layers.{index}."
        attention = prefix + "self_attn."
        bits = self._bits
        qkv = [f"{attention}{name}_proj.weight" for name in "qkv"]
        norms = {name: self.norm(f"{prefix}{name}.weight") for name in layer_norms(config)}
        return DecoderLayer(
            input_norm=norms["input_layernorm"],
            qkv=normed_projection(self, config, index, self.linear(qkv, config.qkv_bias, bits)),
            output=self.linear([attention + "o_proj.weight"], config.output_bias, bits),
            post_attention_norm=norms["pre_feedforward_layernorm" if wrapped else "post_attention_layernorm"],
            mlp=build_mlp(self, config, index, kernels, bits, self.expert_cache),
            q_norm=self.norm(attention + "q_norm.weight") if config.qk_norm else None,
            k_norm=self.norm(attention + "k_norm.weight") if config.qk_norm else None,
            rotates=config.rotary_layers[index],
            window=config.sliding_windows[index],
            attention_output_norm=norms["post_attention_layernorm"] if wrapped else None,
            mlp_output_norm=norms["post_feedforward_layernorm"] if wrapped else None,
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
    positions = max_model_len or config.max_position_embeddings
    local = (
        None if config.local_rope is None else cos_sin_table(config.local_rope, config.head_dim, positions)
    )
    embedding, head = builder.ends()
    builder.kept.log()
    weights = DecoderWeights(
        config,
        dtype,
        embedding=embedding,
        layers=layers,
        final_norm=builder.norm("model.norm.weight"),
        lm_head=head,
        cos_sin=cos_sin_table(config.rope, config.head_dim, positions),
        local_cos_sin=local,
    )
    return Decoder(weights, kernels)
