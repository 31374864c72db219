"""Latency that a gateway adds and the SSE chunks it passes per second, Weighbridge beside vllm-router.

    python benchmarks/gateway/overhead.py [--vllm-router PATH] [--tokenizer PATH] [--seconds 5] [--only CASE]
        [--json FILE]

Backends that cost nothing (backend.py), four of them, on one core together with the client (client.py); the
gateway alone on another. Every case runs direct, through Weighbridge, and through `vllm-router` where its
program is given (`pip install vllm-router==0.1.17` into an environment of its own). Every prompt is new: lines of this
repository's documentation in random order with one word in forty that was never seen, or random letters; see
prompts.py.
With `--tokenizer` a second Weighbridge, "exact", tokenises each of them; the first estimates from bytes, as vllm-router
does.

- `added p50`: difference of the medians of the time to the first byte, less what the backend took itself.
- `p99 within`: the 99th percentile through the gateway less the *median* of the direct call: an upper bound of
  what the gateway adds at its 99th percentile (a difference of two 99th percentiles measures nothing).
- `µs/request`: CPU time of the gateway's process.
- `machine`: how evenly the gateway's core runs by itself (evenness.py): no tail below its longest pause says anything.
- chunks/s: as many as come through with 64 streams flooding, and CPU time of the gateway per chunk.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
BACKENDS = 4
#: Each run of the client has prompts of its own.
SEEDS = itertools.count(time.time_ns() % 2**32)


@dataclass(frozen=True)
class Case:
    """Requests per second, and what each is: bytes of prompt, SSE chunks of answer, microseconds between those."""

    name: str
    rate: float
    size: int
    chunks: int = 8
    gap: int = 0
    prompts: str = "prose"


CASES = (
    Case("200 B, 20 req/s (1 stream)", 20, 200),
    Case("16 KiB, 20 req/s (1 stream)", 20, 16384),
    Case("200 B, 200 req/s", 200, 200),
    Case("16 KiB, 200 req/s", 200, 16384),
    Case("16 KiB of Markdown, 200 req/s", 200, 16384, prompts="markdown"),
    Case("16 KiB of letters, 200 req/s", 200, 16384, prompts="letters"),
    Case("200 B, 200 req/s, 64 streams open", 200, 200, 16, 20000),
    Case("16 KiB, 200 req/s, 64 streams open", 200, 16384, 16, 20000),
)


@dataclass(frozen=True)
class Row:
    case: str
    through: str
    p50_ms: float
    p99_ms: float
    added_p50_ms: float
    added_p99_ms: float
    cpu_us: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def program(command: list[str], core: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(["taskset", "-c", str(core), *command], stdout=out, stderr=out)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


def wait_for(port: int, path: str = "/health", seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"nothing answers on port {port}")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children so far."""
    total = 0.0
    for stat in (Path(f"/proc/{pid}/stat"), *(Path(f"/proc/{child}/stat") for child in children(pid))):
        fields = stat.read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def client(core: int, port: int, *arguments: object) -> object:
    command = ["taskset", "-c", str(core), sys.executable, str(HERE / "client.py"), "127.0.0.1", str(port)]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(f"the client failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(int(q * len(values)), len(values) - 1)]


def measure(case: Case, ways: dict[str, tuple[int, int]], seconds: float) -> list[Row]:
    """One case through every way in; `ways`: name -> (port, pid of the gateway or 0)."""
    sent = (case.size, case.chunks, case.gap)
    rows = []
    median = 0.0
    for way, (port, pid) in ways.items():
        client(1, port, "rate", case.prompts, case.rate, 2, *sent, next(SEEDS))  # warm
        before = cpu_seconds(pid) if pid else 0.0
        result = client(1, port, "rate", case.prompts, case.rate, seconds, *sent, next(SEEDS))
        spent = (cpu_seconds(pid) if pid else 0.0) - before
        outside = [row[1] for row in result]  # type: ignore[attr-defined]
        if not pid:
            median = statistics.median(outside)
        rows.append(
            Row(
                case.name,
                way,
                round(statistics.median(outside), 3),
                round(quantile(outside, 0.99), 3),
                round(statistics.median(outside) - median, 3),
                round(quantile(outside, 0.99) - median, 3),
                round(1e6 * spent / len(outside), 1),
            )
        )
        print(
            f"{case.name:34} {way:12} "
            + "  ".join(f"{k} {v}" for k, v in list(asdict(rows[-1]).items())[2:]),
            flush=True,
        )
    return rows


def evenness(seconds: float) -> object:
    command = [sys.executable, str(HERE / "evenness.py"), "0", str(seconds)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=300).stdout)
    print(f"{'machine':34} {'-':12} {found}", flush=True)
    return found


