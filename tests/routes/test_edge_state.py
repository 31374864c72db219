"""The edge's state of a prompt: over the wire, from our real engine, through the fleet, and never from elsewhere."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from typer.testing import CliRunner

from tests.fleet.backends import Front, fleet
from tests.routes.routes import answer, ask
from tests.routes.stub import Stub, serving
from tests.server.running import free_port, running, wait_until_ready
from weighbridge.cli.app import app
from weighbridge.errors import BadInput
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.replicas.build import build_replica
from weighbridge.routes.build import add_routes
from weighbridge.routes.config import load_configuration
from weighbridge.routes.difficulty.embedders import minilm
from weighbridge.routes.difficulty.embedders.edge_state import EdgeServer, EdgeState
from weighbridge.routes.difficulty.embedders.vectors import EmbeddingFailed, Question, Source
from weighbridge.routes.difficulty.trained import load_router
from weighbridge.routes.errors import PlaceFailed
from weighbridge.routes.place import Place, is_here
from weighbridge.routes.policy import Level
from weighbridge.routes.settings import PlaceSettings

WIDTH = 6


class Engine(Stub):
    """A stub that also gives the state of a prompt: how many letters it has tells the first two numbers."""

    model = "small"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.bodies: list[dict[str, Any]] = []
        self.broken: Any = None
        self.delay = 0.0
        self.app.router.add_post("/v1/embeddings", self.embed)
        self.app.router.add_get("/v1/models", self.models)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.model}]})

    async def embed(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        await asyncio.sleep(self.delay)
        if self.broken is not None:
            return web.json_response(self.broken)
        text = body["messages"][-1]["content"]
        values = np.zeros(WIDTH, "<f4")
        values[:2] = np.cos(len(text)), np.sin(len(text))
        row = {
            "embedding": b64encode(values.tobytes()).decode(),
            "next_token": {"entropy": float(len(text) % 7), "top_logprob": -0.5, "margin": 1.0},
        }
        return web.json_response({"model": self.model, "data": [row], "usage": {"prompt_tokens": len(text)}})


def labels_file(folder: Path, count: int = 120) -> Path:
    """Right where the stub's entropy is low, whatever the words are."""
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(count):
        prompt = "".join(rng.choice(list("abcdefgh "), int(rng.integers(20, 60)))).strip() or "a"
        rows.append({"prompt": prompt, "edge_correct": len(prompt) % 7 < 3, "cloud_correct": True})
    path = folder / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


