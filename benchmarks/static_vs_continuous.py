"""The headline: continuous against static batching, same kernels, real output lengths.

    python benchmarks/static_vs_continuous.py --trace azure_2023_conv.csv [--requests 200] [--batch 16]
        [--kv-cache-memory 345MiB --max-model-len 2048] [--rounds 2]

Starts `weighbridge serve` once for each side, one after the other, and sends the first requests of the trace
as fast as they come (all at once: a backlog, so that every server is saturated until it runs dry). Lengths are
the trace's, scaled to the model: prompts by 0.1 (the trace's median of about 1,000 tokens would be a tenth of
this model's context), outputs by `--scale-output`. The static side is the classic one: a batch waits until it
is full or a timeout passes, prompts are padded to the longest, KV is reserved for the longest possible
sequence, and nobody leaves before the last one is done. Its attention does not run over padding, which favours it.
With `--kv-cache-memory` both sides get that much; without, memory holds every seat.
Rounds alternate the sides (A B C A B C); the table shows medians over them.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

START_TIMEOUT, STOP_TIMEOUT, RUN_TIMEOUT = 120.0, 40.0, 1800.0

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16, help="seats of the static side")
    parser.add_argument("--scale-prompt", type=float, default=0.1)
    parser.add_argument("--scale-output", type=float, default=1.0)
    parser.add_argument("--kv-cache-memory", help="for both sides; none: the server's default")
    parser.add_argument("--max-model-len", type=int, default=2048, help="for both sides")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended on the way out
    both = ["--max-model-len", str(options.max_model_len)]
    both += ["--kv-cache-memory", options.kv_cache_memory] if options.kv_cache_memory else []
    sides = {
        "static": ["--batching", "static", "--static-batch-size", str(options.batch)],
        "continuous, same seats": ["--max-sequences", str(options.batch)],
        "continuous": [],
    }
    results: dict[str, list[Figures]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, flags in sides.items():
            results[name].append(run(both + flags, options))
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))
    print(table(results))


def table(results: dict[str, list[Figures]]) -> str:
    def median(name: str, *keys: str) -> float:
        return statistics.median(of(figures, keys) for figures in results[name])

    base = median("static", "output_tokens_per_s")
    lines = ["| batching | out tok/s | against static | TTFT p50 ms | TTFT p99 ms | total p50 ms | errors |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, rounds in results.items():
        speed = median(name, "output_tokens_per_s")
        ttft = [median(name, "ttft_ms", share) for share in ("p50", "p99")]
        lines.append(
            f"| {name} | {speed:.0f} | {speed / base:.2f}x | {ttft[0]:.0f} | {ttft[1]:.0f} "
            f"| {median(name, 'e2e_ms', 'p50'):.0f} | {sum(figures['errors'] for figures in rounds)} |"
        )
    return "\n".join(lines)


def of(figures: Figures, keys: Sequence[str]) -> float:
    value: Any = figures
    for key in keys:
        value = value[key]
    return float(value)


def run(flags: list[str], options: argparse.Namespace) -> Figures:
    """One server with `flags`, the whole load, and the figures."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = [sys.executable, "-m", "weighbridge"]
    server = subprocess.Popen([*base, "serve", "--port", str(port), "--no-speculate", *flags])
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, server)
        load = ["--trace", str(options.trace), "--limit", str(options.requests), "--speed", "1000"]
        load += ["--scale-prompt", str(options.scale_prompt), "--scale-output", str(options.scale_output)]
        command = [*base, "bench", "serve", "--json", "--url", url, "--timeout", str(RUN_TIMEOUT / 2), *load]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_TIMEOUT)
        figures: Figures = json.loads(done.stdout)
        return figures
    finally:
        server.terminate()
        try:
            server.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
            return
        except OSError:
            if server.poll() is not None:
                sys.exit(f"the server ended with code {server.returncode}; its message is above")
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    main()
