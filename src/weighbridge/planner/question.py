"""A plan as it can be asked for by name, without a file: a model and a device of the catalogues."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from weighbridge.cost.hardware import Device, find_device
from weighbridge.errors import BadInput
from weighbridge.planner.memory.memory import MemoryPlan, PlannedModel, plan_memory
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.model import catalogue
from weighbridge.planner.model.config_reader import read_architecture
from weighbridge.planner.report.report import figures, plan_json
from weighbridge.planner.search.commands import engine_command
from weighbridge.planner.search.fit import changes
from weighbridge.planner.search.speed import (
    DEFAULT_OUTPUT,
    DEFAULT_PROMPT,
    Speed,
    measure,
    typical_batch,
    usual_batches,
)

#: Engines whose plans need nothing of this machine.
ENGINES = ("vllm", "sglang", "llama.cpp")

_Tokens = Annotated[int, Meta(ge=1, le=10**8)]


class PlanAsked(Struct, forbid_unknown_fields=True):
    """A model and a device by their names in the catalogues, and how they go together."""

    model: Annotated[str, Meta(min_length=1, max_length=200)]
    device: Annotated[str, Meta(min_length=1, max_length=200)]
    engine: Annotated[str, Meta(max_length=20)] = "vllm"
    count: Annotated[int, Meta(ge=1, le=1024)] = 1
    max_model_len: _Tokens | None = None
    weights: Annotated[str, Meta(max_length=40)] | None = None
    kv_dtype: Annotated[str, Meta(max_length=40)] = "auto"
    concurrency: Annotated[int, Meta(ge=1, le=10**6)] | None = None
    prompt_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None


def answer(asked: PlanAsked) -> dict[str, Any]:
    """The plan as `weighbridge plan --json` has it, with the rows of its text. Raises BadInput."""
    if asked.engine not in ENGINES:
        raise BadInput(f"engine: {asked.engine!r} is not known; use {', '.join(ENGINES)}", param="engine")
    deployment = Deployment(
        engine=asked.engine,
        tp=asked.count,
        max_model_len=asked.max_model_len,
        weights=asked.weights,
        kv_dtype=asked.kv_dtype,
        concurrency=asked.concurrency,
        towers=asked.engine != "llama.cpp",
    )
    device = find_device(asked.device)
    plan = plan_memory(_model(asked.model), deployment, device)
    told = plan_json(plan, _speeds(plan, device, asked), changes(plan), engine_command(plan))
    return {
        **told,
        "rows": [list(row) for row in figures(plan)],
        "usd_per_hour": device.usd_per_hour * asked.count,
    }


def _model(name: str) -> PlannedModel:
    """A model of the catalogue; a path is none, whatever is there."""
    found = catalogue.lookup(name)
    if found is None:
        near = ", ".join(catalogue.near(name))
        raise BadInput(
            f"model: {name!r} is not in the catalogue{f'; near: {near}' if near else ''}", param="model"
        )
    fields, noted = catalogue.completed(found[1])
    return PlannedModel(found[0], read_architecture(fields, noted), source="catalogue")


def _speeds(plan: MemoryPlan, device: Device, asked: PlanAsked) -> list[Speed]:
    """At one request, at what fits, and at powers of four between; none when nothing fits."""
    if not plan.fits:
        return []
    longest = asked.max_model_len or plan.length
    prompt = min(asked.prompt_tokens or DEFAULT_PROMPT, max(longest - 1, 1))
    output = min(asked.output_tokens or DEFAULT_OUTPUT, max(longest - prompt, 1))
    room = typical_batch(plan, prompt, output)
    if room < 1:
        return []
    return [measure(plan, device, batch, prompt, output, None) for batch in usual_batches(room)]
