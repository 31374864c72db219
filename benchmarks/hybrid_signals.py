"""What a local model's own signals say about its answers: the default model on questions with known answers.

    python benchmarks/hybrid_signals.py [--url http://127.0.0.1:8080/v1] [--out labels.jsonl]

Starts `weighbridge serve` unless a URL is given. Asks sums, differences, products and capitals, each once at
temperature 0 with log-probabilities and four times more at 0.8, and marks the answers. Then, over the same answers:
AUC of each signal alone for "this answer is right", and APGR of the judge as `route train` builds it (5 folds, a
cloud that is always right) from the text alone, with log-probabilities, and with agreement, with 95 % bootstrap
intervals. `--out` keeps the labels, in the form `route train` reads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from weighbridge.routes.difficulty.evaluate import cross_validated, evaluate
from weighbridge.routes.difficulty.isotonic import calibration_error
from weighbridge.routes.difficulty.labels import Label
from weighbridge.routes.judge import SignalMeter, Signals, confidence, pooled, share

MODEL = "smollm2-135m-instruct"
SAMPLES, TEMPERATURE = 4, 0.8
CAPITALS = (
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Austria Vienna, Norway Oslo, Sweden "
    "Stockholm, Finland Helsinki, Denmark Copenhagen, Poland Warsaw, Hungary Budapest, Greece Athens, Turkey Ankara, "
    "Egypt Cairo, Kenya Nairobi, Ghana Accra, Senegal Dakar, Morocco Rabat, Tunisia Tunis, Ethiopia Addis, Nigeria "
    "Abuja, Angola Luanda, Zambia Lusaka, Japan Tokyo, China Beijing, Thailand Bangkok, Vietnam Hanoi, Nepal "
    "Kathmandu, Iran Tehran, Iraq Baghdad, Syria Damascus, Lebanon Beirut, Jordan Amman, Cuba Havana, Peru Lima, "
    "Chile Santiago, Ecuador Quito, Colombia Bogot, Uruguay Montevideo, Canada Ottawa, Australia Canberra, Latvia "
    "Riga, Estonia Tallinn, Lithuania Vilnius, Serbia Belgrade, Croatia Zagreb, Bulgaria Sofia, Romania Bucharest, "
    "Ukraine Kyiv"
)


def questions(seed: int = 0) -> list[tuple[str, str]]:
    """Prompt and what a right answer holds."""
    rng = np.random.default_rng(seed)
    asked = []
    for most in (9, 20, 60):
        for sign, compute in (("+", int.__add__), ("-", int.__sub__), ("*", int.__mul__)):
            for _ in range(22):
                a, b = sorted(map(int, rng.integers(2, most, 2, endpoint=True)), reverse=True)
                asked.append((f"What is {a} {sign} {b}? Answer with the number only.", str(compute(a, b))))
    for pair in CAPITALS.split(", "):
        country, capital = pair.split(" ")
        asked.append((f"What is the capital of {country}? Answer in one word.", capital))
    return [asked[i] for i in rng.permutation(len(asked))]


def right(text: str, wanted: str) -> bool:
    if wanted.isdigit():
        found = re.findall(r"\d+", text.replace(",", ""))
        return bool(found) and found[-1] == wanted
    return wanted.lower() in text.lower()


async def ask(
    session: aiohttp.ClientSession, url: str, prompt: str, seed: int | None
) -> tuple[str, list[Any]]:
    """An answer and its log-probabilities; with a seed, drawn at the temperature."""
    body: dict[str, Any] = {
        "model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 32, "temperature": 0
    }  # fmt: skip
    body |= (
        {"logprobs": True, "top_logprobs": 5} if seed is None else {"temperature": TEMPERATURE, "seed": seed}
    )
    async with session.post(f"{url}/chat/completions", json=body) as answer:
        if answer.status != 200:
            raise SystemExit(f"{url} answered {answer.status}: {(await answer.text())[:300]}")
        choice = (await answer.json())["choices"][0]
    return choice["message"]["content"] or "", (choice.get("logprobs") or {}).get("content") or []


async def collect(url: str) -> list[dict[str, Any]]:
    """Labels as `route train` reads them."""
    places = asyncio.Semaphore(8)

    async def one(prompt: str, wanted: str) -> dict[str, Any]:
        async with places:
            text, logprobs = await ask(session, url, prompt, None)
            samples = [(await ask(session, url, prompt, seed))[0] for seed in range(1, SAMPLES + 1)]
        return {
            "prompt": prompt, "edge_correct": right(text, wanted), "cloud_correct": True, "edge_response": text,
            "edge_logprobs": logprobs, "edge_samples": samples,
        }  # fmt: skip

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(300)) as session:
        return await asyncio.gather(*(one(*question) for question in questions()))


def labels_of(rows: list[dict[str, Any]]) -> list[Label]:
    found = []
    for row in rows:
        meter = SignalMeter()
        meter.add(row["edge_logprobs"])
        agreeing = share(row["edge_response"], row["edge_samples"])
        right_one = float(row["edge_correct"])
        label = Label(row["prompt"], right_one, 1.0, None, row["edge_response"], meter.read(), agreeing)
        found.append(label)
    return found


def auc(values: np.ndarray, outcome: np.ndarray) -> float:
    """Probability that a right answer has the higher value; ties count half."""
    good, bad = values[outcome > 0.5], values[outcome < 0.5]
    above = (good[:, None] > bad).mean() + 0.5 * (good[:, None] == bad).mean()
    return float(above)


def show_signals(labels: list[Label]) -> None:
    outcome = np.array([one.edge for one in labels])
    rows = np.array([one.signals.as_list() for one in labels if one.signals is not None])
    named = dict(zip(Signals.__slots__, rows.T, strict=True))
    for name in ("tokens", "entropy", "first_entropy"):
        named[f"-{name}"] = -named.pop(name)
    named[f"agreement of {SAMPLES}"] = np.array([one.agreement for one in labels])
    likely = np.array([confidence(one.signals) for one in labels if one.signals is not None])
    agreeing = np.array([one.agreement or 0.0 for one in labels])
    both = np.array([pooled(p, a, SAMPLES) for p, a in zip(likely, agreeing, strict=True)])
    named["untrained judge, with samples"] = both
    rng = np.random.default_rng(0)
    picks = [rng.integers(0, len(labels), len(labels)) for _ in range(300)]
    for name, values in sorted(named.items(), key=lambda one: -auc(one[1], outcome)):
        low, high = np.percentile([auc(values[pick], outcome[pick]) for pick in picks], (2.5, 97.5))
        print(f"  AUC {name:30} {auc(values, outcome):.3f}  95 % [{low:.3f}, {high:.3f}]")
    for name, values in (("without samples", likely), ("with samples", both)):
        print(f"  untrained judge, {name}: calibration error {calibration_error(values, outcome):.3f}")


def show_judges(labels: list[Label]) -> None:
    variants = {
        "text": [replace(one, signals=None, agreement=None) for one in labels],
        "text, log-probabilities": [replace(one, agreement=None) for one in labels],
        "text, agreement": [replace(one, signals=None) for one in labels],
        "text, log-probabilities, agreement": labels,
    }
    prompt = evaluate(labels, np.mean([cross_validated(labels, 5, "prompt", s) for s in range(3)], axis=0))
    print(
        f"  APGR random {prompt.random_apgr:.3f}, length {prompt.length_apgr:.3f}, oracle {prompt.oracle_apgr:.3f}"
    )
    print(f"  APGR {'prompt only':34} {prompt.apgr:.3f}  95 % [{_ends(prompt.interval['apgr'])}]")
    for name, known in variants.items():
        score = np.mean([cross_validated(known, 5, "cascade", seed) for seed in range(3)], axis=0)
        found = evaluate(known, score)
        print(f"  APGR {name:34} {found.apgr:.3f}  95 % [{_ends(found.interval['apgr'])}]", flush=True)


def _ends(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.3f}, {interval[1]:.3f}"


@contextmanager
def served(url: str | None) -> Iterator[str]:
    """The base of an engine's API; one is started for the block unless there is a URL."""
    if url is not None:
        yield url.rstrip("/")
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = subprocess.Popen([sys.executable, "-m", "weighbridge", "serve", "--port", str(port)])
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except OSError:
                if child.poll() is not None:
                    raise SystemExit(f"weighbridge serve ended with code {child.returncode}") from None
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        child.terminate()
        child.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with served(given.url) as url:
        rows = asyncio.run(collect(url))
    if given.out:
        given.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    labels = labels_of(rows)
    print(f"{len(labels)} questions, {np.mean([one.edge for one in labels]):.1%} answered right by {MODEL}")
    show_signals(labels)
    show_judges(labels)


if __name__ == "__main__":
    main()
