"""What an operator can set on one replica, and what follows from the machine."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from weighbridge.engine.schedule.scheduler_api import SchedulerOptions
from weighbridge.errors import BadInput
from weighbridge.knobs import knob
from weighbridge.models.adapters.named import AdapterOptions, NamedAdapter, parse_adapter
from weighbridge.models.files.config import ModelConfig, state_bytes
from weighbridge.models.text.template_files import KNOWN

log = logging.getLogger("weighbridge.engine")

#: Share of the available memory that the KV pool takes when nobody says otherwise.
DEFAULT_MEMORY_SHARE = 0.25
#: And that the states of all requests that run take at most, of a model that keeps some.
STATES_SHARE = 0.125


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings(SchedulerOptions):
    """Settings of one replica: what its scheduler does, and how its model is loaded and kept.

    Times in seconds, memory in bytes. A new option of the engine is one field, here or in `SchedulerOptions`.
    """

    dtype: str = knob("auto", "float32, bfloat16 or auto (what this CPU multiplies fastest).")
    model_impl: str = knob(
        "auto",
        "What computes: auto (ours where the family is ours), native or transformers (over our cache).",
    )
    quantize: str = knob("auto", "auto (as the file keeps them), none, int8 or int4: weights in fewer bits.")
    kv_dtype: str = knob(
        "auto",
        "Keys and values in the cache: f32, bf16, int8, or auto (the compute dtype).",
        flag=("--kv-dtype", "--kv-cache-dtype"),
    )
    max_model_len: int | None = knob(None, "Longest prompt and answer together, in tokens.", min=1)
    kv_cache_memory: int | None = knob(None, "Memory of the KV cache, such as 2GiB.", unit="bytes")
    threads: int | None = knob(None, "Compute threads; none: one per core.", min=1)
    expert_cache: int | None = knob(
        None,
        "Memory for the experts of a mixture, such as 4GB; the rest is mapped. None: all.",
        unit="bytes",
    )
    lora: tuple[NamedAdapter, ...] = knob(
        (),
        "NAME=DIR: a LoRA adapter as PEFT saves them, asked for as model NAME; may repeat.",
        parse=parse_adapter,
    )
    lora_root: Path | None = knob(
        None, "Below this directory the operator may load adapters while the server runs; none: nowhere."
    )
    max_loras: int = knob(
        8, "Adapters at once; with --lora-root, memory is set aside for all.", min=1, max=1024
    )
    max_lora_rank: int = knob(32, "Largest rank of an adapter.", min=1, max=4096)
    generation_config: str = knob(
        "auto",
        "Defaults of sampling: auto (what the model's files recommend), none, or a generation_config.json.",
    )
    chat_template: str | None = knob(
        None, f"A chat template instead of the model's own: a file, or {', '.join(KNOWN)}."
    )
    control_tokens_in_content: bool = knob(
        False,
        "Let the names of control tokens in messages be those tokens, so that a message can forge turns.",
        flag="--control-tokens-in-content",
    )
    check_integrity: bool = knob(False, "Check the KV accounting whenever idle.", flag="--check-integrity")

    @property
    def adapters(self) -> AdapterOptions:
        return AdapterOptions(self.lora, self.lora_root, self.max_loras, self.max_lora_rank)


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


def pool_blocks(settings: EngineSettings, bytes_per_token: int, max_model_len: int, aside: int = 0) -> int:
    """Return the blocks of the KV pool. Raises BadInput when the memory set for it does not hold one block.

    By default a share of the available memory without the bytes `aside`, and no more than every seat could ever fill;
    that where blocks take nothing, as the model keeps states alone.
    """
    block_bytes = bytes_per_token * settings.block_size
    useful = settings.max_sequences * -(-max_model_len // settings.block_size)
    if not block_bytes:
        blocks = useful
    elif settings.kv_cache_memory is not None:
        blocks = settings.kv_cache_memory // block_bytes
    else:
        free = max(available_memory() - aside, 0)
        blocks = min(int(free * DEFAULT_MEMORY_SHARE) // block_bytes, useful)
    if blocks < 1:
        raise BadInput(
            f"the KV cache needs at least {block_bytes} bytes for one block of {settings.block_size} tokens; "
            "raise --kv-cache-memory",
            param="kv_cache_memory",
        )
    return int(blocks)


def with_states(settings: EngineSettings, config: ModelConfig, element_bytes: int) -> EngineSettings:
    """Return what can be kept to of `settings` by a model with states; by one without, all of it.

    A state is what all tokens of one request have made of it: it is no prefix of anybody else's, and cannot be taken
    back where guessed tokens were wrong. Raises BadInput for static batches.
    """
    if not config.states:
        return settings
    if settings.batching == "static":
        raise BadInput(
            f"model type {config.architecture!r} keeps a state between tokens, which static batches do not",
            param="batching",
        )
    each = state_bytes(config.states, element_bytes)
    seats = min(settings.max_sequences, max(int(available_memory() * STATES_SHARE) // each, 1))
    log.info(
        "model type %r keeps %.1f MB of states for each of %d requests at once; prompts share nothing, and no "
        "tokens are guessed",
        config.architecture,
        each / 1e6,
        seats,
    )
    return replace(settings, max_sequences=seats, enable_prefix_cache=False, speculate=False)


def states_bytes(settings: EngineSettings, config: ModelConfig, element_bytes: int) -> int:
    """Return the memory that the states of all requests that run take together."""
    return settings.max_sequences * state_bytes(config.states, element_bytes)
