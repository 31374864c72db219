"""Put a replica together: checkpoint, decoder, KV pool, scheduler, sampler, loop."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from weighbridge.cost import DEFAULT_STEP_COST, Sample, StepClock, StepCost
from weighbridge.engine import calibration
from weighbridge.engine.adapters.desk import AdapterDesk
from weighbridge.engine.adapters.room import adapter_room, check_room
from weighbridge.engine.engine import LocalEngine
from weighbridge.engine.experts import telemetry as expert_telemetry
from weighbridge.engine.guidance.factory import GuideFactory
from weighbridge.engine.runner import Runner
from weighbridge.engine.sampler import Sampler
from weighbridge.engine.schedule.make import make_scheduler
from weighbridge.engine.settings import (
    EngineSettings,
    available_memory,
    pool_blocks,
    states_bytes,
    with_states,
)
from weighbridge.errors import BadInput
from weighbridge.models.any_model import OpenedModel, open_model
from weighbridge.models.compute.allocator import tune_allocator
from weighbridge.models.compute.causal_model import CausalModel
from weighbridge.models.compute.kernels.seats import seat_compute_threads
from weighbridge.models.kv_form import KvForm, kv_form, token_bytes
from weighbridge.models.loader import Quantize, choose_dtype
from weighbridge.models.sampling_defaults import read_sampling_defaults
from weighbridge.models.text.tokenizer import Tokenizer, load_tokenizer

log = logging.getLogger("weighbridge.engine")

Report = Callable[[int, int], None]


@dataclass(slots=True)
class EngineReplica:
    """Everything one replica is made of. `engine` is what the floors above talk to."""

    engine: LocalEngine
    tokenizer: Tokenizer
    guides: GuideFactory
    runner: Runner
    decoder: CausalModel
    step_clock: StepClock
    settings: EngineSettings
    max_model_len: int
    num_blocks: int
    calibrated: bool
    calibration_key: str

    def calibrate(self, report: Report | None = None) -> tuple[StepCost, list[Sample], Path]:
        """Fit the step cost on this machine and store it. The engine must not be running."""
        cost, samples = calibration.calibrate(
            self.runner,
            self.settings.block_size,
            self.max_model_len,
            self.num_blocks,
            self.settings.max_batch_tokens,
            report,
        )
        return cost, samples, calibration.calibration_store().save(self.calibration_key, cost, samples)


def build_replica(
    path: Path,
    model_name: str,
    settings: EngineSettings,
    report: Report | None = None,
) -> EngineReplica:
    """Load the model at `path` and make it ready to serve; nothing runs until `engine.start()`.

    Raises BadInput for settings that cannot work and UnsupportedModel for checkpoints that cannot be run.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    opened = open_model(path, settings.model_impl)
    defaults = read_sampling_defaults(path, settings.generation_config)
    tokenizer = load_tokenizer(
        path,
        control_tokens_in_content=settings.control_tokens_in_content,
        chat_template=settings.chat_template,
    )
    _check_vocabulary(tokenizer, opened)
    max_model_len = _context(settings, opened)
    settings = replace(settings, max_model_len=max_model_len)
    scheme, dtype = _scheme(settings.quantize), choose_dtype(settings.dtype)
    settings = with_states(settings, opened.config, dtype.itemsize)
    room = adapter_room(model_name, opened.adaptable, settings.adapters)
    if room is not None:
        check_room(room, dtype, available_memory())
    guides = GuideFactory(tokenizer.vocabulary(), tokenizer.vocab_size, tokenizer.eos_token_ids)
    preparing = threading.Thread(target=_prepare, args=(guides,), name="prepare-guides")
    preparing.start()  # while the weights are read
    decoder = opened.load(
        dtype,
        scheme,
        max_model_len=max_model_len,
        report=report,
        expert_cache=settings.expert_cache,
    )
    preparing.join()
    tune_allocator()
    cached = kv_form(settings.kv_dtype, str(decoder.dtype).removeprefix("torch."))
    bytes_per_token = token_bytes(opened.config, cached)
    aside = states_bytes(settings, opened.config, dtype.itemsize) + (
        0 if room is None else room.nbytes(dtype)
    )
    num_blocks = pool_blocks(settings, bytes_per_token, max_model_len, aside)
    _say_if_short(num_blocks * settings.block_size, max_model_len)
    sampler = Sampler(decoder.kernels, guides, tokenizer.vocab_size, random.Random())
    experts, kv_dtype = expert_telemetry.attach(decoder), getattr(torch, cached)
    if room is not None:
        check_room(room, dtype, available_memory(), num_blocks * settings.block_size * bytes_per_token)
    shelf = None if room is None else opened.adapt(decoder, room.size)
    keeps_states = bool(opened.config.states)
    sized = settings.sized(max_model_len=max_model_len, num_blocks=num_blocks, keeps_states=keeps_states)
    runner = Runner(
        decoder, sampler, num_blocks, settings.block_size, experts, kv_dtype, shelf, sequences=sized.seats
    )
    key = _calibration_key(opened, scheme, decoder, cached)
    stored = calibration.calibration_store().load(key)
    step_clock = _step_clock(stored, runner)
    engine = LocalEngine(
        model_name,
        tokenizer,
        make_scheduler(sized, step_clock),
        runner,
        step_clock,
        kv_bytes_per_token=bytes_per_token,
        kv_dtype=cached.value,
        check_integrity=settings.check_integrity,
        on_thread_start=seat_compute_threads,
    )
    engine.sampling_defaults = defaults
    if room is not None and shelf is not None:
        engine.desk = AdapterDesk(room, shelf, model_name)
    return EngineReplica(
        engine=engine,
        tokenizer=tokenizer,
        guides=guides,
        runner=runner,
        decoder=decoder,
        step_clock=step_clock,
        settings=settings,
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        calibrated=stored is not None,
        calibration_key=key,
    )