def floods(ways: dict[str, tuple[int, int]], seconds: float) -> list[dict[str, object]]:
    found = []
    for way, (port, pid) in ways.items():
        before = cpu_seconds(pid) if pid else 0.0
        result = client(
            1, port, "flood", "prose", 64, seconds, 200, 200, 5000, next(SEEDS)
        )  # a chunk each 5 ms
        spent = (cpu_seconds(pid) if pid else 0.0) - before
        chunks = result["chunks"]  # type: ignore[call-overload]
        rate = chunks / result["seconds"]  # type: ignore[call-overload]
        found.append(
            {"through": way, "chunks_per_s": round(rate), "cpu_us_per_chunk": round(1e6 * spent / chunks, 1)}
        )
        print(f"{'64 streams, 200 chunks/s each':34} {way:12} {found[-1]}", flush=True)
    return found


def config(ports: list[int], port: int, extra: str = "") -> str:
    entries = "".join(f"      - {{url: 'http://127.0.0.1:{one}', dialect: weighbridge}}\n" for one in ports)
    return f"listen: 127.0.0.1:{port}\nmodels:\n  m:\n{extra}    replicas:\n{entries}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vllm-router", type=Path, help="the vllm-router program")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--tokenizer", type=Path, help="weigh exactly too: a model directory or GGUF file")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--only", help="cases whose name has this in it, and no flood of chunks")
    arguments = parser.parse_args()
    cases = [case for case in CASES if (arguments.only or "") in case.name]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = [free_port() for _ in range(BACKENDS)]
        for one in ports:
            command = [sys.executable, str(HERE / "backend.py"), str(one)]
            stack.enter_context(program(command, 1, folder / f"backend-{one}.log"))
            wait_for(one)
        ways = {"direct": (ports[0], 0)}
        ours = {"weighbridge": ""}
        if arguments.tokenizer:
            ours["exact"] = f"    tokenizer: {arguments.tokenizer.resolve()}\n"
        for name, extra in ours.items():
            port, file = free_port(), folder / f"{name}.yaml"
            file.write_text(config(ports, port, extra))
            command = [sys.executable, "-m", "weighbridge", "serve", "--config", str(file)]
            gateway = stack.enter_context(program(command, 0, folder / f"{name}.log"))
            wait_for(port)
            ways[name] = (port, gateway.pid)
        if arguments.vllm_router:
            port = free_port()
            urls = [f"http://127.0.0.1:{one}" for one in ports]
            command = [str(arguments.vllm_router), "--host", "127.0.0.1", "--port", str(port), "--policy"]
            command += ["power_of_two", "--worker-urls", *urls, "--prometheus-port", str(free_port())]
            theirs = stack.enter_context(program(command, 0, folder / "vllm-router.log"))
            wait_for(port)
            ways["vllm-router"] = (port, theirs.pid)
        machine = evenness(arguments.seconds)
        rows = [asdict(row) for case in cases for row in measure(case, ways, arguments.seconds)]
        result = {
            "machine": machine,
            "latency": rows,
            "chunks": [] if arguments.only else floods(ways, arguments.seconds),
        }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
