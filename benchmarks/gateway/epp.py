"""Latency that the picker adds behind a real Envoy, beside Envoy's own round robin.

    python benchmarks/gateway/epp.py [--rate 25] [--seconds 30] [--chunks 32] [--gap 20000] [--answers MODE]
        [--json FILE]

Backends that cost nothing (backend.py), four of them, and the client (client.py) on one core; the picker and Envoy on
another. The same open loop goes to both listeners of one Envoy: `plain` is round robin, `picked` asks the picker for
each request and shows it every chunk of the answer (FULL_DUPLEX_STREAMED, as the proposal has it; `--answers STREAMED`
and `NONE` are the cheaper ways). Runs alternate, `--rounds` times. Every prompt is new (prompts.py).

- `added p50`: difference of the medians of the time to the first byte, less what the backend took itself.
- `added p99`: the 99th percentile through the picker less the *median* of round robin: an upper bound.
- `busy`: what share of a core each process used while the picked requests ran. The aim is stated for a rate at which no
  process is over 60 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from envoy import Ports, bootstrap, running
from overhead import (
    BACKENDS,
    HERE,
    SEEDS,
    client,
    config,
    cpu_seconds,
    free_port,
    program,
    quantile,
    wait_for,
)

AIM_P50_MS, AIM_P99_MS, MOST_BUSY = 3.0, 15.0, 0.6


@dataclass(frozen=True)
class Found:
    """Milliseconds outside the backend, over all rounds, and shares of a core."""

    rate: float
    requests: int
    plain_p50_ms: float
    plain_p99_ms: float
    picked_p50_ms: float
    picked_p99_ms: float
    added_p50_ms: float
    added_p99_ms: float
    picker_busy: float
    envoy_busy: float
    backend_busy: float
    picker_us_per_request: float

    @property
    def holds(self) -> bool:
        busy = max(self.picker_busy, self.envoy_busy, self.backend_busy)
        return self.added_p50_ms <= AIM_P50_MS and self.added_p99_ms <= AIM_P99_MS and busy <= MOST_BUSY


def measure(arguments: argparse.Namespace, ports: Ports, pids: dict[str, int]) -> Found:
    sent = (arguments.size, arguments.chunks, arguments.gap)
    rows: dict[str, list[float]] = {"plain": [], "picked": []}
    spent = dict.fromkeys(pids, 0.0)
    elapsed = 0.0
    for number in range(arguments.rounds + 1):
        for way, port in (("plain", ports.plain), ("picked", ports.picked)):
            before, began = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
            seconds = arguments.seconds if number else 2.0  # the first round warms
            result = client(1, port, "rate", "prose", arguments.rate, seconds, *sent, next(SEEDS))
            if not number:
                continue
            rows[way] += [row[1] for row in result]  # type: ignore[attr-defined]
            if way == "picked":
                elapsed += time.monotonic() - began
                for name, pid in pids.items():
                    spent[name] += cpu_seconds(pid) - before[name]
    plain, picked = rows["plain"], rows["picked"]
    middle = statistics.median(plain)
    return Found(
        arguments.rate,
        len(picked),
        round(middle, 3),
        round(quantile(plain, 0.99), 3),
        round(statistics.median(picked), 3),
        round(quantile(picked, 0.99), 3),
        round(statistics.median(picked) - middle, 3),
        round(quantile(picked, 0.99) - middle, 3),
        round(spent["picker"] / elapsed, 3),
        round(spent["envoy"] / elapsed, 3),
        round(spent["backend"] / elapsed, 3),
        round(1e6 * spent["picker"] / len(picked), 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=25.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=2048, help="bytes of a prompt")
    parser.add_argument("--chunks", type=int, default=32, help="of an answer")
    parser.add_argument("--gap", type=int, default=20_000, help="microseconds between two chunks")
    parser.add_argument(
        "--answers", default="FULL_DUPLEX_STREAMED", help="how Envoy shows answers to the picker"
    )
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    backends, (picker, http, admin, picked, plain) = free_port(), [free_port() for _ in range(5)]
    ports = Ports(admin, picked, plain)
    replicas = [backends + number for number in range(BACKENDS)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        directory = Path(folder)
        file = directory / "fleet.yaml"
        file.write_text(config(replicas, http))
        command = [sys.executable, str(HERE / "backend.py"), str(backends), str(BACKENDS)]
        backend = stack.enter_context(program(command, 1, directory / "backend.log"))
        wait_for(backends)
        command = [sys.executable, "-m", "weighbridge", "epp", "--config", str(file), "--port", str(picker)]
        epp = stack.enter_context(program(command, 0, directory / "picker.log"))
        wait_for(http)
        told = bootstrap(ports, [f"127.0.0.1:{one}" for one in replicas], picker, (), arguments.answers)
        envoy: subprocess.Popen[bytes] = stack.enter_context(running(told, directory, core=0))
        found = measure(arguments, ports, {"picker": epp.pid, "envoy": envoy.pid, "backend": backend.pid})
    for name, value in asdict(found).items():
        print(f"{name:24} {value}")
    aim = f"added p50 <= {AIM_P50_MS:g} ms, p99 <= {AIM_P99_MS:g} ms, nobody over {MOST_BUSY:.0%} of a core"
    print(f"{aim}: {'holds' if found.holds else 'does not hold'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(found), indent=1) + "\n")


if __name__ == "__main__":
    main()