def _prepare(guides: GuideFactory) -> None:
    """Prepare structured output; a model whose vocabulary cannot be constrained serves without."""
    try:
        guides.prepare()
    except BadInput as error:
        log.warning("requests with a constraint will be refused: %s", error)


def _check_vocabulary(tokenizer: Tokenizer, opened: OpenedModel) -> None:
    """Raise BadInput for a tokenizer whose tokens the model does not know.

    Tokens that were added to it may be beyond: some have a padding token of which the model never heard.
    """
    tokens, rows = tokenizer.size_without_added, opened.config.vocab_size
    if tokens > rows:
        raise BadInput(
            f"the tokenizer of {opened.path} has token ids up to {tokens - 1}, the model only to {rows - 1}: they "
            "belong to different models"
        )


def _context(settings: EngineSettings, opened: OpenedModel) -> int:
    """Return the longest prompt and answer together, in tokens. Raises BadInput for more than the model allows."""
    longest = opened.config.max_position_embeddings
    max_model_len = settings.max_model_len or longest
    if max_model_len > longest:
        raise BadInput(
            f"--max-model-len {max_model_len} is more than the {longest} positions this model was trained for",
            param="max_model_len",
        )
    return max_model_len


def _say_if_short(held: int, max_model_len: int) -> None:
    """Warn of a cache in which the longest request that the model takes has no room."""
    if held < max_model_len:
        log.warning(
            "the KV cache holds %d tokens, less than the %d that the model takes: longer requests are refused; raise "
            "--kv-cache-memory, lower --max-model-len, or keep the cache in 8 bits (--kv-dtype int8)",
            held,
            max_model_len,
        )


def _step_clock(stored: StepCost | None, runner: Runner) -> StepClock:
    """Return a clock that starts from what was measured on this machine and learns how tokens spread over experts."""
    step_clock = StepClock(stored or DEFAULT_STEP_COST)
    if runner.experts is not None:
        step_clock.set_expert_use(runner.experts.use())
        runner.experts.on_use = step_clock.set_expert_use
    return step_clock


def _calibration_key(opened: OpenedModel, scheme: Quantize, decoder: CausalModel, cached: KvForm) -> str:
    dtype = str(decoder.dtype).removeprefix("torch.")
    form = calibration.calibration_form(dtype, scheme.value, cached.value)
    threads = torch.get_num_threads()
    return calibration.calibration_key(opened.fingerprint(), form, decoder.kernels.name, threads)


def _scheme(name: str) -> Quantize:
    try:
        return Quantize(name)
    except ValueError:
        names = ", ".join(scheme.value for scheme in Quantize)
        raise BadInput(f"quantisation {name!r} is not known: use one of {names}", param="quantize") from None
