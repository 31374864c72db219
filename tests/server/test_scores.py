"""Scores, rankings and labels: a server of its own, a gateway with models in it, and one with a model elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.server.running import free_port, running, serving
from tests.server.test_embeddings_gateway import ready
from tests.tiny import TEXT
from tests.tiny_readers import make_reader, say_pooling
from weighbridge.models.readers.form import VectorForm, form_of
from weighbridge.models.readers.whole import WholeReader
from weighbridge.models.text.tokenizer import load_tokenizer

QUERY = "the lazy dog"
#: A query beside each: one to rank, and one that is twice there.
DOCUMENTS = [*TEXT[:3], TEXT[0], "a"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("readers")
    return {
        "ranker": make_reader(home / "ranker", "bert", 1),
        "sorter": make_reader(home / "sorter", "roberta", 3, id2label={0: "good", 1: "bad", 2: "neither"}),
        "vectors": say_pooling(make_reader(home / "vectors", "bert"), "cls_token", normalizes=False),
    }


@pytest.fixture(scope="module")
def urls(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses of a server that embeds, and of a gateway with all of them in it, and that server behind it."""
    config = tmp_path_factory.mktemp("gateway") / "weighbridge.yaml"
    with serving(models["vectors"], "--max-batch-tokens", "32") as (elsewhere, _):
        inside = [
            f"  {name}:\n    replicas: [{{engine: {path}, name: {name}}}]" for name, path in models.items()
        ]
        behind = (
            f"  behind:\n    replicas: [{{url: {elsewhere}, dialect: weighbridge, name: far, model: tiny}}]"
        )
        config.write_text("\n".join(["models:", *inside, behind]))
        port = free_port()
        command = [sys.executable, "-m", "weighbridge", "serve", "--config", str(config), "--port", str(port)]
        with running(command, 30) as process:
            until = time.monotonic() + 120
            while not ready(f"http://127.0.0.1:{port}"):
                assert process.poll() is None, f"the gateway ended with code {process.returncode}"
                assert time.monotonic() < until, "the gateway did not start in time"
                time.sleep(0.1)
            yield {"server": elsewhere, "gateway": f"http://127.0.0.1:{port}"}


def ask(url: str, path: str, **body: Any) -> httpx.Response:
    return httpx.post(url + path, json=body, timeout=60)


def expected(path: Path, pairs: list[tuple[str, str]]) -> list[float]:
    """A model's own scores, of one pair or text at a time."""
    form, tokenizer = form_of(path), load_tokenizer(path)
    assert form is not None
    reader = WholeReader(path, form, tokenizer.pairs.separator())
    if isinstance(form, VectorForm):
        vectors = [[reader([tokenizer.encode(text)])[0] for text in pair] for pair in pairs]
        return [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in vectors]
    numbers = [float(reader([tokenizer.pairs.encode(*pair)])[0, 0]) for pair in pairs]
    return [1 / (1 + math.exp(-number)) for number in numbers]


@pytest.mark.parametrize(
    ("door", "model", "file"),
    [("server", "tiny", "vectors"), ("gateway", "ranker", "ranker"), ("gateway", "behind", "vectors")],
)
def test_rankings_and_scores_are_the_model_s(
    urls: dict[str, str], models: dict[str, Path], door: str, model: str, file: str
) -> None:
    truth = expected(models[file], [(QUERY, text) for text in DOCUMENTS])
    answer = ask(urls[door], "/v1/score", model=model, queries=QUERY, documents=DOCUMENTS)
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose([one["score"] for one in answer.json()["data"]], truth, atol=1e-5)
    assert answer.json()["usage"]["prompt_tokens"] > 0
    assert answer.headers["x-weighbridge-ticket"]
    mirrored = ask(urls[door], "/v1/score", model=model, text_1=[QUERY] * 2, text_2=DOCUMENTS[:2]).json()
    np.testing.assert_allclose([one["score"] for one in mirrored["data"]], truth[:2], atol=1e-5)
    order = sorted(range(len(truth)), key=lambda index: -truth[index])
    for path in ("/v1/rerank", "/v2/rerank"):
        objects = [{"text": text} for text in DOCUMENTS]
        ranked = ask(urls[door], path, model=model, query=QUERY, documents=objects, top_n=3).json()["results"]
        np.testing.assert_allclose(
            [one["relevance_score"] for one in ranked], [truth[i] for i in order[:3]], atol=1e-5
        )
        assert [one["document"]["text"] for one in ranked] == [DOCUMENTS[one["index"]] for one in ranked]
    bare = ask(
        urls[door], "/v1/rerank", model=model, query=QUERY, documents=DOCUMENTS, return_documents=False
    )
    assert list(bare.json()["results"][0]) == ["index", "relevance_score"]


