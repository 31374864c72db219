"""Router quality on recorded answers of two models (RouteLLM's GSM8K and MMLU), by cross-validation.

    python benchmarks/hybrid_router.py                 all
    python benchmarks/hybrid_router.py mmlu1500        1,500 random labels, the other 12,537 scored, 5 seeds
    python benchmarks/hybrid_router.py mmlu5 gsm8k5    5 folds; gsm8k reads the local answer
    python benchmarks/hybrid_router.py gsm8kprompt speed

Needs the data folder (WEIGHBRIDGE_DATA, or ../shared/data beside the repository).
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from weighbridge.routes.difficulty.evaluate import cross_validated, evaluate, scores
from weighbridge.routes.difficulty.labels import Label, read_labels
from weighbridge.routes.difficulty.metrics import RankingReport
from weighbridge.routes.difficulty.train import train

DATA = Path(os.environ.get("WEIGHBRIDGE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "routing"


def show(name: str, reports: list[RankingReport]) -> None:
    rows = [asdict(one) for one in reports]
    print(f"{name}: n {rows[0]['n']}, runs {len(rows)}")
    for key in ("apgr", "cpt50", "cpt80", "random_apgr", "length_apgr", "oracle_apgr"):
        values = [row[key] for row in rows]
        ends = [row["interval"].get(key) for row in rows]
        interval = "" if ends[0] is None else "  95 % [{:.3f}, {:.3f}]".format(*np.mean(ends, axis=0))
        print(f"  {key:12} {np.mean(values):.4f} sd {np.std(values):.4f}{interval}", flush=True)


def mmlu1500() -> None:
    labels = read_labels(DATA / "routellm_mmlu.jsonl.gz")
    reports = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(labels))
        router = train([labels[i] for i in order[:1500]], seed)
        rest = [labels[i] for i in order[1500:]]
        reports.append(evaluate(rest, scores(router, rest), seed, 300))
    show("MMLU, prompt only, 1,500 labels", reports)


def folded(name: str, labels: list[Label], mode: str, seeds: int) -> None:
    reports = [evaluate(labels, cross_validated(labels, 5, mode, seed), seed, 300) for seed in range(seeds)]
    show(name, reports)


def speed() -> None:
    labels = read_labels(DATA / "routellm_mmlu.jsonl.gz")[:3000]
    router = train(labels[:1500])
    took = []
    for one in labels[1500:]:
        start = time.perf_counter()
        router.score(one.prompt)
        took.append((time.perf_counter() - start) * 1e3)
    print("scoring a prompt, ms: p50 {:.3f}  p99 {:.3f}".format(*np.percentile(took, (50, 99))))


def main() -> None:
    wanted = sys.argv[1:] or ["mmlu1500", "mmlu5", "gsm8k5", "gsm8kprompt", "speed"]
    for one in wanted:
        if one == "mmlu1500":
            mmlu1500()
        elif one == "mmlu5":
            folded("MMLU, prompt only, 5 folds", read_labels(DATA / "routellm_mmlu.jsonl.gz"), "prompt", 1)
        elif one == "gsm8k5":
            folded(
                "GSM8K, local answer read, 5 folds", read_labels(DATA / "routellm_gsm8k.jsonl.gz"), "auto", 5
            )
        elif one == "gsm8kprompt":
            folded("GSM8K, prompt only, 5 folds", read_labels(DATA / "routellm_gsm8k.jsonl.gz"), "prompt", 1)
        elif one == "speed":
            speed()
        else:
            raise SystemExit(f"unknown part {one!r}: mmlu1500, mmlu5, gsm8k5, gsm8kprompt or speed")


if __name__ == "__main__":
    main()
