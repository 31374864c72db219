"""What Gemma 3 computes otherwise than Llama, whichever file it came from (Gemma team 2025, and transformers)."""

from __future__ import annotations

import math
from typing import Any

from weighbridge.models.files.config import Activation, RopeConfig

#: Every so many layers see all tokens; the others see a window.
GEMMA_PATTERN = 6


def local_windows(layers: int, window: int, pattern: int) -> tuple[int, ...]:
    """Return the window of each layer: 0 for every `pattern`-th one."""
    return tuple(0 if (index + 1) % pattern == 0 else window for index in range(layers))


def gemma_fields(hidden: int, queries_scalar: float, local_theta: float) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that both formats set alike. `local_theta`: of layers with a window."""
    return {
        "activation": Activation.GELU_TANH,
        "output_norms": True,
        "embedding_scale": math.sqrt(hidden),
        "attention_scale": queries_scalar**-0.5,
        "local_rope": RopeConfig(local_theta),
    }
