"""Rotary position embedding tables (Su et al. 2021) and the scaling rules that checkpoints ask for."""

from __future__ import annotations

import math

import torch

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.files.config import RopeConfig

#: A million positions of heads of 128 elements take half of this.
MAX_TABLE_BYTES = 1 << 30


def cos_sin_table(rope: RopeConfig, head_dim: int, positions: int) -> torch.Tensor:
    """Return the cosines, then sines, of every position: float32 [positions, head_dim], each half head_dim / 2 wide.

    Raises UnsupportedModel for a scaling rule that is not known, BadInput for one that gives no frequencies and for
    more positions than a table should have.
    """
    nbytes = 4 * positions * head_dim
    if nbytes > MAX_TABLE_BYTES:
        raise BadInput(
            f"a context of {positions} tokens takes a table of {nbytes / 2**30:.1f} GiB for its rotary embedding, more "
            f"than {MAX_TABLE_BYTES >> 30}: give --max-model-len",
            param="max_model_len",
        )
    inverse_frequencies, amplitude = _inverse_frequencies(rope, head_dim)
    if not (inverse_frequencies * positions).isfinite().all():
        raise BadInput(f"the rotary embedding of the configuration has no finite frequencies: {rope}")
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * inverse_frequencies[None, :]
    return torch.cat([angles.cos() * amplitude, angles.sin() * amplitude], dim=1).contiguous()


def _inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[torch.Tensor, float]:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / (rope.theta**exponents)
    if rope.divisors is not None:
        plain = plain / torch.tensor(rope.divisors)
    if rope.scaling is None:
        return plain, 1.0
    if rope.scaling == "linear":
        return plain / rope.factor, 1.0
    if rope.scaling == "llama3":
        return _llama3(plain, rope), 1.0
    if rope.scaling == "yarn":
        amplitude = rope.attention_factor
        if amplitude is None:
            amplitude = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1.0 else 1.0
        return _yarn(plain, rope, head_dim), amplitude
    raise UnsupportedModel(f"rope scaling {rope.scaling!r} is not supported (linear, llama3 and yarn are)")


def _llama3(plain: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """Llama 3.1: low frequencies are divided by the factor, high ones kept, the band between interpolated."""
    wavelengths = 2.0 * math.pi / plain
    original = rope.original_max_position_embeddings
    turns = original / wavelengths
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return plain * blend + plain / rope.factor * (1.0 - blend)


def _yarn(plain: torch.Tensor, rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """YaRN (Peng et al. 2023): ramp between interpolated and extrapolated by how often a dimension turns."""

    def dimension(turns: float) -> float:
        original = rope.original_max_position_embeddings
        return head_dim * math.log(original / (turns * 2.0 * math.pi)) / (2.0 * math.log(rope.theta))

    if rope.theta <= 1.0:
        raise BadInput(f"a rotary embedding scaled by yarn needs a theta above 1, not {rope.theta}")
    low = min(max(math.floor(dimension(rope.beta_fast)), 0), head_dim)
    high = min(math.ceil(dimension(rope.beta_slow)), head_dim - 1)
    span = max(high - low, 1e-3)
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / span).clamp(0.0, 1.0)
    return plain / rope.factor * ramp + plain * (1.0 - ramp)