async def cli(*arguments: object) -> dict[str, Any]:
    """A `weighbridge route` command's JSON, run beside the loop that serves the stubs."""
    result = await asyncio.to_thread(CliRunner().invoke, app, ["route", *map(str, arguments), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    return found


async def test_train_evaluate_and_calibrate_with_the_edges_state(tmp_path: Path) -> None:
    labels, out, engine = labels_file(tmp_path), tmp_path / "router.json", Engine()
    async with serving(engine) as (url,):
        told = await cli(
            "train", "--labels", labels, "--out", out, "--features", "text,edge", "--edge-url", url
        )
        assert told["features"] == ["text", "edge"]
        assert told["shares"]["edge"][1] > 0.0  # what is known of the next token
        assert load_router(out).sources == (Source("edge", "small", (WIDTH, 3)),)
        assert engine.bodies[0].keys() == {"messages", "encoding_format", "model"}
        assert engine.bodies[0]["model"] == "small"
        found = await cli("eval", "--labels", labels, "--router", out, "--edge-url", url)
        folds = await cli("eval", "--labels", labels, "--folds", 2, "--features", "edge", "--edge-url", url)
        text = await cli("eval", "--labels", labels, "--folds", 2)
        assert found["features"] == folds["features"] == ["text", "edge"]
        assert text["features"] == ["text"]
        required = {"n", "weak", "strong", "auc", "apgr", "cpt50", "cpt80", "random_apgr", "length_apgr"}
        required |= {"oracle_apgr", "interval"}
        assert required <= found.keys()
        assert folds["apgr"] > text["apgr"]
        share = await cli(
            "calibrate", "--router", out, "--cloud-share", 0.3, "--labels", labels, "--edge-url", url
        )
        assert share["cloud_share"] == pytest.approx(0.3, abs=0.1)
        engine.model = "another"
        with pytest.raises(BadInput, match=r"of small .*of another .*train it again"):
            await cli("eval", "--labels", labels, "--router", out, "--edge-url", url)
    with pytest.raises(BadInput, match="--edge-url"):
        await cli("eval", "--labels", labels, "--router", out)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--features", "text,wings"], "'wings' is not one of text, minilm, edge"),
        (["--features", "edge"], "give --edge-url"),
        (["--features", "edge", "--edge-url", "http://10.1.2.3:8000"], "on this machine"),
        (["--features", "edge", "--edge-url", "https://cloud.example.com"], "on this machine"),
        (["--features", "edge", "--edge-url", "127.0.0.1:8000"], "on this machine"),
        (["--features", "edge", "--edge-url", "http://127.0.0.1:9"], "does not say which models"),
    ],
)
async def test_bad_features_say_what_to_change(options: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        await cli("train", "--labels", labels_file(tmp_path), "--out", tmp_path / "r.json", *options)


async def test_train_and_evaluate_with_minilm(tmp_path: Path) -> None:
    try:
        minilm.model_files()
    except BadInput as error:
        pytest.skip(str(error))
    rows = []
    for number in range(60):
        animal = number % 2 == 0
        word = ("horse", "sparrow", "otter", "beetle", "salmon")[number % 5]
        tool = ("hammer", "chisel", "spanner", "lathe", "anvil")[number % 5]
        prompt = f"Tell me of the {word if animal else tool}, part {number}."
        rows.append({"prompt": prompt, "edge_correct": animal, "cloud_correct": 1})
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = await cli("train", "--labels", labels, "--out", tmp_path / "r.json", "--features", "minilm")
    assert told["features"] == ["text", "minilm"]
    router = load_router(tmp_path / "r.json")
    assert router.sources == (minilm.SOURCE,)
    found = await cli("eval", "--labels", labels, "--router", tmp_path / "r.json")
    assert found["features"] == ["text", *(one.name for one in router.wanted)]


CONFIG = """
routes:
  auto:
    edge: {{url: "{edge}", model: {model}, dialect: weighbridge, probe: false}}
    cloud: {{url: "{cloud}", model: big}}
    router: {router}
    score_wait_ms: {wait}
    cascade: {{enabled: false}}
"""


@asynccontextmanager
async def routed(folder: Path, wait: int = 60_000, **changes: str) -> AsyncIterator[tuple[Engine, Any]]:
    """A route whose router was trained with the state of its edge."""
    labels, out, engine, cloud = labels_file(folder), folder / "router.json", Engine(), Stub()
    async with serving(engine, cloud) as (url, cloud_url):
        await cli("train", "--labels", labels, "--out", out, "--features", "edge", "--edge-url", url)
        engine.bodies.clear()
        named = {"edge": url, "cloud": cloud_url, "model": "small", "router": str(out), **changes}
        (folder / "weighbridge.yaml").write_text(CONFIG.format(wait=wait, **named))
        read = load_configuration(folder / "weighbridge.yaml")
        gateway = Gateway(read.fleet, build_replica)
        add_routes(gateway, read.routes)
        await gateway.start()
        try:
            yield engine, gateway.routes["auto"]
        finally:
            await gateway.close()


async def scored_by(service: Any, request: Any) -> tuple[str, Any]:
    found = await answer(service.route, request)
    [said] = [reason for reason in found.ticket.decisions if reason.startswith("scored by")]
    return said, found.ticket


async def test_a_route_asks_its_edge_with_the_chat_that_it_would_answer(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "aaaa bbbb"}]
    tools = [{"type": "function", "function": {"name": "send", "parameters": {"type": "object"}}}]
    async with routed(tmp_path) as (engine, router):
        said, ticket = await scored_by(router, ask(messages, tools=tools, user="jane", temperature=0.3))
        [body] = engine.bodies
    assert said == "scored by text and edge"
    assert (body["messages"], body["tools"], body["model"]) == (messages, tools, "small")
    assert body.keys() == {"messages", "tools", "model", "encoding_format", "weighbridge"}
    assert body["weighbridge"]["tenant"] == "jane"
    assert ticket.score is not None


@pytest.mark.parametrize("trouble", ["hangs", "is another server", "has another model", "is not a list"])
async def test_an_edge_without_state_costs_a_wait_and_nothing_else(trouble: str, tmp_path: Path) -> None:
    async with routed(tmp_path, wait=300 if trouble == "hangs" else 60_000) as (engine, router):
        expected = router.route.scorer("aaaa bbbb")
        if trouble == "hangs":
            engine.delay = 600.0
        elif trouble == "has another model":
            engine.model = "another"
        else:
            engine.broken = {"data": [{"embedding": [0.1, 0.2]}]} if trouble == "is another server" else [1]
        said, ticket = await scored_by(router, ask("aaaa bbbb"))
    reasons = {"hangs": "nothing came within 0.3 s", "has another model": "these are of another"}
    assert reasons.get(trouble, "only a Weighbridge engine does") in said
    assert said.startswith("scored by text; without edge: ")
    assert (ticket.score, ticket.error) == (expected, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"edge": "https://edge.example.com/v1"}, "not on this machine.*nothing is sent there"),
        ({"model": "large"}, "the state of 'small', but the edge is 'large'; train it again"),
    ],
)
async def test_a_router_of_another_edge_is_refused_when_it_is_loaded(
    changes: dict[str, str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=f"routes.auto.router.*{said}"):
        async with routed(tmp_path, **changes):
            pass


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://localhost/v1", True),
        ("http://127.0.0.1.example.com/v1", False),
        ("http://localhost.example.com/v1", False),
        ("http://127.0.0.1@example.com/v1", False),
        ("http://0.0.0.0.example/v1", False),
        ("http://192.168.0.7:8000/v1", False),
        ("", False),
    ],
)
def test_only_this_machine_is_here(url: str, here: bool) -> None:
    assert is_here(url) == here


