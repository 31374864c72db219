"""What is asked of the planner: how a model is to be deployed."""

from __future__ import annotations

from dataclasses import dataclass

from weighbridge.errors import BadInput

ENGINES = ("vllm", "sglang", "llama.cpp", "weighbridge")


@dataclass(frozen=True, slots=True)
class Deployment:
    """Flags of one deployment, under the engines' own names. None: the engine's default.

    Memory in bytes. `kv_cache_memory` is per GPU and overrides what would be left over.
    """

    engine: str = "vllm"
    version: str | None = None
    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    dcp: int = 1  # decode context parallel: the cache of a sequence over ranks
    weights: str | None = None
    kv_dtype: str = "auto"
    max_model_len: int | None = None
    concurrency: int | None = None
    gpu_memory_utilization: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    kv_cache_memory: int | None = None
    prefix_caching: bool | None = None
    enforce_eager: bool = False
    speculative: str | None = None  # "mtp" or "eagle": draft layers join the cache
    num_speculative_tokens: int = 0
    lora_rank: int = 0
    max_loras: int = 0
    towers: bool = True
    host_experts: int = 0  # llama.cpp --n-cpu-moe: layers whose experts stay in host memory
    gpu_layers: int | None = None  # llama.cpp -ngl
    unified_kv: bool | None = None  # llama.cpp --kv-unified
    swa_full: bool = False  # llama.cpp --swa-full; vLLM --disable-hybrid-kv-cache-manager
    flash_attention: bool | None = None
    swa_ratio: float | None = None  # SGLang --swa-full-tokens-ratio
    ubatch: int = 512

    @property
    def gpus(self) -> int:
        return self.tp * self.pp * self.dp

    def check(self) -> None:
        """Raise BadInput when the flags cannot go together."""
        if self.engine not in ENGINES:
            raise BadInput(f"--engine {self.engine!r} is not known; known: {', '.join(ENGINES)}")
        for name in ("tp", "pp", "dp", "ep", "dcp"):
            if getattr(self, name) < 1:
                raise BadInput(f"--{name} must be at least 1", param=name)
        if self.ep > 1 and self.ep != self.tp * self.dp:
            raise BadInput(
                f"--ep {self.ep} must equal tp x dp = {self.tp * self.dp}: experts are spread over exactly those GPUs"
            )
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            raise BadInput("--gpu-memory-utilization must be above 0 and at most 1")
        if self.speculative not in (None, "mtp", "eagle", "draft"):
            raise BadInput(f"--speculative {self.speculative!r} is not known; use mtp, eagle or draft")
        if self.tp % self.dcp:
            raise BadInput(f"--dcp {self.dcp} must divide --tp {self.tp}")
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "concurrency"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"--{name.replace('_', '-')} must be at least 1", param=name)


@dataclass(frozen=True, slots=True)
class Range:
    """An estimate with the bounds it should lie in."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Range:
        return cls(value, value, value)

    @classmethod
    def within(cls, value: float, share: float) -> Range:
        return cls(value, value * (1 - share), value * (1 + share))

    def __add__(self, other: Range) -> Range:
        return Range(self.value + other.value, self.low + other.low, self.high + other.high)

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}
