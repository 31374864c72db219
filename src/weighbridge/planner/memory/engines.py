"""What each engine does by default, by version: shares of memory, batch limits, what is counted and what not."""

from __future__ import annotations

import re
from dataclasses import dataclass

from weighbridge.cost.hardware import Device
from weighbridge.planner.memory.request import Deployment

#: Assumed when no version is given.
LATEST = {"vllm": (0, 26), "sglang": (0, 5), "llama.cpp": (9999,), "weighbridge": (0, 1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRules:
    """Settings that apply to one deployment, defaults filled in."""

    engine: str
    version: tuple[int, ...]
    utilization: float
    max_num_seqs: int
    max_num_batched_tokens: int
    prefix_caching: bool
    kv_groups: bool = (
        True  # layers of different kinds get groups of their own, instead of all being kept in full
    )
    prints_concurrency: bool = False  # the token line is concurrency x length, not blocks x block size
    graphs_counted: bool = False  # the estimate of CUDA graphs is taken from the pool before it is sized
    pad_intermediate: int = 1  # of mxfp4 experts
    flash_attention: bool = True
    pad_cells: int = 1  # llama.cpp pads contexts and windows to this


#: GiB of memory below which: chunked prefill, largest graph with tp < 4, and with more.
_SGLANG_SIZES = (
    (20, 2048, 8, 8),
    (35, 2048, 24, 80),
    (60, 4096, 32, 160),
    (90, 8192, 256, 512),
    (160, 8192, 256, 512),
    (1 << 20, 16384, 512, 512),
)


def parse_version(text: str | None) -> tuple[int, ...] | None:
    """Return the leading numbers of "0.21.0", "~0.15.1", "v0.20.1rc1", "b9496", "main (V0 ~0.4.1)"; None without any.

    llama.cpp builds are one number; a date ("2025-12") is not a version.
    """
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text or "") or re.search(r"\bb?(\d{4,5})$", text or "")
    return tuple(int(x) for x in match.groups() if x is not None) if match else None


def rules_for(deployment: Deployment, device: Device | None, length: int) -> EngineRules:
    """Return the rules of `deployment`'s engine and version, on `device`, for requests up to `length` tokens."""
    version = parse_version(deployment.version) or LATEST[deployment.engine]
    if deployment.engine == "sglang":
        return _sglang(deployment, device, version)
    if deployment.engine in ("llama.cpp", "weighbridge"):
        return _local(deployment, version)
    return _vllm(deployment, device, version, length)


def _vllm(d: Deployment, device: Device | None, version: tuple[int, ...], length: int) -> EngineRules:
    """Sources: vllm/config/cache.py, engine/arg_utils.py get_batch_defaults, v1/core/kv_cache_utils.py."""
    large = device is not None and device.memory_gib >= 70 and not device.name.startswith("A100")
    v1 = version >= (0, 8)
    seqs = (1024 if large and v1 else 256) if version < (1,) else 1024
    batched = 8192 if large and v1 else 2048
    if not v1:  # no chunked prefill: a whole prompt at once
        batched = max(length, 2048)
    batched = d.max_num_batched_tokens or batched
    seqs = min(d.max_num_seqs or seqs, batched)
    caching = version >= (0, 20) if d.prefix_caching is None else d.prefix_caching
    return EngineRules(
        engine="vllm",
        version=version,
        utilization=d.gpu_memory_utilization or (0.92 if version >= (0, 21) else 0.9),
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
        prefix_caching=caching,
        kv_groups=version >= (0, 10) and not d.swa_full,
        prints_concurrency=version >= (0, 21),
        graphs_counted=version >= (0, 21) and not d.enforce_eager,
        pad_intermediate=64 if version >= (0, 10, 2) else 128,
    )


def _sglang(d: Deployment, device: Device | None, version: tuple[int, ...]) -> EngineRules:
    """Source: sglang/srt/server_args.py: what is set aside for prefill, graphs and parallelism, in MiB."""
    memory = (device.memory_gib if device else 80.0) * 1024
    chunk, small, big = next(row for limit, *row in _SGLANG_SIZES if memory < limit * 1024)
    chunk = d.max_num_batched_tokens or chunk
    graphs = small if d.tp < 4 else big
    reserved = 512 + max(chunk, 2048) * 1.5 + graphs * 2 + d.tp * d.pp / 8 * 1024
    if memory > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    if d.speculative:
        reserved += 2 * 1024
    share = d.gpu_memory_utilization or max(round((memory - reserved) / memory, 3), 0.1)
    seqs = d.max_num_seqs or max(graphs, 16)
    return EngineRules(
        engine="sglang",
        version=version,
        utilization=share,
        max_num_seqs=seqs,
        max_num_batched_tokens=chunk,
        prefix_caching=True,
    )


def _local(d: Deployment, version: tuple[int, ...]) -> EngineRules:
    seqs = d.max_num_seqs or (256 if d.engine == "weighbridge" else 1)
    batched = d.max_num_batched_tokens or (2048 if d.engine == "weighbridge" else d.ubatch)
    share = d.gpu_memory_utilization or 1.0
    modern = version >= (6325,)  # since then flash attention is used where it can be, and cells come in 256s
    flash = d.flash_attention if d.flash_attention is not None else modern
    pad = 256 if modern or flash else 32
    caching = d.engine == "weighbridge"
    return EngineRules(
        engine=d.engine,
        version=version,
        utilization=share,
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
        prefix_caching=caching,
        flash_attention=flash,
        pad_cells=pad,
    )
