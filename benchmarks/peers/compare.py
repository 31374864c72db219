"""Weighbridge beside its peers, one after the other, same model, same load; prints one table.

    python benchmarks/peers/compare.py [--only vllm,openvino,llama,weighbridge] [--scenarios n1,n16,n64]
        [--rounds 2] [--json FILE]

Closed loop over HTTP with `weighbridge bench serve` (OpenVINO GenAI has no server in its package and runs
in process, which spares it HTTP). Every peer has its own environment (see environments.py) and the
settings its documentation recommends for a small CPU: vLLM with its threads bound to both cores and
bfloat16 (it has no GGUF kernels for CPUs); OpenVINO with its defaults, which compute on the file's 4-bit codes
with 8-bit activations; llama-server with as many slots as the scenario has clients, Q4_1 as in the file.
`weighbridge` is the default (the file's own codes), `weighbridge-none` computes in bfloat16.
Run it on an otherwise idle machine. Rounds alternate the peers (A B C A B C); the table shows medians.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import environments

from weighbridge.models.store import resolve

HERE = Path(__file__).parent
START_TIMEOUT, RUN_TIMEOUT = 240.0, 600.0

#: name -> clients, requests, prompt tokens, output tokens
SCENARIOS = {"n1": (1, 6, 100, 64), "n16": (16, 48, 400, 64), "n64": (64, 192, 100, 64)}
PEERS = ("weighbridge", "weighbridge-none", "weighbridge-int8", "vllm", "openvino", "llama")
#: Random prompts make a small model repeat itself, which our prompt lookup turns into speed that real text
#: would not see: it is off here, as the peers have nothing of the kind switched on.
OURS = ["--no-speculate"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="weighbridge,weighbridge-none,vllm,openvino,llama", help=f"of {', '.join(PEERS)}"
    )
    parser.add_argument("--scenarios", default="n1,n16,n64")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        for scenario in options.scenarios.split(","):
            for peer in options.only.split(","):
                results.append({"peer": peer, "scenario": scenario, **attempt(peer, scenario)})
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    print(table(results))


def attempt(peer: str, scenario: str) -> dict[str, Any]:
    """Figures of one run, or what went wrong with it."""
    try:
        if peer == "openvino":
            return openvino(*SCENARIOS[scenario])
        clients = SCENARIOS[scenario][0]
        with server(peer, clients) as url:
            return bench(url, *SCENARIOS[scenario])
    except (subprocess.SubprocessError, OSError, RuntimeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def bench(url: str, clients: int, requests: int, prompt: int, output: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "weighbridge", "bench", "serve", "--json", "--url", url]
    command += ["--concurrency", str(clients), "--requests", str(requests), "--warm-up", "2"]
    command += ["--prompt-tokens", str(prompt), "--output-tokens", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    figures = json.loads(done.stdout)
    return {
        "output_tokens_per_s": figures["output_tokens_per_s"],
        "ttft_p50_ms": figures["ttft_ms"]["p50"],
        "tpot_p50_ms": figures["tpot_ms"]["p50"],
        "errors": figures["errors"],
    }


def openvino(clients: int, requests: int, prompt: int, output: int) -> dict[str, Any]:
    numbers = [str(value) for value in (clients, requests, prompt, output)]
    command = [
        str(environments.python_of("openvino")),
        str(HERE / "openvino_run.py"),
        str(resolve("default")),
        *numbers,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


@contextmanager
def server(peer: str, clients: int) -> Iterator[str]:
    """Start a peer's server, wait until it answers, and end it by its own process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, settings = command_of(peer, port, clients)
    log = (environments.HOME / f"{peer}.log").open("w")
    process = subprocess.Popen(
        command, env={**os.environ, **settings}, stdout=log, stderr=log, start_new_session=True
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        yield url
    finally:
        end(process)
        log.close()
        time.sleep(1)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server and the workers it started: they share a process group that began with it."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def command_of(peer: str, port: int, clients: int) -> tuple[list[str], dict[str, str]]:
    if peer.startswith("weighbridge"):
        scheme = peer.partition("-")[2] or "auto"
        return [
            sys.executable,
            "-m",
            "weighbridge",
            "serve",
            "--port",
            str(port),
            "--quantize",
            scheme,
            *OURS,
        ], {}
    python = str(environments.python_of(peer))
    if peer == "llama":
        return [python, str(HERE / "llama_server.py"), str(resolve("default")), str(port), str(clients)], {}
    if peer != "vllm":
        raise ValueError(f"unknown peer {peer!r}; there are {', '.join(PEERS)}")
    directory = environments.HOME / "smollm2-hf"
    if not directory.exists():
        subprocess.run(
            [sys.executable, str(HERE / "export_hf.py"), str(resolve("default")), str(directory)], check=True
        )
    command = [
        str(Path(python).parent / "vllm"),
        "serve",
        str(directory),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--dtype", "bfloat16", "--max-model-len", "2048", "--gpu-memory-utilization", "0.5"]
    command += ["--no-enable-prefix-caching"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": "0-1", "HF_HUB_OFFLINE": "1"}
    return command, settings


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}; see its log")
        try:
            with urllib.request.urlopen(f"{url}/v1/models", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"the server did not answer within {START_TIMEOUT:.0f} s")


def table(results: list[dict[str, Any]]) -> str:
    """Medians over the rounds, and each peer's throughput as a share of Weighbridge's."""
    lines = [
        "| scenario | server | out tok/s | TTFT p50 ms | TPOT p50 ms | Weighbridge is |",
        "|---|---|---|---|---|---|",
    ]
    for scenario in dict.fromkeys(row["scenario"] for row in results):
        ours = median(results, scenario, "weighbridge", "output_tokens_per_s")
        for peer in dict.fromkeys(row["peer"] for row in results):
            speed = median(results, scenario, peer, "output_tokens_per_s")
            if speed is None:
                why = next(
                    r.get("error", "") for r in results if (r["peer"], r["scenario"]) == (peer, scenario)
                )
                lines.append(f"| {scenario} | {peer} | failed: {why[:80]} | | | |")
                continue
            ratio = f"{ours / speed:.2f}x" if ours else "–"
            cells = [show(median(results, scenario, peer, key)) for key in ("ttft_p50_ms", "tpot_p50_ms")]
            lines.append(f"| {scenario} | {peer} | {speed:.0f} | {cells[0]} | {cells[1]} | {ratio} |")
    return "\n".join(lines)


def median(results: list[dict[str, Any]], scenario: str, peer: str, key: str) -> float | None:
    values = [
        r[key] for r in results if (r["peer"], r["scenario"]) == (peer, scenario) and r.get(key) is not None
    ]
    return statistics.median(values) if values else None


def show(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    main()
