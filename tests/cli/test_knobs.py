"""A knob is one line: a field gives the flag, its help and bounds, the key of weighbridge.yaml, a child's argument."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from tests.tiny import make_tiny
from weighbridge.cli.options import Only, Panel, Without, options, written
from weighbridge.cli.serve.fleet import overridden, replicated
from weighbridge.engine.schedule.scheduler_api import SchedulerOptions
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import BadInput
from weighbridge.fleet.config.reader import read_yaml
from weighbridge.fleet.config.spec import FleetSpec, TenantSpec
from weighbridge.knobs import arguments, bytes_text, knob, knobs, parse_bytes, settings_from
from weighbridge.models.adapters.named import NamedAdapter
from weighbridge.server.settings import ServerSettings
from weighbridge.simulator.fleet import SimulatedEngine
from weighbridge.wire.keys import parse_key, parse_tenant_priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient(EngineSettings):
    """The engine with an option more: this one line is all there is of it."""

    patience: float = knob(0.25, "How long a prompt may be put off, in ms.", unit="ms", min=1)


def command_of(function: object) -> typer.Typer:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command("run")(options(function))  # type: ignore[arg-type]
    return app


def run(function: object, *words: str) -> str:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(command_of(function), list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def serve(context: typer.Context, model: str = "default", *, engine: Patient) -> None:
    print(model, engine.patience, engine.kv_cache_memory, engine.max_batch_tokens, sorted(written(context)))


def test_a_new_option_of_the_engine_is_a_flag_with_help_and_bounds() -> None:
    page = run(serve, "--help")
    assert "--patience" in page
    assert "How long a prompt may be put off, in ms." in page
    assert "x>=1" in page
    assert "250" in page  # the default, in the unit that people write
    assert run(serve, "--patience", "500", "--kv-cache-memory", "2MiB").split() == (
        ["default", "0.5", str(2 << 20), "2048", "['kv_cache_memory',", "'patience']"]
    )
    assert "greater than or equal to 1" in run(serve, "--patience", "0")


def test_it_is_a_key_of_a_replica_in_weighbridge_yaml() -> None:
    root, problems = read_yaml("options: {patience: 500, quantize: int8, prefix_cache: false}", "file")
    settings = root.section("options").settings(Patient)
    problems.raise_any()
    assert settings == Patient(patience=0.5, quantize="int8", enable_prefix_cache=False)
    root, problems = read_yaml("options:\n  patience: 0\n  patiense: 3\n  batching: magic", "file")
    root.section("options").settings(Patient)
    with pytest.raises(BadInput) as caught:
        problems.raise_any()
    first, second, third = str(caught.value).splitlines()
    assert first == "file:2: options.patience: must be a number of at least 1, not 0"
    assert "options.patiense: is not a setting (did you mean 'patience'?)" in second
    assert "options.batching: batching 'magic' is not known: use continuous or static" in third


def test_it_is_an_argument_of_a_replica_in_a_process_of_its_own() -> None:
    settings = Patient(patience=0.5, quantize="int8", enable_prefix_cache=False, kv_cache_memory=3 << 30)
    words = arguments(settings)
    assert words == [
        *("--no-prefix-cache", "--quantize", "int8", "--kv-cache-memory", "3GiB"),
        *("--patience", "500.0"),
    ]
    assert arguments(Patient()) == []
    assert run(serve, *words).startswith(f"default 0.5 {3 << 30} 2048")


def test_an_option_of_the_scheduler_is_one_of_the_simulator_too() -> None:
    own = {one.key for one in knobs(SchedulerOptions)}
    hidden = {"speculate", "max_queue"}  # there is no text to guess from; the gateway's queue has that name
    assert own - hidden <= {one.key for one in knobs(SimulatedEngine)}
    assert own <= {one.key for one in knobs(EngineSettings)}


def test_settings_go_to_the_scheduler_without_a_copy_of_each() -> None:
    wanted = {one.name: 7 for one in knobs(SchedulerOptions) if one.kind is int}
    settings = EngineSettings(**wanted).sized(max_model_len=64, num_blocks=9)  # type: ignore[arg-type]
    assert {name: getattr(settings, name) for name in wanted} == wanted
    assert (settings.max_model_len, settings.num_blocks) == (64, 9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Odd:
    """One of each shape."""

    path: Path | None = knob(None, "A path.")
    keys: tuple[str, ...] = knob((), "Keys; may repeat.", flag="--key", parse=str.upper)
    loud: bool = knob(False, "Loud.", flag="--loud")
    ranks: int = knob(1, "Ranks.", flag=("--ranks", "-r"), max=8)
    place: str = knob("here", "Where.", choices=("here", "there"))
    quiet: int = 3  # no knob


def test_paths_lists_switches_and_second_spellings() -> None:
    seen: list[Odd] = []

    def take(*, odd: Odd) -> None:
        seen.append(odd)

    run(take, "--key", "a", "--key", "b", "--loud", "-r", "2", "--path", "x")
    run(take)
    assert seen == [Odd(path=Path("x"), keys=("A", "B"), loud=True, ranks=2), Odd()]
    assert "less than or equal to 8" in run(take, "--ranks", "9")
    assert arguments(replace(seen[0], quiet=9)) == (
        ["--path", "x", "--key", "A", "--key", "B", "--loud", "--ranks", "2"]
    )


def test_a_command_may_take_some_of_the_options() -> None:
    def some(
        *,
        odd: Annotated[Odd, Only({"ranks", "loud"}), Panel("Oddities")],
        engine: Annotated[EngineSettings, Without({"quantize"})],
    ) -> None:
        print(odd, engine.quantize)

    page = run(some, "--help")
    assert "Oddities" in page
    assert "--ranks" in page
    assert "--path" not in page
    assert "--dtype" in page
    assert "--quantize" not in page


@pytest.mark.parametrize("size", [0, 1, 1500, 1 << 20, 3 << 29, 5_000_000, 10**9, 8 << 30])
def test_sizes_are_written_as_they_are_read(size: int) -> None:
    assert parse_bytes(bytes_text(size)) == size


def test_what_nobody_wrote_has_its_default() -> None:
    assert settings_from(Odd, {"path": None, "key": None}) == Odd()


def test_every_engine_option_that_differs_goes_on_to_the_replicas_of_a_gateway(tmp_path: Path) -> None:
    lora = (NamedAdapter("ada", Path("there")),)
    engine = EngineSettings(max_sequences=8, expert_cache=4 << 30, itl_target=0.05, threads=2, lora=lora)
    spec = replicated(str(make_tiny("llama", tmp_path / "tiny")), "name", 3, "local", engine)
    [replica] = spec.models[0].replicas
    assert (replica.count, replica.threads, replica.model) == (3, 2, "name")
    assert spec.models[0].aliases == ("ada",)
    assert replica.options == (
        *("--max-sequences", "8", "--itl-target", "50.0"),
        *("--expert-cache", "4GiB", "--lora", "ada=there"),
    )


def test_what_is_written_wins_over_the_file_and_what_is_not_does_not() -> None:
    spec = FleetSpec(models=(), port=9000, max_body=5, drain_timeout=3.0)
    server = ServerSettings(port=8080, max_body=7, api_keys=(parse_key("us=secret"),))
    changed = overridden(spec, server, {"max_body", "api_key"})
    assert (changed.port, changed.max_body, changed.drain_timeout) == (9000, 7, 3.0)
    assert [tenant.name for tenant in changed.tenants] == ["us"]


def test_classes_of_tenants_hold_for_those_of_the_file_of_the_keys_and_for_others() -> None:
    spec = FleetSpec(models=(), tenants=(TenantSpec("filed", priority=2), TenantSpec("left", priority=3)))
    priorities = tuple(map(parse_tenant_priority, ("filed=-1", "us=-2", "others=-3")))
    server = ServerSettings(api_keys=(parse_key("us=secret"),), tenant_priorities=priorities)
    changed = overridden(spec, server, {"api_key", "tenant_priorities"})
    assert {one.name: one.priority for one in changed.tenants} == {
        "filed": -1,
        "left": 3,
        "us": -2,
        "others": -3,
    }
    assert [one.name for one in changed.tenants if one.keys] == ["us"]