async def test_an_engine_elsewhere_is_never_asked() -> None:
    config = "models: {m: {replicas: [{url: 'http://192.0.2.1:9', dialect: weighbridge, probe: false}]}}"
    async with fleet(config=config, wait=False) as front:
        place = place_of(front)
        with pytest.raises(EmbeddingFailed, match="not on this machine"):
            await EdgeState(place).embed(Question.alone("hello"))
        assert front.gateway.member("m-0")[1].counts.requests == 0


def place_of(front: Front) -> Place:
    return Place(PlaceSettings("edge", Level.EDGE, "m"), front.gateway, "auto")


@pytest.fixture(scope="module")
def engine(default_model_path: Path) -> Iterator[str]:
    """The real server with its default model."""
    port = free_port()
    import sys

    command = [sys.executable, "-m", "weighbridge", "serve", "--port", str(port)]
    with running(command, 30) as process:
        wait_until_ready(f"http://127.0.0.1:{port}", process, 120)
        yield f"http://127.0.0.1:{port}"


PROMPT = "Explain in one sentence why ships made of steel do not sink, and name one material that does. " * 4


async def test_the_real_engine_gives_its_state_and_keeps_the_prompt(engine: str) -> None:
    """The chat after it computes next to nothing of its prompt: it is in the prefix cache."""
    server = EdgeServer(engine, "smollm2-135m-instruct")
    vector = await EdgeState(server).embed(Question.alone(PROMPT))
    again = await EdgeState(server).embed(Question.alone(PROMPT))
    other = await EdgeState(server).embed(Question.alone("What is the capital of France?"))
    await server.close()
    assert vector.source == Source("edge", "smollm2-135m-instruct", (576, 3))
    assert np.linalg.norm(vector.values[:576]) == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_allclose(again.values, vector.values, atol=0.05)
    assert np.linalg.norm(other.values[:576] - vector.values[:576]) > 0.1
    entropy, top, margin = vector.values[576:]
    assert entropy >= 0.0 >= top
    assert margin >= 0.0
    body = {
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 1,
    }
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{engine}/v1/chat/completions", json=body) as got,
    ):
        usage = (await got.json())["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0.7 * usage["prompt_tokens"]


FLEET = """
models:
  m:
    replicas: [{{name: one, url: "{url}", dialect: {dialect}, model: smollm2-135m-instruct}}]
limits: {{requests_per_minute: 1}}
"""


async def test_a_model_of_the_fleet_gives_its_state_without_using_up_the_tenants_limits(engine: str) -> None:
    async with fleet(config=FLEET.format(url=engine, dialect="weighbridge")) as front:
        place = place_of(front)
        assert place.elsewhere == ""
        vectors = [await EdgeState(place).embed(Question.alone(PROMPT)) for _ in range(3)]
        assert {vector.source for vector in vectors} == {Source("edge", "smollm2-135m-instruct", (576, 3))}
        assert front.gateway.tickets.recent() == []
        assert front.gateway.open_journeys == 0
        async with front.post(messages=[{"role": "user", "content": PROMPT}], max_tokens=1) as got:
            usage = (await got.json())["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > 0.7 * usage["prompt_tokens"]
        chat = {"messages": [{"role": "user", "content": PROMPT}], "encoding_format": "base64"}
        with pytest.raises(PlaceFailed, match="no answer in time"):
            await place.embeddings(chat, 1e-6, "default", 0)
        assert all(member.state.requests == 0 for member in front.gateway.pools["m"].members.values())


@pytest.mark.parametrize(
    ("url", "dialect", "said"),
    [
        ("https://api.example.com", "weighbridge", "not on this machine"),
        ("http://127.0.0.1:9", "openai", "no Weighbridge engine"),
    ],
)
async def test_a_fleet_with_a_replica_elsewhere_is_never_asked(url: str, dialect: str, said: str) -> None:
    async with fleet(config=FLEET.format(url=url, dialect=dialect), wait=False) as front:
        place = place_of(front)
        assert said in place.elsewhere
        with pytest.raises(EmbeddingFailed, match=said):
            await EdgeState(place).embed(Question.alone("hello"))
        assert all(one.state.requests == 0 for one in front.gateway.pools["m"].members.values())
