"""What is common to every engine's cache: the layers that keep one, and the result of sizing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weighbridge.planner.memory.engines import EngineRules
from weighbridge.planner.memory.kv_dtype import KVType
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.model.architecture import Architecture, Attention, Latent, LayerShape, Recurrent


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """What a cache is for: layers that keep one, flags and rules, the type of its values, the longest request."""

    layers: Sequence[LayerShape]
    deployment: Deployment
    rules: EngineRules
    kv: KVType
    length: int
    family: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KVPlan:
    """A sized cache. Bytes are per GPU; tokens, blocks and concurrency are of one replica (not times dp)."""

    bytes_per_token: float  # growth of a long request, per token
    tokens: int  # as the engine prints it
    num_blocks: int
    block_size: int
    blocks_per_request: int  # at the full length
    request_bytes: float  # footprint of one request at the full length
    max_concurrency: float  # requests at the full length
    pool_bytes: float
    state_bytes: float  # per sequence, whatever its length
    explain: tuple[str, ...]
    pools: tuple[tuple[str, float], ...] = ()  # bytes of separate pools, where the engine prints them apart


def cached_layers(
    architecture: Architecture, deployment: Deployment, stage: tuple[int, int]
) -> list[LayerShape]:
    """Return the layers of a pipeline stage whose mixer keeps a cache, draft layers last."""
    layers = [layer for layer in architecture.layers[stage[0] : stage[1]] if _keeps(layer)]
    if deployment.speculative == "mtp" and stage[1] == len(architecture.layers):
        layers += list(architecture.drafts)
    if deployment.speculative == "eagle":
        full = [layer for layer in layers if isinstance(layer.mixer, (Attention, Latent))]
        layers += full[-1:]
    return layers


def _keeps(layer: LayerShape) -> bool:
    match layer.mixer:
        case Attention() as attention:
            return attention.owns_cache
        case None:
            return False
    return True


def recurrent_bytes(
    r: Recurrent, tp: int, speculative: int, conv_bytes: int, state_bytes: int | None = None
) -> int:
    """Return the bytes of one sequence's state in one layer, on one rank: the convolution's window and the state."""
    conv = r.conv_dim * (r.kernel - 1 + speculative) * conv_bytes // tp
    return conv + r.state_heads * r.state_size * (state_bytes or r.state_bytes) // tp
