"""What a batch costs those who wait for answers: the same chats beside a batch and without one, by turns.

    python benchmarks/batch_interactive.py --pairs 4 --chats 40

One server over the default model, or over `--model`. Chats come one every `--every` seconds, streamed;
of each the time to its first token and to its end is taken. In every second turn a batch is under way that would
take the whole machine. The aim: p99 with it is at most 1.1 times that without.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

CHAT = "/v1/chat/completions"


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
    asked = {"input_file_id": upload(url, lines), "endpoint": CHAT, "completion_window": "1h"}
    return str(call(url, "/v1/batches", asked)["id"])


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
    with ThreadPoolExecutor(16) as pool:
        asked = []
        for n in range(args.chats):
            asked.append(pool.submit(chat, url, number * 1000 + n, args.tokens))
            time.sleep(args.every)
        return [one.result() for one in asked]


def p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


def measured(url: str, args: argparse.Namespace) -> dict[str, Any]:
    turn(url, args, 999)  # warm
    pairs = []
    for pair in range(args.pairs):
        alone = turn(url, args, 2 * pair)
        name = batch_of(url, pair)
        time.sleep(2.0)  # it is under way
        before = call(url, f"/v1/batches/{name}")["request_counts"]["completed"]
        beside = turn(url, args, 2 * pair + 1)
        after = call(url, f"/v1/batches/{name}")["request_counts"]["completed"]
        call(url, f"/v1/batches/{name}/cancel", method="POST")
        while call(url, f"/v1/batches/{name}")["status"] != "cancelled":
            time.sleep(0.1)
        row: dict[str, Any] = {"lines": after - before}
        for place, what in enumerate(("first", "whole")):
            for name_, of in (("p50", statistics.median), ("p99", p99)):
                a, b = (of([one[place] for one in each]) for each in (alone, beside))
                row[f"{what}_{name_}"] = [round(1e3 * a, 1), round(1e3 * b, 1), round(b / a, 3)]
        pairs.append(row)
        print(json.dumps(row), flush=True)
    ratios = {key: statistics.median(row[key][2] for row in pairs) for key in pairs[0] if key != "lines"}
    return {"pairs": pairs, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--port", type=int, default=18931)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--chats", type=int, default=40)
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
        print(json.dumps(measured(url, args)["ratios"]))
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    threading.stack_size(1 << 20)
    main()
