"""What is written about models that are loaded on demand: read, planned, and refused where it cannot be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_tiny
from weighbridge.cli.serve import on_demand
from weighbridge.cli.serve.on_demand import hint, planned
from weighbridge.cli.serve.sizes import ReplicaToSize, SizedReplica, engine_settings, sizes_of
from weighbridge.errors import BadInput
from weighbridge.fleet.config.load import parse_config
from weighbridge.fleet.config.spec import FleetSpec
from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols.ollama import keep_alive_seconds

MIB = 1 << 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("on-demand") / "tiny")


def read(text: str) -> FleetSpec:
    return parse_config(text, "weighbridge.yaml", Path("."))


def test_the_section_is_read_with_its_defaults_and_models_may_say_more() -> None:
    spec = read(
        "on_demand: {memory: 2GiB, keep_alive: 60}\n"
        "models:\n  a: {keep: true, replicas: [{process: x}]}\n"
        "  b: {keep_alive: 5, memory: 300MB, replicas: [{process: y, count: 2}]}\n"
        "  c: {replicas: [{process: z}, {url: 'http://127.0.0.1:1'}]}\n"
    )
    assert spec.on_demand is not None
    assert (spec.on_demand.memory, spec.on_demand.keep_alive) == (2 << 30, 60)
    assert (spec.on_demand.hold, spec.on_demand.turn) == (0.1, 1.0)
    assert [spec.is_on_demand(model) for model in spec.models] == [True, True, False]
    assert (spec.models[1].keep_alive, spec.models[1].memory) == (5, 300_000_000)
    assert read("on_demand: {}\nmodels: {a: {replicas: [{process: x}]}}").on_demand is not None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("models: {a: {keep: true, replicas: [{process: x}]}}", "write `on_demand: {}` too"),
        ("on_demand: {memory: much}\nmodels: {a: {replicas: [{process: x}]}}", "is not a size"),
        ("on_demand: {turn: -1}\nmodels: {a: {replicas: [{process: x}]}}", "at least 0"),
        ("on_demand: {trun: 1}\nmodels: {a: {replicas: [{process: x}]}}", "trun"),
    ],
)
def test_what_cannot_be_is_said_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(BadInput, match=r"weighbridge.yaml:\d+") as caught:
        read(text)
    assert complaint in str(caught.value)


def test_options_of_a_replica_are_read_as_its_server_reads_them() -> None:
    words = [
        "--quantize",
        "int8",
        "--kv-cache-memory=64MiB",
        "--no-speculate",
        "--json-logs",
        "--max-sequences",
        "8",
    ]
    settings = engine_settings(words)
    assert (settings.quantize, settings.kv_cache_memory, settings.max_sequences) == ("int8", 64 * MIB, 8)
    assert not settings.speculate
    adapters = engine_settings(["--lora", "n=/dir", "--lora=m=/other"]).lora
    assert [one.name for one in adapters] == ["n", "m"]
    with pytest.raises(BadInput, match="--max-sequences 'few' is no int"):
        engine_settings(["--max-sequences", "few"])


def test_models_that_will_hardly_fit_are_hinted_at(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = f"models: {{a: {{replicas: [{{process: {tiny}}}]}}, b: {{replicas: [{{process: {tiny}, count: 2}}]}}}}"
    assert not hint(read(several))
    size = sum(one.stat().st_size for one in tiny.glob("*.safetensors"))
    monkeypatch.setattr(on_demand, "available_memory", lambda: 3 * size - 1)
    assert "write `on_demand: {}`" in hint(read(several))
    assert not hint(read("on_demand: {}\n" + several))
    assert not hint(read(f"models: {{a: {{replicas: [{{process: {tiny}, count: 9}}]}}}}"))
    theirs = "replicas: [{process: any/name, command: [sleep, '{port}']}]"
    assert not hint(read(f"models: {{a: {{{theirs}}}, b: {{{theirs}}}}}")), (
        "its name is for its command to know"
    )


@pytest.fixture(scope="module")
def sizes(tiny: Path) -> list[SizedReplica]:
    """What the planner says of the tiny model, of one whose cache is told, and of none; asked once."""
    asked = [
        ReplicaToSize(str(tiny), ("--max-model-len", "256")),
        ReplicaToSize(str(tiny), ("--kv-cache-memory", "4MiB")),
        ReplicaToSize(str(tiny / "nothing"), ()),
    ]
    return sizes_of(asked)


def test_sizes_are_planned_and_each_replica_is_given_its_cache(
    tiny: Path, sizes: list[SizedReplica], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ReplicaToSize] = []
    monkeypatch.setattr(on_demand, "sizes_of", lambda those: asked.extend(those) or sizes)
    spec = read(
        "on_demand: {memory: 1GiB}\nmodels:\n"
        f"  a: {{replicas: [{{process: {tiny}, options: {{max_model_len: 256}}}}]}}\n"
        f"  b: {{replicas: [{{process: {tiny}, options: {{kv_cache_memory: 4MiB}}}}]}}\n"
        f"  c: {{memory: 400MiB, replicas: [{{process: {tiny}}}]}}\n"
    )
    found = planned(spec)
    assert found is not None
    assert [one.options for one in asked[:2]] == [("--max-model-len", "256"), ("--kv-cache-memory", "4MiB")]
    needs = {one.name: one.nbytes for one in found.needs}
    assert needs["c"] == 400 * MIB
    assert 250 * MIB < needs["b"] < 500 * MIB, "a process and little more"
    assert found.together == 2
    assert sum(sorted(needs.values())[1:]) <= 1 << 30, "any two of them"
    options = {model.name: model.replicas[0].options for model in found.spec.models}
    assert options["a"][-2] == on_demand.CACHE
    assert options["b"].count(on_demand.CACHE) == 1
    assert on_demand.CACHE not in options["c"]
    assert "2 at a time in 1GiB: a " in found.in_words


def test_a_model_that_never_fits_or_cannot_be_sized_is_an_error_at_start(
    tiny: Path, sizes: list[SizedReplica], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "neither a file nor a directory" in sizes[2].problem
    monkeypatch.setattr(on_demand, "sizes_of", lambda asked: sizes[:1])
    entry = f"replicas: [{{process: {tiny}}}]"
    little = read(f"on_demand: {{memory: 100MiB}}\nmodels: {{a: {{{entry}}}}}")
    with pytest.raises(BadInput, match=r"'a' can never be loaded: it needs \d+MiB .* 100MiB are left"):
        planned(little)
    told = read(f"on_demand: {{memory: 1GiB}}\nmodels: {{a: {{memory: 1MiB, {entry}}}}}")
    with pytest.raises(BadInput, match="less than the"):
        planned(told)
    monkeypatch.setattr(on_demand, "sizes_of", lambda asked: sizes[2:])
    unknown = read(f"on_demand: {{memory: 1GiB}}\nmodels: {{a: {{{entry}}}}}")
    with pytest.raises(BadInput, match=r"cannot be worked out: .*`memory: 2GiB`"):
        planned(unknown)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *[(None, None), (0, 0.0), ("0", 0.0), (90, 90.0), ("5m", 300.0), ("1h30m", 5400.0), ("250ms", 0.25)],
        *[(-1, math.inf), ("-1", math.inf), ("-1m", math.inf), ("1.5h", 5400.0), (10**400, 1e12)],
    ],
)
def test_ollamas_durations(value: Any, seconds: float | None) -> None:
    assert keep_alive_seconds(value) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("value", ["soon", "5 minutes", "", True, [], {"a": 1}, "5m!"])
def test_what_is_no_duration_is_refused(value: Any) -> None:
    with pytest.raises(ApiError, match="keep_alive"):
        keep_alive_seconds(value)
