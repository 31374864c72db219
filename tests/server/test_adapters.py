"""Adapters over HTTP: asked for by name at every endpoint, listed, loaded and let go by the operator alone."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.server.running import free_port, running, serving, wait_until_ready
from tests.tiny import make_tiny
from tests.tiny_lora import make_lora
from weighbridge.engine.settings import EngineSettings
from weighbridge.knobs import arguments, settings_from

KEY, ADMIN = "a-long-key-of-a-tenant", "a-long-key-of-the-operator"
MESSAGES = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and adapters beside it."""
    root = tmp_path_factory.mktemp("models")
    base = make_tiny("llama", root / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for seed, name in enumerate(("ada", "bob", "eve")):
        make_lora(
            model, root / "adapters" / name, ("q_proj", "v_proj", "down_proj"), seed=seed, lora_alpha=32
        )
    return root


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    adapters = root / "adapters"
    options = (
        "--lora",
        f"ada={adapters / 'ada'}",
        "--lora",
        f"bob={adapters / 'bob'}",
        "--lora-root",
        str(adapters),
    )
    options += ("--max-loras", "3", "--max-lora-rank", "8", "--kv-cache-memory", "16MiB")
    with serving(root / "base", *options, "--api-key", f"ann={KEY}", "--admin-key", ADMIN) as (url, _):
        yield url


def ask(url: str, path: str, body: Any = None, key: str = KEY) -> tuple[int, Any]:
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "anthropic-version": "2023-06-01",
    }
    data = None if body is None else json.dumps(body).encode()
    if body is None:
        del headers["anthropic-version"]
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def answered(url: str, model: str, name: str = "") -> str:
    """What a model says, and that the answer has its name."""
    body = {"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": 12}
    status, answer = ask(url, "/v1/chat/completions", body)
    assert status == 200
    assert answer["model"] == name or not name
    return str(answer["choices"][0]["message"]["content"])


def said(url: str, model: str) -> str:
    return answered(url, model, model)


def test_models_are_listed_with_their_parent(url: str) -> None:
    _, listed = ask(url, "/v1/models")
    told = {one["id"]: (one["root"], one["parent"]) for one in listed["data"]}
    assert told == {"tiny": ("tiny", None), "ada": ("ada", "tiny"), "bob": ("bob", "tiny")}
    assert ask(url, "/v1/models/ada")[1]["parent"] == "tiny"


def test_every_endpoint_takes_an_adapters_name(url: str) -> None:
    words = {model: said(url, model) for model in ("tiny", "ada", "bob")}
    assert len(set(words.values())) == 3
    short = {"max_tokens": 4, "temperature": 0}
    asks: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "x", **short},
        "/v1/responses": {"input": "x", "max_output_tokens": 4, "store": False},
        "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
        "/v1/embeddings": {"input": "x"},
        "/v1/decisions": {"input": "x", "questions": [{"type": "predicate", "instructions": "Is it?"}]},
        "/api/chat": {"messages": MESSAGES, "stream": False},
        "/api/generate": {"prompt": "x", "stream": False},
        "/tokenize": {"prompt": "x"},
    }
    for path, body in asks.items():
        status, answer = ask(url, path, {"model": "ada", **body})
        assert status == 200, (path, answer)
        assert answer.get("model", "ada") == "ada", path
        status, answer = ask(url, path, {"model": "nobody", **body})
        assert status == 404, path
    vectors = [
        ask(url, "/v1/embeddings", {"model": name, "input": "x"})[1]["data"][0]["embedding"]
        for name in ("ada", "bob")
    ]
    assert vectors[0] != vectors[1]


def test_a_ticket_and_usage_name_the_adapter(url: str) -> None:
    said(url, "bob")
    _, listed = ask(url, "/v1/tickets?model=bob")
    ticket = listed["data"][0]
    assert (ticket["model"], ticket["adapter"]) == ("bob", "bob")
    assert ticket["decisions"][0].startswith("adapter bob (rank 4) over tiny")


