"""`weighbridge fleet probe`: what a server is and can, and a configuration that holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.fleet.backends import STEP_COST, Backend, all_served, fleet, listening
from weighbridge.cli.app import app
from weighbridge.errors import WeighbridgeError
from weighbridge.fleet.abilities.ability import Ability
from weighbridge.fleet.config.load import parse_config
from weighbridge.fleet.load.dialects import dialect
from weighbridge.fleet.replicas.http import HttpEndpoint
from weighbridge.fleet.replicas.probe import ProbedServer, probe_server

LISTED = {"data": [{"id": "org/Model-8B", "object": "model"}]}
#: Scripted servers by dialect: the pages that each of them has, as they write them.
SERVERS: dict[str, dict[str, Any]] = {
    "weighbridge": {
        "/v1/models": LISTED,
        "/v1/load": {
            **{f"{kind}_{what}": 0 for kind in ("queued", "running") for what in ("requests", "tokens")},
            "kv_blocks_total": 10,
            "kv_blocks_used": 0,
            "block_size": 16,
            "step_cost": STEP_COST,
            "max_model_len": 4096,
        },
    },
    "vllm": {
        "/v1/models": {"data": [{"id": "org/Model-8B", "owned_by": "vllm", "max_model_len": 4096}]},
        "/metrics": b"vllm:num_requests_running 2\nvllm:num_requests_waiting 3\n",
        "/version": {"version": "0.32.0"},
    },
    "sglang": {
        "/v1/models": {"data": [{"id": "org/Model-8B", "max_model_len": 4096}]},
        "/metrics": (404, {}),
        "/model_info": {"model_path": "org/Model-8B", "is_generation": True},
        "/server_info": {"tool_call_parser": "qwen25", "max_running_requests": 8, "version": "0.5.23"},
    },
    "sglang, older": {
        "/v1/models": {"data": [{"id": "org/Model-8B", "max_model_len": 4096}]},
        "/metrics": b"sglang:num_running_reqs 0\nsglang:num_queue_reqs 0\n",
        "/get_model_info": {"model_path": "org/Model-8B", "is_generation": True},
        "/get_server_info": {"tool_call_parser": "qwen25", "max_running_requests": 8, "version": "0.4.6"},
    },
    "llama-server": {
        "/v1/models": {"data": [{"id": "org/Model-8B", "owned_by": "llamacpp", "meta": {"n_ctx": 4096}}]},
        "/metrics": (501, {}),
        "/slots": [{"id": 0, "is_processing": True}],
        "/props": {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 1},
    },
    "ollama": {
        "/v1/models": {"data": [{"id": "org/Model-8B"}]},
        "/api/tags": {"models": [{"name": "org/Model-8B"}]},
        "/api/ps": {"models": [{"name": "org/Model-8B", "context_length": 4096}]},
        "/api/version": {"version": "0.40.12"},
        "/api/show": {"capabilities": ["completion", "vision"]},
    },
    "tgi": {
        "/v1/models": LISTED,
        "/metrics": b"tgi_batch_current_size 1\ntgi_queue_size 0\n",
        "/info": {"model_id": "org/Model-8B", "max_total_tokens": 4096, "version": "3.3.6"},
    },
    "openai": {"/v1/models": LISTED},
}
_ABSENT = {path: (404, {"detail": "Not Found"}) for pages in SERVERS.values() for path in pages}


async def probed(pages: dict[str, Any], *, trial: bool = False, **fields: Any) -> ProbedServer:
    server = Backend(pages={**_ABSENT, **pages}, **fields)
    async with all_served((server,)):
        return await probe_server(HttpEndpoint(server.url, dialect("openai")), trial=trial)


@pytest.mark.parametrize("name", SERVERS)
async def test_a_server_is_known_by_its_pages_and_served_by_what_is_printed(name: str) -> None:
    found = await probed(SERVERS[name])
    assert (found.dialect, found.model) == (name.partition(",")[0], "org/Model-8B")
    if found.dialect == "sglang":
        assert (found.told.seats, found.abilities[Ability.TOOLS]) == (8, True)
    assert found.told.context == (None if name == "openai" else 4096)
    assert found.report is not None
    server = Backend(pages={**_ABSENT, **SERVERS[name]})
    async with all_served((server,)):
        text = found.configuration().replace(found.url, server.url)
        config = "health: {interval: 0.05}\n" + text
        async with fleet(config=config) as front, front.post(model="model-8b") as answer:
            assert answer.status == 200
    assert server.calls[0]["model"] == "org/Model-8B"


async def test_trials_find_what_no_page_tells_and_become_stated_abilities() -> None:
    def refuse(path: str, call: dict[str, Any]) -> tuple[int, Any] | None:
        if "embed" in path:
            return 501, {"error": {"message": "does not support embeddings"}}
        if "tools" in call:
            return 400, {"error": {"message": "tools are not supported"}}
        return None

    found = await probed(SERVERS["openai"], trial=True, refuses=refuse)
    expected = {
        Ability.CHAT: True,
        Ability.COMPLETIONS: True,
        Ability.EMBEDDINGS: False,
        Ability.TOOLS: False,
        Ability.LOGPROBS: True,
    }
    assert found.tried == expected, "that a schema was heeded, no status can tell"
    assert parse_config(found.configuration(), "w.yaml", Path()).models[0].replicas[0].abilities == expected


async def test_a_server_that_asks_for_a_key_is_said_to() -> None:
    found = await probed({"/v1/models": (401, {"error": {"message": "no key"}})})
    assert found.needs_key
    assert "key_env" in found.configuration()
    assert any("--key" in note for note in found.notes)


async def test_silence_is_an_error_that_names_the_address() -> None:
    with listening() as closed:
        host, port = closed.getsockname()
    with pytest.raises(WeighbridgeError, match=f"nothing answers at http://{host}:{port}"):
        await probe_server(HttpEndpoint(f"http://{host}:{port}", dialect("openai")))


def test_what_is_no_url_is_bad_input() -> None:
    result = CliRunner().invoke(app, ["fleet", "probe", "nonsense"])
    assert result.exit_code == 2 or "is no URL" in str(result.exception)
