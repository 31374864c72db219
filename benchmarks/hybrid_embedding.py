"""What vectors beside the text bring to the pre-router, and what they cost: MiniLM int8, and the edge's own state.

    pip install 'weighbridge[embedding]'
    python benchmarks/hybrid_embedding.py quality --cache DIR [--questions 6000] [--seeds 5] [--folds 5]
    python benchmarks/hybrid_embedding.py own --labels labels.jsonl --cache DIR
    python benchmarks/hybrid_embedding.py latency

`quality`: RouteLLM's MMLU, whose edge is Mixtral-8x7B: 1,500 random labels, the other questions scored, and folds; the
router trained by `route train` from the text, with minilm, with edge (the default model of `weighbridge serve`), with
both; APGR with 95 % bootstrap intervals, beside random, length and oracle, and the shares that cross-validation chose.
`own`: labels that are the edge's own, as `hybrid_signals.py --out` writes them: AUC and APGR of the pre-router, five
folds. `latency`: milliseconds to score a prompt, and what the edge's state adds to a request that the edge answers.

`--cache` keeps the vectors, which take minutes. Starts `weighbridge serve` unless --url is given. Needs the data folder
(WEIGHBRIDGE_DATA, or ../shared/data beside the repository).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hybrid_signals import served
from weighbridge.fleet.api import Call
from weighbridge.fleet.load.dialects import dialect
from weighbridge.fleet.replicas.http import HttpEndpoint, HttpReplica
from weighbridge.routes.difficulty.embedders.edge_state import EdgeServer, EdgeState
from weighbridge.routes.difficulty.embedders.minilm import MiniLm
from weighbridge.routes.difficulty.embedders.vectors import (
    Embedder,
    Question,
    Source,
    VectorTable,
    embed_all,
    vectors_of,
)
from weighbridge.routes.difficulty.evaluate import evaluate, scores
from weighbridge.routes.difficulty.labels import Label, read_labels
from weighbridge.routes.difficulty.metrics import RankingReport
from weighbridge.routes.difficulty.model import spread as spread_out
from weighbridge.routes.difficulty.ridge import ridge
from weighbridge.routes.difficulty.train import train

DATA = Path(os.environ.get("WEIGHBRIDGE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "routing"
MODEL = "smollm2-135m-instruct"
LABELS, CHUNK, PATIENCE = 1500, 250, 600.0
CHOICES = ((), ("minilm",), ("edge",), ("minilm", "edge"))


def edge_server(url: str) -> EdgeServer:
    return EdgeServer(url.removesuffix("/v1"), MODEL)


async def table_of(name: str, prompts: Sequence[str], url: str, cache: Path | None) -> VectorTable:
    """All vectors of a source, in pieces that are kept, so that whoever is interrupted goes on where it was."""
    server = edge_server(url)
    embedder: Embedder = MiniLm(threads=2) if name == "minilm" else EdgeState(server, PATIENCE)
    parts: list[np.ndarray] = []
    source: Source | None = None
    try:
        for start in range(0, len(prompts), CHUNK):
            piece = prompts[start : start + CHUNK]
            kept = cache / f"{name}-{start:05d}-{len(piece)}.npz" if cache is not None else None
            if kept is not None and kept.exists():
                found = np.load(kept)
                source = Source(name, str(found["model"]), tuple(map(int, found["parts"])))
                parts.append(found["rows"])
                continue
            table = await embed_all(embedder, piece)
            source = table.source
            parts.append(table.rows)
            if kept is not None:
                np.savez(kept, rows=table.rows, model=source.model, parts=source.parts)
    finally:
        await embedder.close()
        await server.close()
    assert source is not None
    return VectorTable(source, np.concatenate(parts))


def show(name: str, reports: Sequence[RankingReport]) -> None:
    ends = np.mean([one.interval["apgr"] or (np.nan, np.nan) for one in reports], axis=0)
    base = [
        np.mean([getattr(one, f"{kind}_apgr") for one in reports]) for kind in ("random", "length", "oracle")
    ]
    print(
        f"  {name:22} APGR {np.mean([one.apgr for one in reports]):.4f} (95 % {ends[0]:.3f} to {ends[1]:.3f}), "
        f"CPT50 {np.mean([one.cpt50 for one in reports]):.1%}, AUC {np.mean([one.auc for one in reports]):.4f}; "
        "random {:.3f}, length {:.3f}, oracle {:.3f}".format(*base),
        flush=True,
    )


def named(choice: Sequence[str]) -> str:
    return "+".join(("text", *choice))


def few_labels(labels: Sequence[Label], tables: dict[str, VectorTable], seeds: int) -> None:
    """One training for all choices of sources: a head for each is what `route train` makes."""
    found: dict[tuple[str, ...], list[RankingReport]] = {choice: [] for choice in choices(tables)}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(labels))
        known, rest = order[:LABELS].tolist(), order[LABELS:].tolist()
        unseen = [labels[i] for i in rest]
        router = train([labels[i] for i in known], seed, [one.take(known) for one in tables.values()])
        shares = {"+".join(head.sources): [b.share for b in head.model.blocks] for head in router.heads}
        print(f"  seed {seed}: shares {shares}", flush=True)
        for choice, reports in found.items():
            used = [tables[name].take(rest) for name in choice]
            reports.append(evaluate(unseen, scores(router, unseen, "prompt", used), seed, 300))
    for choice, reports in found.items():
        show(named(choice), reports)
        more = [a.apgr - b.apgr for a, b in zip(reports, found[()], strict=True) if a.apgr and b.apgr]
        print(f"  {'':22} over the text {np.mean(more):+.4f} (least {min(more):+.4f}, most {max(more):+.4f})")


def choices(tables: dict[str, VectorTable]) -> list[tuple[str, ...]]:
    return [choice for choice in CHOICES if set(choice) <= tables.keys()]


def folded(labels: Sequence[Label], tables: dict[str, VectorTable], folds: int, seeds: int = 1) -> None:
    """Each label scored by a router trained on the other folds, once for all choices of sources."""
    score = {choice: np.zeros((seeds, len(labels))) for choice in choices(tables)}
    for seed in range(seeds):
        fold = np.random.default_rng(seed).permutation(len(labels)) % folds
        for k in range(folds):
            known, mine = np.flatnonzero(fold != k).tolist(), np.flatnonzero(fold == k).tolist()
            router = train([labels[i] for i in known], seed, [one.take(known) for one in tables.values()])
            unseen = [labels[i] for i in mine]
            for choice, row in score.items():
                used = [tables[name].take(mine) for name in choice]
                row[seed, mine] = scores(router, unseen, "prompt", used)
    edge = np.array([one.edge for one in labels])
    for choice, rows in score.items():
        mean = rows.mean(axis=0)
        print(
            f"  {named(choice)}: AUC for a right local answer {auc(-mean, edge):.3f}, 95 % {auc_ends(-mean, edge)}"
        )
        show(f"{named(choice)}, {folds} folds", [evaluate(labels, mean, 0, 1000)])


def auc(values: np.ndarray, outcome: np.ndarray) -> float:
    """Probability that a right answer has the higher value; ties count half."""
    good, bad = np.sort(values[outcome > 0.5]), values[outcome < 0.5]
    below, upto = np.searchsorted(good, bad, "left"), np.searchsorted(good, bad, "right")
    return float(1.0 - (below + upto).mean() / (2 * len(good)))


def auc_ends(values: np.ndarray, outcome: np.ndarray) -> str:
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(300):
        pick = rng.integers(0, len(values), len(values))
        drawn.append(auc(values[pick], outcome[pick]))
    return "{:.3f} to {:.3f}".format(*np.percentile(drawn, (2.5, 97.5)))


def quality(given: argparse.Namespace) -> None:
    labels = read_labels(DATA / "routellm_mmlu.jsonl.gz")
    labels = [labels[i] for i in np.random.default_rng(0).permutation(len(labels))[: given.questions]]
    tables = tables_of(given, labels)
    print(
        f"MMLU, {len(labels)} questions; {LABELS} labels, {given.seeds} seeds; {given.folds} folds",
        flush=True,
    )
    if given.seeds:
        few_labels(labels, tables, given.seeds)
    if given.folds:
        folded(labels, tables, given.folds)


def tables_of(given: argparse.Namespace, labels: Sequence[Label]) -> dict[str, VectorTable]:
    names = given.features.split(",")
    prompts = [one.prompt for one in labels]
    if "edge" not in names:
        return {name: asyncio.run(table_of(name, prompts, "", given.cache)) for name in names}
    with served(given.url) as url:
        return {name: asyncio.run(table_of(name, prompts, url, given.cache)) for name in names}


def own(given: argparse.Namespace) -> None:
    labels = read_labels(given.labels)
    tables = tables_of(given, labels)
    print(f"{len(labels)} labels of the edge itself, 5 folds, mean score of 3 seeds", flush=True)
    folded(labels, tables, 5, 3)
    edge = np.array([one.edge for one in labels])
    for name, table in tables.items():
        values = unseen_by(table.rows.astype(np.float64), edge, 5, 3)
        print(f"  {name} without the text: AUC {auc(values, edge):.3f}, 95 % {auc_ends(values, edge)}")
    next_token = tables["edge"].rows[:, -3:]
    for place, name in enumerate(("-entropy", "top_logprob", "margin")):
        values = next_token[:, place] * (-1.0 if place == 0 else 1.0)
        print(f"  next token's {name} alone: AUC {auc(values, edge):.3f}, 95 % {auc_ends(values, edge)}")


def unseen_by(rows: np.ndarray, outcome: np.ndarray, folds: int, seeds: int) -> np.ndarray:
    """A plain ridge on vectors alone: predictions for each row by those of the other folds."""
    found = np.zeros((seeds, len(rows)))
    for seed in range(seeds):
        fold = np.random.default_rng(seed).permutation(len(rows)) % folds
        for k in range(folds):
            known = fold != k
            mean, deviation = rows[known].mean(axis=0), rows[known].std(axis=0) + 1e-6
            columns = spread_out(rows, mean, deviation)
            weights, bias, _ = ridge(columns[known], outcome[known, None], np.random.default_rng(seed))
            found[seed, ~known] = (bias + columns[~known] @ weights)[:, 0]
    result: np.ndarray = found.mean(axis=0)
    return result


async def latencies(url: str, prompts: Sequence[str]) -> dict[str, list[float]]:
    """Of each prompt: its first token alone, and after its state was asked for. Neither was seen before."""
    server = edge_server(url)
    state = EdgeState(server, PATIENCE)
    replica = HttpReplica("edge", HttpEndpoint(url.removesuffix("/v1"), dialect("weighbridge")))
    took: dict[str, list[float]] = {
        "first token": [], "state": [], "first token after it": [], "state and first token": []
    }  # fmt: skip

    async def first(text: str) -> float:
        started = time.perf_counter()
        messages = [{"role": "user", "content": text}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 1, "temperature": 0, "stream": True}
        answer = await replica.open(Call("/v1/chat/completions", json.dumps(body).encode(), stream=True))
        async for _ in answer.chunks():
            pass
        return (time.perf_counter() - started) * 1e3

    for number, prompt in enumerate(prompts):
        plain, asked = f"Question {number} a. {prompt}", f"Question {number} b. {prompt}"
        for kind in ("plain", "state") if number % 2 else ("state", "plain"):
            if kind == "plain":
                took["first token"].append(await first(plain))
                continue
            started = time.perf_counter()
            await state.embed(Question.alone(asked))
            middle = time.perf_counter()
            took["first token after it"].append(await first(asked))
            took["state"].append((middle - started) * 1e3)
            took["state and first token"].append((time.perf_counter() - started) * 1e3)
    await server.close()
    await replica.close()
    return took


def latency(given: argparse.Namespace) -> None:
    labels = read_labels(DATA / "routellm_mmlu.jsonl.gz")
    labels = [labels[i] for i in np.random.default_rng(1).permutation(len(labels))[: 200 + given.prompts]]
    known, asked = labels[:200], [one.prompt for one in labels[200:]]
    minilm = MiniLm()
    sizes = [len(one) for one in asked]
    print(f"{len(asked)} prompts of {np.median(sizes):.0f} characters (p90 {np.percentile(sizes, 90):.0f})")

    async def embedded() -> list[float]:
        times = []
        for text in asked:
            started = time.perf_counter()
            await minilm.embed(Question.alone(text))
            times.append((time.perf_counter() - started) * 1e3)
        return times

    rng = np.random.default_rng(0)
    noise = [VectorTable(Source(n, "m", p), rng.standard_normal((200, sum(p)))) for n, p in SHAPES]
    spread("MiniLM vector", asyncio.run(embedded()))
    router = train(known, 0, noise)
    spread("score from the text", timed(lambda text, row: router.score(text), asked))
    if router.heads:
        most = [one for one in noise if one.source.name in router.heads[0].sources]
        name = f"score with vectors that are here ({named(router.heads[0].sources)})"
        spread(name, timed(lambda text, row: router.score(text, vectors_of(most, row)), asked))
    with served(given.url) as url:
        asyncio.run(latencies(url, asked[:5]))
        took = asyncio.run(latencies(url, asked))
    for name, times in took.items():
        spread(name, times)
    spread("what it adds", np.array(took["state and first token"]) - np.array(took["first token"]))


SHAPES = (("minilm", (384,)), ("edge", (576, 3)))


def timed(score, prompts: Sequence[str]) -> list[float]:  # type: ignore[no-untyped-def]
    times = []
    for row, text in enumerate(prompts):
        started = time.perf_counter()
        score(text, row % 200)
        times.append((time.perf_counter() - started) * 1e3)
    return times


def spread(name: str, times: Sequence[float] | np.ndarray) -> None:
    ends = np.percentile(times, (50, 90, 95))
    print("  {:38} ms: p50 {:.2f}  p90 {:.2f}  p95 {:.2f}".format(name, *ends), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=("quality", "own", "latency"))
    parser.add_argument("--url")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--features", default="minilm,edge")
    parser.add_argument("--questions", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folds", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=100)
    given = parser.parse_args()
    if given.cache is not None:
        given.cache.mkdir(parents=True, exist_ok=True)
    {"quality": quality, "own": own, "latency": latency}[given.part](given)


if __name__ == "__main__":
    main()