def test_the_operator_loads_and_lets_go(url: str) -> None:
    load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
    body = {"lora_name": "eve", "lora_path": "eve"}
    for key in (KEY, "wrong"):
        assert ask(url, load, body, key)[0] == 401
        assert ask(url, unload, {"lora_name": "ada"}, key)[0] == 401
    assert ask(url, load, body, ADMIN) == (200, {"id": "eve", "object": "adapter", "root": "eve", "rank": 4})
    words = said(url, "eve")
    assert ask(url, load, body, ADMIN)[0] == 409
    assert (
        ask(url, load, {"lora_name": "x", "lora_path": "/etc"}, ADMIN)[1]["error"]["code"] == "adapters_fixed"
    )
    assert ask(url, load, {"lora_name": "x y", "lora_path": "eve"}, ADMIN)[1]["error"]["param"] == "lora_name"
    assert ask(url, load, {"lora_name": "x"}, ADMIN)[0] == 400
    assert ask(url, unload + "?timeout=-1", {"lora_name": "eve"}, ADMIN)[1]["error"]["param"] == "timeout"
    assert ask(url, unload, {"lora_name": "eve"}, ADMIN)[1]["deleted"] is True
    assert ask(url, unload, {"lora_name": "eve"}, ADMIN)[0] == 404
    assert ask(url, "/v1/chat/completions", {"model": "eve", "messages": MESSAGES})[0] == 404
    assert ask(url, load, {"lora_name": "eve-again", "lora_path": "eve"}, ADMIN)[0] == 200
    assert said(url, "eve-again") == words
    assert ask(url, unload, {"lora_name": "eve-again"}, ADMIN)[0] == 200


def test_a_gateway_finds_adapters_by_their_names(url: str, root: Path, tmp_path: Path) -> None:
    """As a model of its own at the same server, or as an alias; one that the server does not list is missing there."""
    replica = f"replicas: [{{url: '{url}', key: {KEY}}}]"
    config = tmp_path / "weighbridge.yaml"
    names = {"tiny": "aliases: [bob, eve-again], ", "ada": "", "nobody": ""}
    models = "".join(f"  {name}: {{{aliases}{replica}}}\n" for name, aliases in names.items())
    options = f"{{lora: {{eve: '{root / 'adapters' / 'eve'}'}}, dtype: float32, kv_cache_memory: 16MiB}}"
    child = f"replicas: [{{process: '{root / 'base'}', threads: 1, options: {options}}}]"
    models += f"  inside: {{aliases: [eve], {child}}}\n"
    config.write_text(f"models:\n{models}")
    port = free_port()
    front = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "weighbridge", "serve", "--config", str(config), "--port", str(port)]
    with running(command, 15) as process:
        wait_until_ready(front, process)
        assert said(front, "ada") == said(url, "ada")
        assert said(front, "bob") == said(url, "bob")
        assert said(front, "tiny") == said(url, "tiny") == said(front, "inside")
        assert said(front, "eve") != said(front, "inside")
        assert (
            ask(url, "/v1/load_lora_adapter", {"lora_name": "eve-again", "lora_path": "eve"}, ADMIN)[0] == 200
        )
        deadline = time.monotonic() + 20
        while said(front, "tiny") == answered(front, "eve-again") and time.monotonic() < deadline:
            time.sleep(0.2)  # until the gateway has heard of it, an alias is another name of the base
        assert said(front, "eve-again") == said(front, "eve")
        assert ask(url, "/v1/unload_lora_adapter", {"lora_name": "eve-again"}, ADMIN)[0] == 200
        body = {"model": "eve-again", "messages": MESSAGES, "max_tokens": 4}
        assert ask(front, "/v1/chat/completions", body)[1]["error"]["code"] == "model_not_found"
        assert said(front, "tiny") == said(url, "tiny")  # nothing is wrong with the base
        status, answer = ask(
            front, "/v1/chat/completions", {"model": "nobody", "messages": MESSAGES, "max_tokens": 4}
        )
        assert status == 404
        assert "this server has 'tiny', 'ada', 'bob'" in answer["error"]["message"]


def test_children_of_a_gateway_have_adapters_as_options(root: Path) -> None:
    """What weighbridge.yaml says is what the command line of a process says."""
    lora = [f"ada={root / 'adapters' / 'ada'}", f"bob={root / 'adapters' / 'bob'}"]
    options = settings_from(EngineSettings, {"lora": lora, "max_loras": 4, "lora_root": root})
    assert [str(one) for one in options.lora] == lora
    assert arguments(options) == [
        "--lora",
        lora[0],
        "--lora",
        lora[1],
        "--lora-root",
        str(root),
        "--max-loras",
        "4",
    ]
