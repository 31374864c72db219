"""Where adapters add: the linear layers of a model, each with the modules whose rows it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from weighbridge.models.adapters.peft_file import MatrixShape
from weighbridge.models.compute.layers import DecoderLayer, Mlp
from weighbridge.models.compute.linear import Linear
from weighbridge.models.experts.moe import NormedProjection
from weighbridge.models.files.config import ModelConfig
from weighbridge.models.keeping import FileModel, adaptable_matrices, attention_matrices

_WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class SitePart:
    """A module of the model, whose rows are `rows` of a linear layer's, from `start` on."""

    module: str
    start: int
    rows: int


@dataclass(frozen=True, slots=True)
class AdapterSite:
    """A linear layer: queries, keys and values are one, as are gate and up. `put` sets another in its place."""

    parts: tuple[SitePart, ...]
    linear: Linear
    put: Callable[[Linear], None]


def native_modules(model: FileModel) -> dict[str, MatrixShape]:
    """Return the matrices of a model of our families that adapters may add to."""
    matrices = (model.matrices[name] for name in adaptable_matrices(model.config))
    return {one.name.removesuffix(_WEIGHT): MatrixShape(one.rows, one.columns) for one in matrices}


def native_sites(config: ModelConfig, layers: list[DecoderLayer]) -> Iterator[AdapterSite]:
    """Yield the linear layers of a decoder in the order in which they are computed."""
    for index, layer in enumerate(layers):
        prefix = f"model.layers.{index}."
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        yield _qkv(layer, _stacked(attention_matrices(prefix), [queries, keys, keys]))
        yield AdapterSite(
            _stacked([f"{prefix}self_attn.o_proj.weight"], [layer.output.out_features]),
            layer.output,
            lambda linear, layer=layer: setattr(layer, "output", linear),  # type: ignore[misc]
        )
        if isinstance(layer.mlp, Mlp):
            yield from _feed_forward(layer.mlp, f"{prefix}mlp.")


def _qkv(layer: DecoderLayer, parts: tuple[SitePart, ...]) -> AdapterSite:
    """An adapter adds to the projection itself, so before OLMoE's norms."""
    if isinstance(layer.qkv, NormedProjection):
        normed = layer.qkv
        return AdapterSite(parts, normed.qkv, lambda linear: setattr(normed, "qkv", linear))
    return AdapterSite(parts, layer.qkv, lambda linear: setattr(layer, "qkv", linear))


def _feed_forward(mlp: Mlp, prefix: str) -> Iterator[AdapterSite]:
    inner = mlp.down.in_features
    gate_up = _stacked([f"{prefix}gate_proj.weight", f"{prefix}up_proj.weight"], [inner, inner])
    yield AdapterSite(gate_up, mlp.gate_up, lambda linear: setattr(mlp, "gate_up", linear))
    down = _stacked([f"{prefix}down_proj.weight"], [mlp.down.out_features])
    yield AdapterSite(down, mlp.down, lambda linear: setattr(mlp, "down", linear))


def _stacked(names: list[str], rows: list[int]) -> tuple[SitePart, ...]:
    starts = [sum(rows[:index]) for index in range(len(rows))]
    return tuple(
        SitePart(name.removesuffix(_WEIGHT), start, count)
        for name, start, count in zip(names, starts, rows, strict=True)
    )
