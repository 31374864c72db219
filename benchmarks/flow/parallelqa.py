"""ParallelQA questions: searches of lognormal latency, and the local model to answer, in every mode.

    python -m benchmarks.flow.parallelqa --data ../shared/data [--questions 113] [--scale 0.5]

The data has the questions and how many independent lookups each needs (`branch`), not the lookups: `search`
is synthetic, a table that takes lognormal time (median 400 ms, sigma 0.8) seeded by its call, the same in all
modes. Per question: the model names the kind of question (8 tokens), the searches run, one more search
depends on the kind, and the model writes the answer (24 tokens). `speculate` guesses the kind from history.
Each question is put in every mode, the modes in turn first, before the next: what disturbs the machine, and what
the server's prefix cache has seen, is then the same for all. The 113 questions take about 7 minutes at half scale.
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


class Tally:
    """One mode's flow and what it brought."""

    def __init__(self, ask: Llm, mode: str, scale: float) -> None:
        self.flow = pipeline(ask, mode, scale)
        self.seconds: list[float] = []
        self.answers: list[str] = []
        self.bets = {"won": 0, "lost": 0, "declined": 0}
        self.wasted = self.busy = 0.0

    async def run(self, task: dict[str, Any]) -> None:
        began = time.perf_counter()
        self.answers.append(await self.flow(task))
        self.seconds.append(time.perf_counter() - began)
        last = self.flow.last
        assert last is not None
        self.bets = {name: self.bets[name] + one for name, one in last.outcomes().items()}
        self.wasted, self.busy = self.wasted + last.wasted_seconds, self.busy + last.busy_seconds


async def measure(url: str, tasks: list[dict[str, Any]], scale: float, seconds: float) -> None:
    ask = llm(url, temperature=0.0)
    await Tally(ask, "parallel", 0.01).run(tasks[0])  # the server's first answers are slow
    tallies = {mode: Tally(ask, mode, scale) for mode in MODES}
    ends = time.perf_counter() + seconds
    for number, task in enumerate(tasks):
        if time.perf_counter() > ends:
            print(f"The time is over after {number} of {len(tasks)} questions.")
            break
        turn = number % len(MODES)
        for mode in MODES[turn:] + MODES[:turn]:
            await tallies[mode].run(task)
    base = tallies["sequential"]
    print("| mode | mean s | p50 | p95 | vs sequential | wasted | won/lost/declined | same answers |")
    print("|---|---|---|---|---|---|---|---|")
    for mode, one in tallies.items():
        ordered, bets = sorted(one.seconds), one.bets
        mean = sum(ordered) / len(ordered)
        p95 = ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)]
        same = sum(a == b for a, b in zip(one.answers, base.answers, strict=True))
        print(
            f"| {mode} | {mean:.2f} | {median(ordered):.2f} | {p95:.2f} "
            f"| {sum(base.seconds) / sum(ordered):.2f}x | {one.wasted / one.busy:.1%} "
            f"| {bets['won']}/{bets['lost']}/{bets['declined']} | {same}/{len(ordered)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--questions", type=int, default=113)
    parser.add_argument("--scale", type=float, default=0.5, help="Factor on the searches' latencies.")
    parser.add_argument("--seconds", type=float, default=1200.0, help="Begin no question after this time.")
    options = parser.parse_args()
    tasks = json.loads((options.data / "pipelines/parallelqa.json").read_text("utf-8"))[: options.questions]
    with serving() as url:
        asyncio.run(measure(url, tasks, options.scale, options.seconds))


if __name__ == "__main__":
    main()
