"""What the planner is asked: how a model will be deployed."""

from __future__ import annotations

from dataclasses import dataclass

from weighbridge.errors import BadInput
from weighbridge.knobs import knob

ENGINES = ("vllm", "sglang", "llama.cpp", "weighbridge")


@dataclass(frozen=True, slots=True)
class Deployment:
    """Flags of one deployment, under the engines' own names. None: the engine's default.

    Memory in bytes. `kv_cache_memory` is per GPU and overrides what would be left over.
    """

    engine: str = knob("vllm", "vllm, sglang, llama.cpp or weighbridge.")
    version: str | None = knob(None, "Rules of this version; none: a recent one.", flag="--engine-version")
    tp: int = 1
    pp: int = knob(1, "Pipeline parallelism.", min=1)
    dp: int = knob(1, "Data parallelism.", min=1)
    ep: int = knob(1, "Expert parallelism: tp x dp, or 1.", min=1)
    # the cache of a sequence over ranks
    dcp: int = knob(1, "Decode context parallelism.", min=1)
    quantize: str = knob("auto", "weighbridge: auto, none, int8 or int4, as its server takes it.")
    dtype: str = knob("auto", "weighbridge: float32, bfloat16 or auto.")
    cpu: str | None = knob(None, "weighbridge: avx2, avx512, avx512_bf16, amx or neon; none: the device's.")
    weights: str | None = knob(None, "bf16, fp8, awq, nvfp4, q4_k_m ...; none: as published.")
    kv_dtype: str = knob("auto", "bf16, fp8, int8, q8_0 ...", flag=("--kv-dtype", "--kv-cache-dtype"))
    max_model_len: int | None = knob(
        None, "Longest request in tokens.", flag=("--max-model-len", "--context-length", "-c"), min=1
    )
    concurrency: int | None = knob(None, "Full-length requests wanted at once.", min=1)
    gpu_memory_utilization: float | None = knob(
        None,
        "Share of memory the engine takes.",
        flag=("--gpu-memory-utilization", "--mem-fraction-static"),
    )
    max_num_seqs: int | None = knob(None, "Requests in a batch; llama.cpp: slots.", min=1)
    max_num_batched_tokens: int | None = knob(None, "Tokens in a batch.", min=1)
    block_size: int | None = knob(None, "Tokens of a cache block.", min=1)
    kv_cache_memory: int | None = knob(
        None, "Cache per GPU, such as 20GiB, instead of what is left.", unit="bytes"
    )
    prefix_caching: bool | None = knob(None)
    enforce_eager: bool = knob(False, "No CUDA graphs.", flag="--enforce-eager")
    speculative: str | None = knob(None, "mtp or eagle: draft layers join the cache.")
    num_speculative_tokens: int = knob(0, min=0)
    lora_rank: int = knob(0, "Largest adapter rank.", min=0)
    max_loras: int = knob(0, "Adapters in memory at once.", min=0)
    towers: bool = True
    gpu_layers: int | None = knob(None, "llama.cpp.", flag=("--gpu-layers", "-ngl"), min=0)
    host_experts: int = knob(
        0, "llama.cpp: layers whose experts stay in host memory.", flag="--n-cpu-moe", min=0
    )
    unified_kv: bool | None = knob(None, "llama.cpp.", flag="--kv-unified/--no-kv-unified")
    # llama.cpp --swa-full; vLLM --disable-hybrid-kv-cache-manager
    swa_full: bool = knob(False, "Keep sliding layers in full.", flag="--swa-full")
    flash_attention: bool | None = knob(None, "llama.cpp.", flag="--flash-attn/--no-flash-attn")
    swa_ratio: float | None = None  # SGLang --swa-full-tokens-ratio
    ubatch: int = knob(512, "llama.cpp micro-batch.", min=1)

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
