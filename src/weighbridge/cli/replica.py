"""`weighbridge replica --simulated`: a server that answers as an engine would, at the speed of a step cost."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from weighbridge.cli.serve import SWITCH_INTERVAL, parse_keys
from weighbridge.cli.terminal import errors
from weighbridge.errors import BadInput, WeighbridgeError


def replica(
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Sleep for each iteration instead of computing it.")
    ] = False,
    step_cost: Annotated[
        Path | None, typer.Option(help="JSON of `weighbridge calibrate`; none: a small CPU model.")
    ] = None,
    time_scale: Annotated[
        float, typer.Option(min=1e-6, help="Factor on every duration: 2 is half as fast.")
    ] = 1.0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    served_model_name: Annotated[str, typer.Option(help="The name clients use.")] = "simulated",
    output_length: Annotated[
        str | None,
        typer.Option(help="Tokens of an answer, such as 200 or lognormal:150:0.8; none: max_tokens."),
    ] = None,
    kv_tokens: Annotated[int, typer.Option(min=16, help="Tokens that the KV cache holds.")] = 131_072,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens of one KV block.")] = 32,
    max_model_len: Annotated[int, typer.Option(min=2, help="Prompt and answer together.")] = 32_768,
    max_batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one iteration.")] = 2048,
    max_sequences: Annotated[int, typer.Option(min=1, help="Requests in one batch.")] = 256,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 4096,
    batching: Annotated[str, typer.Option(help="continuous or static.")] = "continuous",
    tokenizer: Annotated[
        Path | None, typer.Option(help="A model directory or GGUF to tokenise with; none: 3 bytes a token.")
    ] = None,
    seed: Annotated[int, typer.Option(help="For answers and faults.")] = 0,
    faults: Annotated[
        str,
        typer.Option(help="Such as error_rate=0.05,stall_rate=0.01,stall_seconds=2; see /faults."),
    ] = "",
    api_key: Annotated[list[str] | None, typer.Option(help="KEY or TENANT=KEY; may repeat.")] = None,
    drain_timeout: Annotated[float, typer.Option(min=0.0, help="Seconds to finish on SIGTERM.")] = 30.0,
) -> None:
    """Serve the OpenAI API from a simulated engine: real HTTP, real scheduler, no model."""
    from weighbridge.cost import DEFAULT_STEP_COST
    from weighbridge.server.lifecycle import bind, run_server, set_up_logging
    from weighbridge.server.settings import ServerSettings
    from weighbridge.simulator.step_costs import read_step_cost

    if not simulated:
        raise BadInput(
            "this command runs simulated replicas only: add --simulated, or use `weighbridge serve`"
        )
    set_up_logging(False)
    cost = (read_step_cost(step_cost) if step_cost else DEFAULT_STEP_COST).scaled(time_scale)
    scheduler = _scheduler_settings(
        kv_tokens, block_size, max_model_len, max_batch_tokens, max_sequences, max_queue
    )
    settings = ServerSettings(api_keys=parse_keys(api_key or []), drain_timeout=drain_timeout)
    listener = bind(host, port)
    engine, app = assemble_simulated(
        served_model_name, cost, scheduler, batching, output_length, tokenizer, seed, faults, settings
    )
    where = "{}:{}".format(*listener.getsockname()[:2])
    errors.print(f"simulated [bold]{served_model_name}[/] on [bold]http://{where}[/]")
    sys.setswitchinterval(SWITCH_INTERVAL)
    drained = run_server(app, engine, listener, settings)
    engine.stop()
    if not drained:
        raise WeighbridgeError("some requests were cut off: the drain timeout was too short for them")


def _scheduler_settings(  # type: ignore[no-untyped-def]
    kv_tokens: int, block_size: int, max_model_len: int, batch: int, sequences: int, queue: int
):
    from weighbridge.engine.schedule.scheduler_api import SchedulerSettings

    if kv_tokens < block_size:
        raise BadInput(f"--kv-tokens {kv_tokens} does not hold one block of {block_size}", param="kv_tokens")
    return SchedulerSettings(
        max_model_len=max_model_len,
        num_blocks=kv_tokens // block_size,
        block_size=block_size,
        max_batch_tokens=batch,
        max_sequences=sequences,
        max_queue_requests=queue,
        speculate=False,  # there is no text to look anything up in
    )


def assemble_simulated(  # type: ignore[no-untyped-def]
    name: str,
    cost,
    options,
    batching: str,
    output_length: str | None,
    tokenizer_path: Path | None,
    seed: int,
    faults: str,
    settings,
):
    """The engine, and the ASGI application with its faults around it."""
    from weighbridge.cost import StepClock
    from weighbridge.engine.engine import LocalEngine
    from weighbridge.engine.schedule.scheduler import Scheduler
    from weighbridge.engine.schedule.static import StaticScheduler
    from weighbridge.server.app import create_app
    from weighbridge.server.engine.metrics import EngineMetrics
    from weighbridge.server.engine.service import EngineService
    from weighbridge.simulator.faults import FaultInjection, Faults
    from weighbridge.simulator.runner import SimulatedRunner
    from weighbridge.simulator.tokenizer import SimulatedTokenizer
    from weighbridge.ticket import TicketStore
    from weighbridge.workload.lengths import Lengths

    if batching not in ("continuous", "static"):
        raise BadInput(f"batching {batching!r} is not known: use continuous or static", param="batching")
    clock = StepClock(cost)
    scheduler = (
        StaticScheduler(options, clock, 16, 0.1) if batching == "static" else Scheduler(options, clock)
    )
    tokenizer: Any = SimulatedTokenizer()
    if tokenizer_path is not None:
        from weighbridge.models.text.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(tokenizer_path)
    runner = SimulatedRunner(
        cost,
        Lengths.parse(output_length, options.max_model_len) if output_length else None,
        seed=seed,
        words=words_of(tokenizer),
        end_of_text=tokenizer.eos_token_ids[0],
    )
    engine = LocalEngine(name, tokenizer, scheduler, runner, clock, kv_bytes_per_token=0)
    metrics = EngineMetrics(engine, TicketStore())
    engine.observers.append(metrics)
    app = create_app(EngineService(engine, tokenizer, settings, metrics, _refuse_guide, engine.start))
    injected = FaultInjection(
        app, _faults(faults, Faults()), random.Random(seed), runner.freeze, lambda: engine.load().draining
    )
    return engine, injected


def words_of(tokenizer: Any) -> tuple[int, ...]:
    """Tokens that simulated answers are made of, in this vocabulary."""
    from weighbridge.simulator.tokenizer import WORDS

    return tuple(dict.fromkeys(tokenizer.encode(word, False)[0] for word in WORDS))


def _refuse_guide(guide: object) -> None:
    raise BadInput("a simulated replica cannot keep its answers to a schema, grammar or pattern")


def _faults(text: str, faults):  # type: ignore[no-untyped-def]
    values = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, _, value = part.partition("=")
        try:
            values[name] = int(value) if name == "error_status" else float(value)
        except ValueError:
            raise BadInput(f"--faults {part!r}: write for example error_rate=0.05", param="faults") from None
    return faults.changed(values)
