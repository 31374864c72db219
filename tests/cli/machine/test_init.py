"""`weighbridge init`: what it finds is what it writes, and what it writes holds."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.fleet.backends import Backend, all_served
from tests.fleet.test_probe import _ABSENT, SERVERS
from weighbridge.cli.app import app
from weighbridge.cli.machine.init import configuration, find_servers
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.fleet.config.load import parse_config
from weighbridge.fleet.replicas.probe import ProbedServer


async def found(*names: str) -> list[ProbedServer]:
    servers = [Backend(pages={**_ABSENT, **SERVERS[name]}) for name in names]
    async with all_served(servers):
        return await find_servers([], [one.url for one in servers])


async def test_engines_of_one_model_are_its_replicas() -> None:
    spec = parse_config(
        configuration(await found("vllm", "llama-server", "sglang"), [], []), "w.yaml", Path()
    )
    [model] = spec.models
    assert model.name == "model-8b"
    assert "default" in model.aliases
    assert [one.dialect for one in model.replicas] == ["vllm", "llama-server", "sglang"]


async def test_a_guess_may_be_silent_and_an_address_that_was_told_may_not() -> None:
    assert await find_servers([], ["http://127.0.0.1:9"]) == []
    with pytest.raises(WeighbridgeError, match="nothing answers"):
        await find_servers(["http://127.0.0.1:9"], [])


async def test_any_web_server_is_no_engine() -> None:
    page = Backend(pages={**_ABSENT, "/v1/models": (200, {"hello": "world"})})
    async with all_served((page,)):
        assert await find_servers([], [page.url]) == []


async def test_a_server_that_never_answers_takes_its_time_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("weighbridge.cli.machine.init.PATIENCE", 0.3)
    server = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert await find_servers([], [f"http://127.0.0.1:{port}"]) == []


def test_without_engines_our_own_serves_and_clouds_are_comments() -> None:
    text = configuration([], ["NVIDIA L4\n# evil", "x"], ["OPENAI_API_KEY"])
    spec = parse_config(text, "w.yaml", Path())
    [model] = spec.models
    assert len(model.replicas) == 1
    assert model.replicas[0].kind == "process"
    assert "#     replicas: [{url: https://api.openai.com" in text
    assert "vllm serve" in text
    assert "\n# evil" not in text


def test_the_file_is_written_once_and_read_again(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    done = CliRunner().invoke(app, ["init", str(file), "--no-look"])
    assert done.exit_code == 0, done.output
    assert f"weighbridge serve --config {file}" in done.output
    assert CliRunner().invoke(app, ["config", "check", str(file)]).exit_code == 0
    assert stat.S_IMODE(file.stat().st_mode) & 0o400
    again = CliRunner().invoke(app, ["init", str(file), "--no-look"])
    assert isinstance(again.exception, BadInput)
    assert "--force" in str(again.exception)
    assert CliRunner().invoke(app, ["init", str(file), "--no-look", "--force"]).exit_code == 0


def test_a_dash_prints_it() -> None:
    done = CliRunner().invoke(app, ["init", "-", "--no-look"])
    assert parse_config(done.output, "w.yaml", Path()).models
