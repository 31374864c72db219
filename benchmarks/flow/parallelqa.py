"""ParallelQA questions: searches of lognormal latency, and the local model to answer, in every mode.

    python -m benchmarks.flow.parallelqa --data ../shared/data [--questions 12] [--scale 1.0]

The data has the questions and how many independent lookups each needs (`branch`), not the lookups: `search`
is synthetic, a table that takes lognormal time (median 400 ms, sigma 0.8) seeded by its call, the same in all
modes. Per question: the model names the kind of question (8 tokens), the searches run, one more search
depends on the kind, and the model writes the answer (24 tokens). `speculate` guesses the kind from history.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.flow.serving import serving
from benchmarks.flow.workloads import lognormal

from weighbridge.flow import Flow, Llm, guess, llm, step

MODES = ("sequential", "parallel", "speculate", "liar")
LIE = "(a lie)"


def pipeline(ask: Llm, mode: str, scale: float) -> Flow[[dict[str, Any]], str]:
    """The agent as a flow."""

    @step(effect="read")
    async def search(query: str) -> str:
        await asyncio.sleep(scale * lognormal(0.4, 0.8, "search", query))
        return f"facts about {query[:40]}"

    @step(effect="pure")
    async def kind_of(question: str) -> str:
        text = await ask.text(f"One word, what is compared? {question}", max_tokens=8)
        return "size" if len(text) % 8 else "other"

    lie = (lambda question: LIE) if mode == "liar" else None

    async def answer(task: dict[str, Any]) -> str:
        question = task["question"]
        found = [search(f"{task['id']}.{n} {question}") for n in range(task["branch"])]
        kind = await guess(kind_of(question), by=lie)
        more = search(f"{task['id']} {kind} {question}")
        facts = [*[await one for one in found], await more]
        return await ask.text(f"{'; '.join(facts)}. {question} Answer:", max_tokens=24)

    return Flow(answer, mode="speculate" if mode == "liar" else mode)  # type: ignore[arg-type]


async def run(url: str, tasks: list[dict[str, Any]], mode: str, scale: float) -> dict[str, Any]:
    flow = pipeline(llm(url, temperature=0.0), mode, scale)
    seconds, answers = [], []
    counts = {"won": 0, "lost": 0, "declined": 0}
    wasted = busy = 0.0
    for task in tasks:
        began = time.perf_counter()
        answers.append(await flow(task))
        seconds.append(time.perf_counter() - began)
        assert flow.last is not None
        counts = {name: counts[name] + one for name, one in flow.last.outcomes().items()}
        wasted, busy = wasted + flow.last.wasted_seconds, busy + flow.last.busy_seconds
    return {"seconds": seconds, "answers": answers, "bets": counts, "wasted": wasted / busy}


async def measure(url: str, tasks: list[dict[str, Any]], scale: float) -> None:
    await run(url, tasks[:1], "parallel", 0.01)
    results = {mode: await run(url, tasks, mode, scale) for mode in MODES}
    base = results["sequential"]
    print("| mode | mean s | p50 | p95 | vs sequential | wasted | won/lost/declined | same answers |")
    print("|---|---|---|---|---|---|---|---|")
    for mode, one in results.items():
        ordered, bets = sorted(one["seconds"]), one["bets"]
        mean = sum(ordered) / len(ordered)
        p95 = ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)]
        same = sum(a == b for a, b in zip(one["answers"], base["answers"], strict=True))
        print(
            f"| {mode} | {mean:.2f} | {median(ordered):.2f} | {p95:.2f} "
            f"| {sum(base['seconds']) / sum(ordered):.2f}x | {one['wasted']:.1%} "
            f"| {bets['won']}/{bets['lost']}/{bets['declined']} | {same}/{len(ordered)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--scale", type=float, default=1.0, help="Factor on the searches' latencies.")
    options = parser.parse_args()
    tasks = json.loads((options.data / "pipelines/parallelqa.json").read_text("utf-8"))[: options.questions]
    with serving() as url:
        asyncio.run(measure(url, tasks, options.scale))


if __name__ == "__main__":
    main()
