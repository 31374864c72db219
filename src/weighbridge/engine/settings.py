"""What an operator can set on one replica, and what follows from the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from weighbridge.errors import BadInput

BLOCK_SIZE = 32  # tokens; two AVX-512 vectors of keys, small enough that a shared prefix wastes little

#: Share of the available memory that the KV pool takes when nobody says otherwise.
DEFAULT_MEMORY_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of one replica. Times in seconds, memory in bytes."""

    max_model_len: int | None = None  # None: what the model allows
    kv_cache_memory: int | None = None  # None: a share of the available memory
    block_size: int = BLOCK_SIZE
    max_batch_tokens: int = 2048
    max_sequences: int = 256
    itl_target: float | None = None  # None: see `SchedulerSettings`
    enable_prefix_cache: bool = True
    speculate: bool = True
    max_queue_requests: int = 4096
    batching: str = "continuous"  # or "static"
    static_batch_size: int = 16
    static_timeout: float = 0.1
    check_integrity: bool = False


def available_memory() -> int:
    """Bytes this process may still take: the system's available memory, or what its cgroup leaves."""
    for line in Path("/proc/meminfo").read_text().splitlines() if os.path.exists("/proc/meminfo") else ():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            break
    else:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return available
    return available if limit == "max" else max(min(available, int(limit) - used), 0)


def parse_bytes(text: str) -> int:
    """`512MB`, `2GiB`, `1.5g` or plain bytes. Decimal and binary suffixes; raises BadInput otherwise."""
    units = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    units |= {f"{letter}ib": units[letter] for letter in "kmgt"}
    units |= {f"{letter}b": 1000 ** (index + 1) for index, letter in enumerate("kmgt")}
    cleaned = text.strip().lower().replace(" ", "")
    digits = cleaned.rstrip("bikmgt")
    try:
        return int(float(digits) * units[cleaned[len(digits) :]])
    except (KeyError, ValueError):
        raise BadInput(f"{text!r} is not a size: write for example 512MiB or 2GB") from None


def pool_blocks(settings: EngineSettings, bytes_per_token: int, max_model_len: int) -> int:
    """Blocks of the KV pool. Raises BadInput when the memory given does not hold one block.

    By default a share of the available memory, and no more than every seat could ever fill.
    """
    block_bytes = bytes_per_token * settings.block_size
    if settings.kv_cache_memory is not None:
        blocks = settings.kv_cache_memory // block_bytes
    else:
        useful = settings.max_sequences * -(-max_model_len // settings.block_size)
        blocks = min(int(available_memory() * DEFAULT_MEMORY_SHARE) // block_bytes, useful)
    if blocks < 1:
        raise BadInput(
            f"the KV cache needs at least {block_bytes} bytes for one block of {settings.block_size} tokens; "
            "raise --kv-cache-memory",
            param="kv_cache_memory",
        )
    return int(blocks)
