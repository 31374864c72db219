"""What the embedding of a chat costs, and what it saves the answer that follows.

Against a running server (`weighbridge serve`):

    python benchmarks/embeddings.py --url http://127.0.0.1:8080 --tokens 200 --rounds 30

Each round sends one chat of about `--tokens` prompt tokens that nobody has sent before, in three ways, in turn: as a
streamed chat completion (TTFT without), as `/v1/embeddings` with `messages` (the cost), and then that same chat as a
streamed completion (TTFT with). Then `--burst` inputs of 100 tokens in one request, and the gaps between the tokens
of a stream: alone, beside the embedding of as many inputs, beside as many completions of one token.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import threading
import time
from itertools import pairwise
from typing import Any

import httpx

WORDS = (
    "scale",
    "weight",
    "stone",
    "barge",
    "harbour",
    "copper",
    "ledger",
    "clerk",
    "toll",
    "bridge",
    "market",
    "sack",
)


def chat(rng: random.Random, words: int) -> list[dict[str, str]]:
    """Random words, the first of them a number: no two chats share a block of tokens behind the template's own."""
    text = " ".join([str(rng.getrandbits(40)), *rng.choices(WORDS, k=words)])
    return [{"role": "user", "content": text}]


def first_token(client: httpx.Client, messages: Any, model: str) -> float:
    """Seconds from sending to the first event with content."""
    body = {"model": model, "messages": messages, "max_tokens": 4, "temperature": 0, "stream": True}
    began = time.perf_counter()
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                return time.perf_counter() - began
    raise RuntimeError("the answer had no content")


def embed(client: httpx.Client, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    began = time.perf_counter()
    answer = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"})
    answer.raise_for_status()
    return time.perf_counter() - began, answer.json()


def prompt_tokens(client: httpx.Client, model: str, messages: Any) -> int:
    return int(embed(client, {"model": model, "messages": messages})[1]["usage"]["prompt_tokens"])


def stream_gaps(client: httpx.Client, model: str, tokens: int) -> list[float]:
    """Seconds between the tokens of one stream."""
    body = {"model": model, "prompt": "Once", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    at: list[float] = []
    with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        at += [time.perf_counter() for line in answer.iter_lines() if line.startswith("data: {")]
    return [later - earlier for earlier, later in pairwise(at)]


def summary(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=20)
    return {"p50_ms": round(1e3 * statistics.median(seconds), 1), "p95_ms": round(1e3 * cuts[-1], 1)}


def chats(client: httpx.Client, model: str, words: int, rounds: int, rng: random.Random) -> dict[str, Any]:
    without, cost, after, lengths = [], [], [], []
    for _ in range(rounds):
        without.append(first_token(client, chat(rng, words), model))
        messages = chat(rng, words)
        seconds, answer = embed(client, {"model": model, "messages": messages})
        cost.append(seconds)
        lengths.append(answer["usage"]["prompt_tokens"])
        after.append(first_token(client, messages, model))
    both = [one + other for one, other in zip(cost, after, strict=True)]
    return {
        "prompt_tokens": statistics.median(lengths),
        "ttft": summary(without),
        "embedding": summary(cost),
        "ttft_after_embedding": summary(after),
        "both": summary(both),
    }


def many(client: httpx.Client, model: str, count: int, rng: random.Random) -> dict[str, Any]:
    """`count` inputs of 100 token ids in one request: alone, and the gaps of a stream beside as many others."""

    def inputs() -> list[list[int]]:
        return [[rng.randrange(100, 20_000) for _ in range(100)] for _ in range(count)]

    def beside(path: str, body: dict[str, Any]) -> dict[str, float]:
        """The gaps of a stream, most of whose tokens come while the request is computed."""
        gaps: list[float] = []
        reader = threading.Thread(target=lambda: gaps.extend(stream_gaps(client, model, 100)))
        reader.start()
        time.sleep(0.3)
        client.post(path, json={"model": model, **body}).raise_for_status()
        reader.join(120)
        return summary(gaps)

    seconds, _ = embed(client, {"model": model, "input": inputs()})
    return {
        "inputs": count,
        "tokens_per_second": round(100 * count / seconds),
        "itl_alone": summary(stream_gaps(client, model, 100)),
        "itl_beside_embeddings": beside("/v1/embeddings", {"input": inputs()}),
        "itl_beside_completions": beside("/v1/completions", {"prompt": inputs(), "max_tokens": 1}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--burst", type=int, default=64)
    options = parser.parse_args()
    rng = random.Random(time.time_ns())
    with httpx.Client(base_url=options.url, timeout=120) as client:
        model = client.get("/v1/models").json()["data"][0]["id"]
        short, long = (prompt_tokens(client, model, chat(rng, words)) for words in (50, 150))
        words = 50 + round(100 * (options.tokens - short) / (long - short))
        chats(client, model, words, 3, rng)  # warm up
        report = chats(client, model, words, options.rounds, rng)
        report["burst"] = many(client, model, options.burst, rng)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