def test_an_embedder_scores_by_the_angle_between_its_vectors(urls: dict[str, str]) -> None:
    url = urls["gateway"]
    texts = [QUERY, *DOCUMENTS]
    answer = ask(url, "/v1/embeddings", model="vectors", input=texts).json()
    vectors = np.array([one["embedding"] for one in answer["data"]])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scored = ask(url, "/v1/score", model="vectors", queries=QUERY, documents=DOCUMENTS).json()
    np.testing.assert_allclose([one["score"] for one in scored["data"]], unit[1:] @ unit[0], atol=1e-5)
    # What is there twice is read once.
    assert scored["usage"]["prompt_tokens"] < answer["usage"]["prompt_tokens"]


def test_labels_come_with_their_chances(urls: dict[str, str], models: dict[str, Path]) -> None:
    form, tokenizer = form_of(models["sorter"]), load_tokenizer(models["sorter"])
    assert form is not None
    reader = WholeReader(models["sorter"], form, None)
    answer = ask(urls["gateway"], "/v1/classify", model="sorter", input=DOCUMENTS).json()
    for text, row in zip(DOCUMENTS, answer["data"], strict=True):
        numbers = np.exp(reader([tokenizer.encode(text)])[0].astype(float))
        np.testing.assert_allclose(row["probs"], numbers / numbers.sum(), atol=1e-5)
        assert row["label"] == ("good", "bad", "neither")[int(numbers.argmax())]
        assert row["num_classes"] == 3


LONG = " ".join(TEXT) * 3


@pytest.mark.parametrize(("door", "model"), [("server", "tiny"), ("gateway", "ranker")])
@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "must not be empty"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["a", 3]}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        (
            "/v1/rerank",
            {"query": "a", "documents": ["b", LONG, *["c"] * 30]},
            "tokens, but this model takes 64",
        ),
        ("/v1/rerank", {"query": "a", "documents": ["b"] * 2049}, "at most 2048"),
        ("/v1/score", {"queries": ["a", "b"], "documents": ["a", "b", "c"]}, "there are 2 for 3"),
        ("/v1/score", {"queries": "a"}, "documents"),
        ("/v1/score", {"queries": "a", "documents": "b", "truncate_prompt_tokens": 65}, "1 to 64"),
    ],
)
def test_mistakes_name_the_field_and_what_to_do(
    urls: dict[str, str], door: str, model: str, path: str, body: dict[str, Any], words: str
) -> None:
    answer = ask(urls[door], path, model=model, **body)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "cut", [{"truncate_prompt_tokens": -1}, {"truncate_prompt_tokens": 20}, {"max_tokens_per_doc": 20}]
)
def test_a_long_document_is_cut_where_it_is_asked(urls: dict[str, str], cut: dict[str, int]) -> None:
    answer = ask(urls["server"], "/v1/rerank", model="tiny", query=QUERY, documents=[LONG, "a"], **cut)
    assert answer.status_code == 200, answer.text
    whole = 64 if -1 in cut.values() else 20
    assert whole < answer.json()["usage"]["prompt_tokens"] <= 3 * whole


def test_what_a_model_does_not_do_is_asked_elsewhere(urls: dict[str, str]) -> None:
    for path, body, model in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "ranker"),
        ("/v1/embeddings", {"input": "a"}, "ranker"),
        ("/v1/classify", {"input": "a"}, "vectors"),
        ("/v1/rerank", {"query": "a", "documents": ["a"]}, "sorter"),
        ("/v1/completions", {"prompt": "a"}, "sorter"),
    ):
        answer = ask(urls["gateway"], path, model=model, **body)
        assert answer.status_code in (400, 404), answer.text
        assert answer.json()["error"]["message"]
