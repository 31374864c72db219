"""From a checkpoint to a decoder that runs: merge, convert and pack the weights of each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from weighbridge.errors import BadInput
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.compute.finite import is_finite, not_finite
from weighbridge.models.compute.kernels import load_kernels
from weighbridge.models.compute.kernels.api import Kernels
from weighbridge.models.compute.layers import DecoderLayer, DecoderWeights
from weighbridge.models.compute.linear import Linear, make_linear, own_bfloat16_wins
from weighbridge.models.compute.linear_hybrid import HybridLinear, rounded_linear
from weighbridge.models.compute.linear_packed import PackedLinear, PackedRows, kernels_available
from weighbridge.models.compute.repack import WEIGHTS_AT_ONCE, NotFiniteError, repacked
from weighbridge.models.compute.rope import cos_sin_table
from weighbridge.models.experts.cache import ExpertCache
from weighbridge.models.experts.moe_loader import build_mlp, make_cache, normed_projection
from weighbridge.models.file_model import matrix_of
from weighbridge.models.files.cache import weighbridge_home
from weighbridge.models.files.checkpoint import Checkpoint
from weighbridge.models.files.quantized import quantize, stack
from weighbridge.models.files.tensors import layer_norms
from weighbridge.models.keeping import (
    EMBEDDING,
    OUTPUT,
    Cpu,
    FileMatrix,
    Keeping,
    KeptAs,
    Quantize,
    attention_matrices,
)
from weighbridge.models.kept_weights import KeptWeights

__all__ = ["Quantize", "choose_dtype", "load_decoder", "this_cpu"]

Report = Callable[[int, int], None]  # layers done, layers in all


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


def this_cpu() -> Cpu:
    """Return what of this machine decides how weights are kept."""
    return Cpu(kernels_available(), own_bfloat16_wins(), torch.cpu._is_amx_tile_supported())


class _Builder:
    """Packs one checkpoint; `dtype` is the compute dtype of activations and dense weights."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, scheme: Quantize) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.keeping = Keeping(scheme, str(dtype).removeprefix("torch."), this_cpu())
        self.expert_cache: ExpertCache | None = (
            None  # once set, experts are resident only as far as it has room
        )
        self.kept = KeptWeights()

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of the checkpoint. Raises BadInput where it holds what is no number."""
        return self._checked(self.checkpoint.tensor(name), name)

    def _checked(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        if not is_finite(tensor):
            raise self._damaged(name)
        return tensor

    def _damaged(self, name: str) -> BadInput:
        return not_finite(self.checkpoint.own_name(name), self.checkpoint.path)

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
        offset = None
        if bias:
            parts = [self.tensor(name.removesuffix("weight") + "bias") for name in names]
            offset = torch.cat(parts).to(self.dtype)
        kept = self.keeping.linear([self.matrix(name) for name in names], bits, bias)
        self.kept.note(names[0], kept)
        if kept.way is KeptAs.CODES:
            return PackedLinear(self._repacked(names), offset, self.dtype)
        if kept.way is KeptAs.ROUNDED:
            rounded = stack([quantize(rows, bits) for name in names for rows in self._rows(name)])
            return rounded_linear(rounded, offset, self.dtype, copied=bool(kept.copy))
        weight = torch.cat([self.dense(name, self.dtype) for name in names])
        return make_linear(weight, offset, self.dtype)

    def ends(self) -> tuple[torch.Tensor | PackedLinear, Linear]:
        """Return the embedding and the output matrix, in one piece of memory where they are the same.

        The output matrix decides each token directly: it keeps 8 bits even where the layers keep 4.
        """
        keeping, tied = self.keeping, self.checkpoint.config.tie_word_embeddings
        source, own = self.matrix(EMBEDDING), None if tied else self.matrix(OUTPUT)
        head = self.linear([EMBEDDING if tied else OUTPUT], False, 8)
        packed = head.few if isinstance(head, HybridLinear) else head
        if keeping.shares(source, own) and isinstance(packed, PackedLinear):
            self.kept.shared(EMBEDDING)
            return packed, head
        kept = keeping.embedding(source)
        self.kept.note(EMBEDDING, kept)
        if kept.way is KeptAs.CODES:
            return PackedLinear(self._repacked([EMBEDDING]), None, self.dtype), head
        return self.dense(EMBEDDING, self.dtype), head

    def matrix(self, name: str) -> FileMatrix:
        """Return what the file has of a matrix. Raises BadInput where it has none."""
        return matrix_of(self.checkpoint, name)

    def _repacked(self, names: Sequence[str]) -> list[PackedRows]:
        """Return the file's own codes in the order of the kernels. Raises BadInput where a scale is no number."""
        matrices = [blocks for name in names if (blocks := self.checkpoint.blocks(name)) is not None]
        try:
            return repacked(matrices)
        except NotFiniteError as error:
            raise self._damaged(names[error.index]) from error

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

    def make_cache(self, memory: int, kernels: Kernels) -> ExpertCache | None:
        form = f"{self.keeping.dtype}-{self.keeping.scheme.value}"
        directory = weighbridge_home() / "experts" / f"{self.checkpoint.fingerprint()[:16]}-{form}"
        bits = self.keeping.scheme.bits
        return make_cache(self, self.checkpoint.config, kernels, bits, memory, directory)

    def layer(self, index: int, kernels: Kernels) -> DecoderLayer:
        config = self.checkpoint.config
        wrapped = config.output_norms
        prefix = f"model.layers.{index}."
        attention = prefix + "self_attn."
        bits, qkv = self.keeping.scheme.bits, attention_matrices(prefix)
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
