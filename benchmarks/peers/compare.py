"""Weighbridge beside its peers, one after the other, same model, same load; prints one table.

    python benchmarks/peers/compare.py [--only vllm,openvino,llama,weighbridge] [--scenarios n1,n16,n64]
        [--rounds 2] [--json FILE]

Closed loop over HTTP with `weighbridge bench serve` (OpenVINO GenAI has no server in its package and runs
in process, which spares it HTTP). Every peer has its own environment (see environments.py) and the
settings its documentation recommends for a small CPU (see servers.py): vLLM with its threads bound to all
cores and bfloat16 (it has no GGUF kernels for CPUs); OpenVINO with its defaults, which compute on the
file's 4-bit codes with 8-bit activations; llama-server with as many slots as the scenario has clients, Q4_1
as in the file. `weighbridge` is the default (the file's own codes), `weighbridge-none` computes in bfloat16.

Prompts are random token ids and every run has its own seed, so no prefix cache helps. Before the clock
starts each client sends one request. Run it on an otherwise idle machine. Rounds alternate the peers
(A B C A B C); the table shows medians over them.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import environments
from servers import HERE, server

from weighbridge.models.catalogue.store import resolve

RUN_TIMEOUT = 600.0
#: name -> clients, requests, prompt tokens, output tokens
SCENARIOS = {"n1": (1, 6, 100, 64), "n16": (16, 48, 400, 64), "n64": (64, 192, 100, 64)}
PEERS = (
    "weighbridge",
    "weighbridge-none",
    "weighbridge-int8",
    "weighbridge-int4",
    "vllm",
    "openvino",
    "llama",
)

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="weighbridge,weighbridge-none,vllm,openvino,llama", help=", ".join(PEERS)
    )
    parser.add_argument("--scenarios", default="n1,n16,n64")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    peers, scenarios = options.only.split(","), options.scenarios.split(",")
    if unknown := {*peers, *scenarios} - {*PEERS, *SCENARIOS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended on the way out
    results: list[Row] = []
    for number in range(options.rounds):
        for peer in peers:
            for row in measure(peer, scenarios, number):
                results.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                if options.json:
                    options.json.write_text(json.dumps({**machine(), "results": results}, indent=1))
    print(table(results))


def machine() -> dict[str, str]:
    """When and where; figures of different machines are not to be compared."""
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
        name = f"{len(names)} x {names[0].partition(':')[2].strip()}" if names else name
    return {"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "machine": name}


def measure(peer: str, scenarios: Sequence[str], number: int) -> Iterator[Row]:
    """One row for every scenario. A server lives for all of them, unless its settings depend on the scenario."""
    shared = peer not in ("openvino", "llama")
    for group in [scenarios] if shared else [[one] for one in scenarios]:
        left = list(group)
        try:
            for scenario, figures in runs(peer, group, number):
                left.remove(scenario)
                yield {"peer": peer, "scenario": scenario, "round": number, **figures}
        except (subprocess.SubprocessError, OSError, RuntimeError, ValueError) as error:
            for scenario in left:
                why = f"{type(error).__name__}: {error}"[:300]
                yield {"peer": peer, "scenario": scenario, "round": number, "error": why}


def runs(peer: str, scenarios: Sequence[str], number: int) -> Iterator[tuple[str, Row]]:
    if peer == "openvino":
        for scenario in scenarios:
            yield scenario, openvino(*SCENARIOS[scenario])
        return
    most = max(SCENARIOS[scenario][0] for scenario in scenarios)
    with server(peer, most) as url:
        for scenario in scenarios:
            seed = 1000 * number + list(SCENARIOS).index(scenario)
            try:
                yield scenario, bench(url, *SCENARIOS[scenario], seed=seed)
            except RuntimeError as error:
                yield scenario, {"error": str(error)}


def bench(url: str, clients: int, requests: int, prompt: int, output: int, *, seed: int) -> Row:
    command = [sys.executable, "-m", "weighbridge", "bench", "serve", "--json", "--url", url]
    command += ["--concurrency", str(clients), "--requests", str(requests), "--warm-up", str(max(2, clients))]
    command += ["--prompt-tokens", str(prompt), "--output-tokens", str(output), "--seed", str(seed)]
    command += ["--timeout", "300"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    figures = json.loads(done.stdout)
    return {
        "output_tokens_per_s": figures["output_tokens_per_s"],
        "ttft_p50_ms": figures["ttft_ms"]["p50"],
        "tpot_p50_ms": figures["tpot_ms"]["p50"],
        "errors": figures["errors"],
        "error_samples": figures["error_samples"],
        "short": figures["short"],
        "client_cpu_share": figures["client_cpu_share"],
    }


def openvino(clients: int, requests: int, prompt: int, output: int) -> Row:
    numbers = [str(value) for value in (clients, requests, prompt, output)]
    python = str(environments.python_of("openvino"))
    command = [python, str(HERE / "openvino_run.py"), str(resolve("default")), *numbers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    figures: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def table(results: Sequence[Row]) -> str:
    """Medians over the rounds, and how many times the peer's throughput Weighbridge's is."""
    lines = [
        "| scenario | server | out tok/s | TTFT p50 ms | TPOT p50 ms | Weighbridge is |",
        "|---|---|---|---|---|---|",
    ]
    for scenario in dict.fromkeys(row["scenario"] for row in results):
        ours = median(results, scenario, "weighbridge", "output_tokens_per_s")
        peers = dict.fromkeys(row["peer"] for row in results)
        lines.extend(line(results, scenario, peer, ours) for peer in peers)
    return "\n".join(lines)


def line(results: Sequence[Row], scenario: str, peer: str, ours: float | None) -> str:
    rows = of(results, scenario, peer)
    speed = median(results, scenario, peer, "output_tokens_per_s")
    if speed is None:
        why = next((row["error"] for row in rows if "error" in row), "not run")
        return f"| {scenario} | {peer} | failed: {why[:80]} | | | |"
    ratio = f"{ours / speed:.2f}x" if ours and speed else "–"
    cells = [show(median(results, scenario, peer, key)) for key in ("ttft_p50_ms", "tpot_p50_ms")]
    failed = sum(row.get("errors", 0) for row in rows)
    note = f" ({failed} requests failed)" if failed else ""
    return f"| {scenario} | {peer} | {speed:.0f}{note} | {cells[0]} | {cells[1]} | {ratio} |"


def of(results: Sequence[Row], scenario: str, peer: str) -> list[Row]:
    return [row for row in results if (row["peer"], row["scenario"]) == (peer, scenario)]


def median(results: Sequence[Row], scenario: str, peer: str, key: str) -> float | None:
    values = [row[key] for row in of(results, scenario, peer) if row.get(key) is not None]
    return statistics.median(values) if values else None


def show(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    main()
