"""The headline: continuous against static batching, same kernels, real output lengths.

    python benchmarks/static_vs_continuous.py --trace azure_2023_conv.csv [--requests 128] [--batch 16]

Starts `weighbridge serve` twice, one after the other, and sends the first requests of the trace as fast as
they come (all at once: a backlog). Lengths are the trace's, scaled to the model:
prompts by 0.1 (the trace's median of about 1,000 tokens would be a tenth of this model's context), outputs
by `--scale-output`. The static side is the classic one: a batch waits until it is full or a timeout
passes, prompts are padded to the longest, KV is reserved for the longest possible output, and nobody
leaves before the last one is done. Its attention does not run over padding, which favours it.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16, help="seats of both sides")
    parser.add_argument("--scale-prompt", type=float, default=0.1)
    parser.add_argument("--scale-output", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {
        "static": run(["--batching", "static", "--static-batch-size", str(options.batch)], options),
        "continuous, same seats": run(["--max-sequences", str(options.batch)], options),
        "continuous": run([], options),
    }
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    base = results["static"]["output_tokens_per_s"]
    print("| batching | out tok/s | against static | TTFT p50 ms | TTFT p99 ms | total p50 ms |")
    print("|---|---|---|---|---|---|")
    for name, figures in results.items():
        speed, ttft = figures["output_tokens_per_s"], figures["ttft_ms"]
        print(
            f"| {name} | {speed:.0f} | {speed / base:.2f}x | {ttft['p50']:.0f} | {ttft['p99']:.0f} "
            f"| {figures['e2e_ms']['p50']:.0f} |"
        )


def run(flags: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """One server with `flags`, the whole load, and the figures."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = [sys.executable, "-m", "weighbridge"]
    server = subprocess.Popen([*base, "serve", "--port", str(port), "--no-speculate", *flags])
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url)
        load = ["--trace", str(options.trace), "--limit", str(options.requests), "--speed", "1000"]
        load += ["--scale-prompt", str(options.scale_prompt), "--scale-output", str(options.scale_output)]
        command = [*base, "bench", "serve", "--json", "--url", url, "--timeout", "900", *load]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=1200)
        figures: dict[str, Any] = json.loads(done.stdout)
        return figures
    finally:
        server.terminate()
        server.wait(40)


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    main()
