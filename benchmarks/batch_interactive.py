"""What a batch costs those who wait for answers: the same chats beside a batch and without one, by turns.

    python benchmarks/batch_interactive.py --rounds 6 --chats 100

One server over the default model, or over `--model`. Chats come one every `--every` seconds, streamed;
of each the time to its first token and to its end is taken. A round has four turns: alone, twice beside a batch that
would take the whole machine, alone. What drifts on the machine meets both alike, and the second turns alone beside the
first ones say what chance makes of equal ones. The aim: the p99 of all chats beside the batch is at most 1.1 times that
of all alone. The interval is that of nine in ten re-drawings of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

CHAT = "/v1/chat/completions"
#: Seconds that a batch may take to begin, and to be over once it is cancelled.
PATIENCE = 60.0
REDRAWN = 2_000


@dataclass
class Round:
    """Seconds to the first token and to the end, of each chat of its four turns."""

    alone: list[list[tuple[float, float]]] = field(default_factory=list)
    beside: list[list[tuple[float, float]]] = field(default_factory=list)
    lines: int = 0  # of the batch that were answered meanwhile
    load: float = 0.0  # of the machine, when it ended


def call(url: str, path: str, body: Any = None, method: str | None = None) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    asked = urllib.request.Request(url + path, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)


def upload(url: str, lines: list[dict[str, Any]]) -> str:
    mark = "weighbridge-benchmark"
    content = "".join(json.dumps(line) + "\n" for line in lines)
    body = (
        f'--{mark}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n{content}'
        f"\r\n--{mark}--\r\n"
    )
    asked = urllib.request.Request(
        f"{url}/v1/files", body.encode(), {"content-type": f"multipart/form-data; boundary={mark}"}
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return str(json.load(answer)["id"])


def batch_of(url: str, number: int) -> str:
    """Begin a batch that does not end by itself meanwhile."""
    body = {"max_tokens": 128, "ignore_eos": True, "temperature": 0}
    lines = [
        {
            "custom_id": f"{number}-{n}",
            "url": CHAT,
            "body": body
            | {"messages": [{"role": "user", "content": f"Tell a long story of {n}, please. " * 8}]},
        }
        for n in range(2_000)
    ]
    asked = {"input_file_id": upload(url, lines), "endpoint": CHAT, "completion_window": "24h"}
    return str(call(url, "/v1/batches", asked)["id"])


def waited_for(what: str, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {PATIENCE:.0f} s")
        time.sleep(0.1)


@contextmanager
def batch(url: str, number: int) -> Iterator[str]:
    """A batch that is under way, until the block ends and none of its lines runs any more."""
    name = batch_of(url, number)
    waited_for("no line of the batch was answered", lambda: answered(url, name) > 0)
    yield name
    if call(url, f"/v1/batches/{name}")["status"] != "in_progress":
        raise SystemExit("the batch was over before the chats were; give it more lines")
    call(url, f"/v1/batches/{name}/cancel", method="POST")
    waited_for(
        "the batch was not cancelled", lambda: call(url, f"/v1/batches/{name}")["status"] == "cancelled"
    )
    waited_for("the machine did not come to rest", lambda: not call(url, "/v1/load")["running_requests"])


def answered(url: str, name: str) -> int:
    return int(call(url, f"/v1/batches/{name}")["request_counts"]["completed"])


def chat(url: str, number: int, tokens: int) -> tuple[float, float]:
    """Seconds to the first token and to the end."""
    words = {"messages": [{"role": "user", "content": f"What does {number} weigh?"}], "max_tokens": tokens}
    data = json.dumps(words | {"stream": True, "ignore_eos": True, "temperature": 0}).encode()
    asked = urllib.request.Request(url + CHAT, data, {"content-type": "application/json"})
    began, first = time.perf_counter(), 0.0
    with urllib.request.urlopen(asked, timeout=120) as answer:
        for line in answer:
            if not first and b'"content":"' in line and b'"content":""' not in line:
                first = time.perf_counter() - began
    return first, time.perf_counter() - began


def turn(url: str, args: argparse.Namespace, number: int) -> list[tuple[float, float]]:
    """Chats that nobody has asked before, all of them as long."""
    with ThreadPoolExecutor(16) as pool:
        asked, began = [], time.monotonic()
        for n in range(args.chats):
            asked.append(pool.submit(chat, url, 100_000 + number * 1000 + n, args.tokens))
            time.sleep(max(0.0, began + (n + 1) * args.every - time.monotonic()))
        return [one.result() for one in asked]


def round_of(url: str, args: argparse.Namespace, number: int) -> Round:
    found = Round()
    found.alone.append(turn(url, args, 4 * number))
    with batch(url, number) as name:
        before = answered(url, name)
        found.beside += [turn(url, args, 4 * number + 1), turn(url, args, 4 * number + 2)]
        found.lines = answered(url, name) - before
    found.alone.append(turn(url, args, 4 * number + 3))
    found.load = os.getloadavg()[0]
    return found


def p99(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


#: What is told of the chats: the place of its seconds, and what is made of them.
FIGURES = {
    f"{what}_{name}": (place, of)
    for place, what in enumerate(("first", "whole"))
    for name, of in (("p50", statistics.median), ("p99", p99))
}


def figures(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """Of all rounds together: milliseconds alone and beside, their ratio, and that of the second turns alone to the
    first ones."""
    told = {}
    for name, (place, of) in FIGURES.items():
        first, last = (of([chat[place] for one in rounds for chat in one.alone[at]]) for at in (0, 1))
        alone = of([chat[place] for one in rounds for chats in one.alone for chat in chats])
        beside = of([chat[place] for one in rounds for chats in one.beside for chat in chats])
        told[name] = {
            "alone_ms": round(1e3 * alone, 1),
            "beside_ms": round(1e3 * beside, 1),
            "ratio": round(beside / alone, 3),
            "alone_twice": round(last / first, 3),
        }
    return told


def intervals(rounds: Sequence[Round]) -> dict[str, list[float]]:
    """Between which two ratios nine of ten lie, when the rounds are drawn again with repetition."""
    rng = random.Random(1)
    drawn = [figures(rng.choices(rounds, k=len(rounds))) for _ in range(REDRAWN)]
    found = {}
    for name in FIGURES:
        ratios = sorted(one[name]["ratio"] for one in drawn)
        found[name] = [ratios[int(0.05 * REDRAWN)], ratios[int(0.95 * REDRAWN)]]
    return found


def measured(url: str, args: argparse.Namespace) -> None:
    turn(url, args, 800)  # warm
    rounds: list[Round] = []
    for number in range(args.rounds):
        rounds.append(round_of(url, args, number))
        last = rounds[-1]
        ratios = {name: one["ratio"] for name, one in figures([last]).items()}
        print(json.dumps({"lines": last.lines, "load": round(last.load, 1), **ratios}), flush=True)
    told = figures(rounds)
    for name, interval in intervals(rounds).items():
        print(json.dumps({"figure": name, **told[name], "nine_in_ten": interval}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--port", type=int, default=18931)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--chats", type=int, default=100, help="of a turn")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two chats")
    parser.add_argument("--tokens", type=int, default=16)
    args = parser.parse_args()
    command = [sys.executable, "-m", "weighbridge", "serve", args.model, "--port", str(args.port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{args.port}"
    try:
        for _ in range(1500):
            try:
                call(url, "/health")
                break
            except OSError:
                time.sleep(0.2)
        measured(url, args)
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    threading.stack_size(1 << 20)
    main()
