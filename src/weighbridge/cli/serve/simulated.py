"""`weighbridge replica --simulated`: a server that answers as an engine would, at the speed of a step cost."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn, Protocol

from rich.text import Text
from starlette.types import ASGIApp

from weighbridge.cli.options import Without, options
from weighbridge.cli.serve.running import address, listening, serve_engine
from weighbridge.cli.terminal import errors
from weighbridge.cost import DEFAULT_STEP_COST, StepClock
from weighbridge.engine.engine import EngineTokenizer, LocalEngine
from weighbridge.engine.schedule.make import make_scheduler
from weighbridge.errors import BadInput
from weighbridge.knobs import knob
from weighbridge.secret import Secret
from weighbridge.server.app import create_app
from weighbridge.server.endpoint import ChatTokenizer
from weighbridge.server.engine.metrics import EngineMetrics
from weighbridge.server.engine.service import EngineService
from weighbridge.server.lifecycle import check_files, check_reach, set_up_logging
from weighbridge.server.settings import ServerSettings
from weighbridge.server.tracing.tracer import trace, tracer_of
from weighbridge.simulator.fleet import DEFAULT_KV_TOKENS, SimulatedEngine
from weighbridge.simulator.served.faults import FaultInjection, Faults
from weighbridge.simulator.served.runner import SimulatedRunner
from weighbridge.simulator.served.tokenizer import WORDS, SimulatedTokenizer
from weighbridge.simulator.step_costs import read_step_cost
from weighbridge.ticket import TicketStore
from weighbridge.wire.keys import ApiKey, parse_key
from weighbridge.workload.lengths import Lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedEngine(SimulatedEngine):
    """A simulated engine whose machine is told in full: nobody plans a deployment for it."""

    kv_tokens: int = knob(DEFAULT_KV_TOKENS, "Tokens that the KV cache holds.", min=16)
    tokens_per_block: int = knob(32, "Tokens of one KV block.", flag="--block-size", min=1)
    max_queue_requests: int = knob(
        4096, "Requests that may wait; more are refused with 429.", flag="--max-queue", min=1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedMachine:
    """How fast a simulated replica is, what it answers and how it fails."""

    simulated: bool = knob(False, "Sleep for each iteration instead of computing it.", flag="--simulated")
    step_cost: Path | None = knob(None, "JSON of `weighbridge calibrate`; none: a small CPU model.")
    time_scale: float = knob(1.0, "Factor on every duration: 2 is half as fast.", min=1e-6)
    served_model_name: str = knob("simulated", "The name clients use.")
    output_length: str | None = knob(
        None, "Tokens of an answer, such as 200 or lognormal:150:0.8; none: max_tokens."
    )
    tokenizer: Path | None = knob(None, "A model directory or GGUF to tokenise with; none: 3 bytes a token.")
    seed: int = knob(0, "For answers and faults.")
    faults: Faults = knob(
        Faults(),
        "Such as error_rate=0.05,stall_rate=0.01,stall_seconds=2; see /faults.",
        parse=Faults.parse,
        written="",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedServer(ServerSettings):
    """Its clients' keys are told on the command line alone: a fleet's environment holds those of the gateway."""

    api_keys: tuple[ApiKey, ...] = knob(
        (), "KEY or TENANT=KEY; may repeat.", flag="--api-key", parse=parse_key
    )
    admin_key: Secret | None = knob(None, "The operator's own key, or its hash.", parse=Secret)


class ReplicaTokenizer(ChatTokenizer, EngineTokenizer, Protocol):
    """A tokenizer for a whole replica: its engine and its server."""


@options
def replica(
    *,
    machine: SimulatedMachine,
    server: Annotated[SimulatedServer, Without({"max_body", "tickets", "json_logs"})],
    engine: ServedEngine,
) -> None:
    """Serve the OpenAI API from a simulated engine: real HTTP, real scheduler, no model."""
    if not machine.simulated:
        raise BadInput(
            "this command runs simulated replicas only: add --simulated, or use `weighbridge serve`"
        )
    set_up_logging(False)
    listener, taken = listening(server.host, server.port, server.handover, server.takeover)
    check_reach(listener, server, bool(server.api_keys))
    check_files(server)
    running = assemble_simulated(machine, engine, server)
    where = address(listener, server)
    errors.print(Text.assemble("simulated ", (machine.served_model_name, "bold"), " on ", (where, "bold")))
    serve_engine(running.app, running.engine, listener, server, taken)


@dataclass(frozen=True, slots=True)
class Simulated:
    """A simulated engine, and the application over it with its faults around it."""

    engine: LocalEngine
    app: ASGIApp


def assemble_simulated(
    machine: SimulatedMachine, options: SimulatedEngine, server: ServerSettings
) -> Simulated:
    """Put a simulated replica together. Raises BadInput for what it cannot be."""
    cost = read_step_cost(machine.step_cost) if machine.step_cost else DEFAULT_STEP_COST
    cost, scheduling = cost.scaled(machine.time_scale), options.settings()
    clock = StepClock(cost)
    tokenizer = _tokenizer(machine.tokenizer)
    length = machine.output_length
    runner = SimulatedRunner(
        cost,
        Lengths.parse(length, options.max_model_len) if length else None,
        seed=machine.seed,
        words=words_of(tokenizer),
        end_of_text=tokenizer.eos_token_ids[0],
    )
    scheduler = make_scheduler(scheduling, clock)
    engine = LocalEngine(machine.served_model_name, tokenizer, scheduler, runner, clock, kv_bytes_per_token=0)
    metrics = EngineMetrics(engine, TicketStore())
    engine.observers.append(metrics)
    service = EngineService(engine, tokenizer, server, metrics, _refuse_guide, engine.start)
    trace(service, metrics, tracer_of(server, by_engine=True))
    seeded = random.Random(machine.seed)
    injected = FaultInjection(
        create_app(service),
        machine.faults,
        seeded,
        runner.freeze,
        lambda: engine.load().draining,
        service.callers.check_operator,
    )
    return Simulated(engine, injected)


def _tokenizer(path: Path | None) -> ReplicaTokenizer:
    if path is None:
        return SimulatedTokenizer()
    from weighbridge.models.text.tokenizer import load_tokenizer  # takes a second, which most need not spend

    return load_tokenizer(path)


def words_of(tokenizer: ReplicaTokenizer) -> tuple[int, ...]:
    """Tokens that simulated answers are made of, in this vocabulary."""
    return tuple(dict.fromkeys(tokenizer.encode(word, False)[0] for word in WORDS))


def _refuse_guide(guide: object) -> NoReturn:
    raise BadInput("a simulated replica cannot keep its answers to a schema, grammar or pattern")
