"""`/v1/experts`, tickets and metrics of a real server over a tiny mixture, half of whose experts are mapped."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from tests.models.tiny_moe import make_tiny_moe
from tests.server.running import serving
from weighbridge.cli.app import app

LAYERS, EXPERTS, TOP_K = 4, 16, 4
#: float32: three matrices of 64 x 32 for each of 64 experts are 1.6 MB.
CACHE = "1MB"


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server over a tiny Qwen3-MoE. It does not guess: guesses would be counted with the prompts."""
    path: Path = make_tiny_moe("qwen3-moe", tmp_path_factory.mktemp("server") / "moe")
    with serving(path, "--expert-cache", CACHE, "--quantize", "none", "--no-speculate") as (url, _):
        yield url


def complete(url: str, prompt: str, tokens: int) -> dict[str, Any]:
    """Greedy, to the end; the answer's ticket."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == tokens
    ticket: dict[str, Any] = httpx.get(f"{url}/v1/tickets/{answer.headers['x-weighbridge-ticket']}").json()
    return ticket


def report(url: str, query: str = "") -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{url}/v1/experts{query}", timeout=30).json()
    return answer


def metrics(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_one_request_is_counted_and_its_ticket_says_so(sparse: str) -> None:
    assert httpx.post(f"{sparse}/v1/experts/reset").json() == {"object": "experts.reset"}
    ticket = complete(sparse, "The quick brown fox", 12)
    seen = report(sparse)
    assert (seen["object"], seen["experts"], seen["top_k"]) == ("experts", EXPERTS, TOP_K)
    assert [layer["layer"] for layer in seen["layers"]] == list(range(LAYERS))
    prompt = ticket["prompt_tokens"]
    for layer in seen["layers"]:
        # The last layer runs only what is sampled: one token of the prompt.
        computed = 1 if layer["layer"] == LAYERS - 1 else prompt - ticket["cached_tokens"]
        assert sum(layer["prefill_tokens"]) == TOP_K * computed
        assert sum(layer["decode_tokens"]) == TOP_K * 11
        assert 0 < layer["balancedness"] <= 1
    assert ticket["experts_touched"] == pytest.approx(seen["touched_per_step"] * seen["steps"])
    assert ticket["experts_touched"] >= LAYERS * TOP_K * 12
    alone = next(row for row in seen["coverage"] if row["batch"] == 1)
    assert alone == {"batch": 1, "iterations": 11, "measured": TOP_K, "predicted": TOP_K}


def test_streams_side_by_side_are_counted_by_batch(sparse: str) -> None:
    httpx.post(f"{sparse}/v1/experts/reset")
    texts = ["The quick brown fox", "def weigh(request)", "Größe und Gewicht", "1234567890 and more"]
    threads = [threading.Thread(target=complete, args=(sparse, text, 40)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    seen = report(sparse)
    assert sum(sum(layer["decode_tokens"]) for layer in seen["layers"]) == LAYERS * TOP_K * 4 * 39
    assert 0 <= seen["correlation"] < 1
    for row in seen["coverage"]:
        assert TOP_K <= row["measured"] <= EXPERTS
        assert row["predicted"] <= EXPERTS


def test_coactivation_on_demand(sparse: str) -> None:
    complete(sparse, "Hello", 4)
    assert "coactivation" not in report(sparse)
    pairs = report(sparse, "?coactivation=1")["coactivation"]
    assert [len(pairs), len(pairs[0]), len(pairs[0][0])] == [LAYERS, EXPERTS, EXPERTS]
    assert all(pairs[0][one][one] == 0 for one in range(EXPERTS))
    answer = httpx.get(f"{sparse}/v1/experts?coactivation=maybe")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "coactivation")


def test_metrics_have_experts_and_their_cache(sparse: str) -> None:
    complete(sparse, "The quick brown fox", 8)
    seen, cache = metrics(sparse), report(sparse)["cache"]
    assert seen["weighbridge_experts_touched_per_step"] >= LAYERS * TOP_K
    layer = report(sparse)["layers"][2]
    assert seen['weighbridge_expert_balancedness{layer="2"}'] == pytest.approx(layer["balancedness"])
    for phase in ("decode", "prefill"):
        counted = [
            seen[f'weighbridge_expert_tokens_total{{expert="{expert}",layer="2",phase="{phase}"}}']
            for expert in range(EXPERTS)
        ]
        assert counted == layer[f"{phase}_tokens"]
    assert seen["weighbridge_expert_cache_hits_total"] == cache["hits"] > 0
    assert seen["weighbridge_expert_cache_misses_total"] == cache["misses"] > 0
    assert cache["hits"] >= cache["lru_hits"]
    assert seen["weighbridge_expert_cache_hit_rate"] == pytest.approx(cache["hit_rate"])
    assert 0 < cache["resident_bytes"] <= 1_000_000


def test_the_command_line_shows_a_server(sparse: str, tmp_path: Path) -> None:
    complete(sparse, "Hello there", 6)
    page = tmp_path / "heat.html"
    shown = CliRunner().invoke(app, ["moe", "stats", "--url", sparse, "--html", str(page)])
    assert shown.exit_code == 0, shown.output
    assert "experts touched by each" in shown.output
    assert page.read_text().count("<td style") == LAYERS * EXPERTS
    printed = CliRunner().invoke(app, ["moe", "stats", "--url", sparse, "--json"])
    loads = tmp_path / "loads.json"
    loads.write_text(printed.stdout)
    placed = CliRunner().invoke(app, ["moe", "place", "--loads", str(loads), "--gpus", "4", "--json"])
    assert len(json.loads(placed.stdout)["physical_to_logical"]) == LAYERS


def test_a_dense_model_has_none(server: str) -> None:
    for answer in (httpx.get(f"{server}/v1/experts"), httpx.post(f"{server}/v1/experts/reset")):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "no_experts"
    assert "weighbridge_expert" not in httpx.get(f"{server}/metrics").text
