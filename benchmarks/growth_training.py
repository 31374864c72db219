"""What `route train` takes on many labels: seconds, peak memory, and the APGR of what was learned.

python benchmarks/growth_training.py                                # 100,000 labels, with vectors of 384 numbers
python benchmarks/growth_training.py --labels 10000 --width 0 --json

The labels are RouteLLM's MMLU answers but 2,037, drawn again and again with noise: words are left out, qualities
moved. APGR is measured on those 2,037, by the text alone. The vectors are given, as `--features` would compute them:
they know a little of the label. Needs the data folder (WEIGHBRIDGE_DATA, or ../shared/data beside the repository).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path

import numpy as np

from weighbridge.routes.difficulty.embedders.vectors import Source, VectorTable
from weighbridge.routes.difficulty.evaluate import scores
from weighbridge.routes.difficulty.labels import Label, read_labels
from weighbridge.routes.difficulty.metrics import curve, intervals
from weighbridge.routes.difficulty.train import train

DATA = Path(os.environ.get("WEIGHBRIDGE_DATA", Path(__file__).parents[2] / "shared" / "data"))
LABELS = DATA / "routing" / "routellm_mmlu.jsonl.gz"
HELD_OUT = 2037


def resampled(labels: list[Label], count: int, rng: np.random.Generator) -> list[Label]:
    """`count` of `labels`, each with some words left out and its qualities moved by a little."""
    made = []
    for pick in rng.integers(0, len(labels), count):
        one = labels[pick]
        words = one.prompt.split(" ")
        kept = rng.random(len(words)) > 0.05
        prompt = " ".join([word for word, keep in zip(words, kept, strict=True) if keep]) or one.prompt
        edge, cloud = np.clip(rng.normal((one.edge, one.cloud), 0.1), 0.0, 1.0)
        made.append(Label(prompt, float(edge), float(cloud)))
    return made


def vectors(labels: list[Label], width: int, rng: np.random.Generator) -> list[VectorTable]:
    """A table that knows a little of the gain; none where `width` is 0."""
    if not width:
        return []
    rows = rng.standard_normal((len(labels), width), dtype=np.float32)
    rows += np.array([[0.1 * (one.cloud - one.edge)] for one in labels], np.float32)
    return [VectorTable(Source("given", "none", (width,)), rows)]


def measured(count: int, width: int, seed: int) -> dict[str, float]:
    """`seed`: of the drawing; those held out are always the same."""
    known = read_labels(LABELS)
    order = np.random.default_rng(0).permutation(len(known))
    held = [known[place] for place in order[:HELD_OUT]]
    rng = np.random.default_rng(seed)
    labels = resampled([known[place] for place in order[HELD_OUT:]], count, rng)
    tables = vectors(labels, width, rng)
    began, used = time.perf_counter(), time.process_time()
    router = train(labels, 0, tables)
    took, cpu = time.perf_counter() - began, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    edge, cloud = np.array([one.edge for one in held]), np.array([one.cloud for one in held])
    ranking = scores(router, held)
    least, most = intervals(ranking, edge, cloud, np.random.default_rng(0), 1000)["apgr"] or (0.0, 1.0)
    found = {"labels": count, "seed": seed, "seconds": took, "cpu": cpu, "peak_mb": peak / 1e6}
    return found | {"apgr": curve(ranking, edge, cloud).apgr or 0.0, "apgr_least": least, "apgr_most": most}


def main() -> None:
    parser = argparse.ArgumentParser(description="What `route train` takes on many labels.")
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument(
        "--width", type=int, default=384, help="numbers of the vectors beside the text; 0: none"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the drawing of labels")
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    found = measured(told.labels, told.width, told.seed)
    if told.json:
        print(json.dumps(found))
        return
    print(
        f"{told.labels:,} labels: {found['seconds']:.0f} s ({found['cpu']:.0f} s of the processor), peak "
        f"{found['peak_mb']:,.0f} MB, APGR {found['apgr']:.4f} "
        f"(95 %: {found['apgr_least']:.3f} to {found['apgr_most']:.3f})"
    )


if __name__ == "__main__":
    main()
