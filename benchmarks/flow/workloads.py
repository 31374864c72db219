"""Recorded agents as workloads for `weighbridge flow replay`.

    python -m benchmarks.flow.workloads --data ../shared/data --out /tmp/workloads

writes chess.jsonl, taubench.jsonl and gaia_like.jsonl there. Times that a trace does not hold are lognormal,
seeded by the call, so that they are the same in every mode:

- chess (Speculative Actions, GPT-5): thinking times, moves and predicted moves as recorded. A move that was
  played from a right guess has no time of its own in the trace; it gets that of the guess.
- tau-bench airline (GPT-4o): each decision of the agent is a model call of 2 s (median), each tool one of
  0.8 s. The next call is predicted from the other tasks only (the task's own trials are held out): the tool
  by an order-3 table, its arguments from values of the same shape in the text so far.
- gaia_like: tools take 10 % of the time and 12 % of predictions hit, the ratio of published GAIA runs.

Model calls are priced by their tokens where the trace has them, else as 2,000 in and 80 out at GPT-4o's
$2.50 and $10 per million; a GPT-5 token costs $1.25 and $10 per million.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

from weighbridge.flow.replay.workload import drawn

WRITES = (
    "book_reservation",
    "cancel_reservation",
    "update_reservation_baggages",
    "update_reservation_flights",
    "update_reservation_passengers",
    "send_certificate",
)
GPT4O_CALL = (2000 * 2.5 + 80 * 10.0) / 1e6


def lognormal(median: float, sigma: float, *key: Any) -> float:
    """A duration that depends on nothing but `key`."""
    return median * 2.718281828459045 ** (sigma * NormalDist().inv_cdf(max(drawn(*key), 1e-9)))


def chess(data: Path) -> Iterator[dict[str, Any]]:
    """One task per game: moves one after the other, the next one guessed."""
    games: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in (data / "pipelines/chess_plies.jsonl").read_text("utf-8").splitlines():
        ply = json.loads(line)
        games[ply["game"]].append(ply)
    for game, plies in games.items():
        steps = []
        for number, ply in enumerate(plies):
            steps.append(
                {
                    "id": f"ply{number}",
                    "after": [f"ply{number - 1}"] if number else [],
                    "seconds": round(_thinking(plies, number), 3),
                    "usd": round(_price(ply), 6),
                    "output": ply["current_move"],
                    "predictions": list(dict.fromkeys(ply["conf_guesses"]))[:3],
                    "prediction_seconds": round((ply["time_taken_prediction"] or [10.0])[0], 3),
                    "name": "move",
                }
            )
        yield {"id": game, "steps": steps}


def _thinking(plies: list[dict[str, Any]], number: int) -> float:
    ply = plies[number]
    if ply["time_taken_current_agent"]:
        return float(ply["time_taken_current_agent"])
    before = plies[number - 1] if number else {"current_pred": []}
    if before.get("current_move") in before["current_pred"]:
        return float(before["time_taken_other_agent"][before["current_pred"].index(before["current_move"])])
    return 60.0


def _price(ply: dict[str, Any]) -> float:
    tokens_in, tokens_out = ply["input_tokens_current_agent"], ply["output_tokens_current_agent"]
    if not tokens_in:
        tokens_in, tokens_out = 420, 8000
    return float(tokens_in * 1.25 + tokens_out * 10.0) / 1e6


def taubench(data: Path) -> Iterator[dict[str, Any]]:
    """One task per run: the agent decides, a tool answers, the agent decides again."""
    runs = [
        json.loads(line)
        for line in (data / "pipelines/taubench_airline.jsonl").read_text("utf-8").splitlines()
    ]
    for run in runs:
        yield _run(run, NextCall([other for other in runs if other["task_id"] != run["task_id"]]))


def _run(run: dict[str, Any], predictor: NextCall) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    text, recent, last = "", [], None
    results = iter([event for event in run["events"] if event[0] == "result"])
    for number, event in enumerate(run["events"]):
        kind, name, body = event[0], event[1], event[2]
        if kind in ("call", "say"):
            action = [name, body] if kind == "call" else ["say", None]
            key = (run["task_id"], run["trial"], number)
            guessed = predictor.guess(recent, text)
            think = {
                "id": f"think{number}",
                "after": [last] if last else [],
                "seconds": round(lognormal(2.0, 0.5, "think", *key), 3),
                "usd": GPT4O_CALL,
                "output": action,
                "name": "think",
            }
            if guessed is not None:
                think["prediction"] = guessed
            steps.append(think)
            last = think["id"]
            recent = [*recent, action[0]][-3:]
            if kind == "call":
                steps.append(
                    {
                        "id": f"tool{number}",
                        "after": [last],
                        "seconds": round(lognormal(0.8, 0.8, "tool", name, json.dumps(body)), 3),
                        "effect": "write" if name in WRITES else "read",
                        "output": next(results)[2],
                        "name": name,
                    }
                )
                last = steps[-1]["id"]
        if kind != "call":
            text += "\n" + (body if isinstance(body, str) else json.dumps(body))
    return {"id": f"{run['task_id']}-{run['trial']}", "steps": steps}


class NextCall:
    """An order-3 table of tools, and arguments by their shape."""

    def __init__(self, runs: list[dict[str, Any]]) -> None:
        self._next: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        self._shapes: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for run in runs:
            recent: list[str] = []
            for event in run["events"]:
                if event[0] not in ("call", "say"):
                    continue
                name = event[1] if event[0] == "call" else "say"
                for length in range(len(recent) + 1):
                    self._next[tuple(recent[len(recent) - length :])][name] += 1
                recent = [*recent, name][-3:]
                for key, value in (event[2] if event[0] == "call" else {}).items():
                    self._shapes[name, key][_shape(value)] += 1
        self._parameters: dict[str, list[str]] = defaultdict(list)
        for name, key in self._shapes:
            self._parameters[name].append(key)

    def guess(self, recent: list[str], text: str) -> list[Any] | None:
        """[tool, arguments], ["say", None], or None without a guess."""
        for length in range(len(recent), -1, -1):
            known = self._next.get(tuple(recent[len(recent) - length :]))
            if known and sum(known.values()) >= 5:
                name = known.most_common(1)[0][0]
                return ["say", None] if name == "say" else self._with_arguments(name, text)
        return None

    def _with_arguments(self, name: str, text: str) -> list[Any] | None:
        arguments: dict[str, Any] = {}
        for key in self._parameters[name]:
            shape, count = self._shapes[name, key].most_common(1)[0]
            if not shape or count < 0.5 * sum(self._shapes[name, key].values()):
                return None
            found = re.findall(rf"(?<![A-Za-z0-9_-]){shape}(?![A-Za-z0-9_-])", text)
            if not found:
                return None
            arguments[key] = found[-1]
        return [name, arguments]


def _shape(value: Any) -> str:
    """A pattern of values like this one; empty for what is not a short text."""
    if not isinstance(value, str) or len(value) > 40:
        return ""
    if re.fullmatch(r"[A-Z0-9]{6}", value):
        return "[A-Z0-9]{6}"
    shape = re.sub(r"[0-9]+", "0", re.sub(r"[a-z]+", "a", re.sub(r"[A-Z]+", "A", re.escape(value))))
    return shape.replace("0", "[0-9]+").replace("a", "[a-z]+").replace("A", "[A-Z]+")


def gaia_like(tasks: int = 60, rounds: int = 8) -> Iterator[dict[str, Any]]:
    """Tools take 10 % of the time; 12 % of the predicted calls are right."""
    for task in range(tasks):
        steps: list[dict[str, Any]] = []
        for number in range(rounds):
            after = [steps[-1]["id"]] if steps else []
            think, tool = f"think{number}", f"tool{number}"
            seconds = lognormal(15.3, 0.4, "think", task, number)
            steps.append(
                {
                    "id": think,
                    "after": after,
                    "seconds": round(seconds, 3),
                    "usd": 0.02,
                    "predictable": 0.12,
                    "output": f"call {number}",
                    "name": "think",
                }
            )
            steps.append(
                {
                    "id": tool,
                    "after": [think],
                    "seconds": round(lognormal(1.7, 0.4, "tool", task, number), 3),
                    "effect": "read",
                    "output": f"result {number}",
                    "name": "tool",
                }
            )
        steps.append({"id": "answer", "after": [tool], "seconds": 15.0, "usd": 0.02, "output": "answer"})
        yield {"id": str(task), "steps": steps}


def write(data: Path, out: Path) -> list[Path]:
    """All workloads as files."""
    out.mkdir(parents=True, exist_ok=True)
    made = []
    sources = {"chess": chess(data), "taubench": taubench(data), "gaia_like": gaia_like()}
    for name, tasks in sources.items():
        path = out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(task) + "\n" for task in tasks), "utf-8")
        made.append(path)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("workloads"))
    options = parser.parse_args()
    for path in write(options.data, options.out):
        print(path)
