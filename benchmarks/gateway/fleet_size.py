"""What a fleet's size costs a gateway: CPU time a request and while idle, with vllm-router beside it.

    python benchmarks/gateway/fleet_size.py [--replicas 8,256,1000] [--vllm-router PATH] [--seconds 5] [--json FILE]

Backends that cost nothing (backend.py) on as many ports of one process, on one core together with the client; the
gateway alone on another. Once all replicas are up: CPU time of the idle gateway, then of each request at 100 a second
of 2 KiB and 8 chunks, and the seconds that `/metrics` takes, with the longest time that the event loop was held up
meanwhile (by a request that does nothing, sent again and again).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from overhead import HERE, SEEDS, client, config, cpu_seconds, free_port, program, wait_for

RATE, SIZE, CHUNKS = 100, 2048, 8


def ports_of(count: int) -> list[int]:
    """So many free ports in a row, below those that the system hands out."""
    for first in range(12_000, 30_000, 1100):
        if all(_is_free(first + number) for number in range(0, count, 50)):
            return list(range(first, first + count))
    raise SystemExit("there are no free ports in a row")


def _is_free(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=0.2):
            return False
    except OSError:
        return True


@contextmanager
def weighbridge(ports: list[int], folder: Path) -> Iterator[tuple[int, int]]:
    port, file = free_port(), folder / f"fleet-{len(ports)}.yaml"
    file.write_text(config(ports, port))
    command = [sys.executable, "-m", "weighbridge", "serve", "--config", str(file)]
    with program(command, 0, folder / "weighbridge.log") as process:
        wait_for(port)
        until = time.monotonic() + 60
        while time.monotonic() < until and _up(port) < len(ports):
            time.sleep(0.5)
        yield port, process.pid


@contextmanager
def vllm_router(path: Path, ports: list[int], folder: Path) -> Iterator[tuple[int, int]]:
    port, metrics = free_port(), free_port()
    urls = [f"http://127.0.0.1:{one}" for one in ports]
    command = [str(path), "--host", "127.0.0.1", "--port", str(port), "--policy", "power_of_two"]
    command += ["--worker-urls", *urls, "--prometheus-port", str(metrics)]
    with program(command, 0, folder / "vllm-router.log") as process:
        wait_for(port)
        time.sleep(5)
        yield port, process.pid


def _up(port: int) -> int:
    page = _get(port, "/metrics").decode()
    return sum(
        line.startswith("weighbridge_replica_up{") and line.endswith(" 1.0") for line in page.splitlines()
    )


def _get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        page: bytes = answer.read()
    return page


def measure(way: str, port: int, pid: int, seconds: float) -> dict[str, object]:
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(2 * seconds)
    idle = (cpu_seconds(pid) - before) / (time.monotonic() - began)
    sent = (SIZE, CHUNKS, 0)
    client(1, port, "rate", "prose", RATE, 2, *sent, next(SEEDS))  # warm
    before, began = cpu_seconds(pid), time.monotonic()
    result = client(1, port, "rate", "prose", RATE, seconds, *sent, next(SEEDS))
    spent = cpu_seconds(pid) - before - idle * (time.monotonic() - began)
    waits = [row[1] for row in result]  # type: ignore[attr-defined]
    return {
        "through": way,
        "idle_percent": round(100 * idle, 2),
        "cpu_us": round(1e6 * spent / len(waits)),
        "first_byte_p50_ms": round(statistics.median(waits), 2),
    }


def scrape(port: int) -> dict[str, float]:
    """Milliseconds of a page of metrics, and the longest that another request waited meanwhile."""
    waits, over = [], threading.Event()

    def knock() -> None:
        while not over.is_set():
            began = time.monotonic()
            _get(port, "/health")
            waits.append(1e3 * (time.monotonic() - began))

    knocking = threading.Thread(target=knock)
    knocking.start()
    time.sleep(0.3)
    waits.clear()
    began = time.monotonic()
    for _ in range(3):
        _get(port, "/metrics")
    lasted = 1e3 * (time.monotonic() - began) / 3
    over.set()
    knocking.join()
    return {"metrics_ms": round(lasted, 1), "longest_wait_ms": round(max(waits), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", default="8,256,1000", help="sizes of the fleet, by commas")
    parser.add_argument("--vllm-router", type=Path, help="the vllm-router program")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found = []
    for count in map(int, arguments.replicas.split(",")):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            ports = ports_of(count)
            command = [sys.executable, str(HERE / "backend.py"), str(ports[0]), str(count)]
            stack.enter_context(program(command, 1, folder / "backend.log"))
            wait_for(ports[-1])
            with weighbridge(ports, folder) as (port, pid):
                found.append({"replicas": count, **measure("weighbridge", port, pid, arguments.seconds)})
                found[-1].update(scrape(port))
                print(found[-1], flush=True)
            if arguments.vllm_router:
                with vllm_router(arguments.vllm_router, ports, folder) as (port, pid):
                    found.append({"replicas": count, **measure("vllm-router", port, pid, arguments.seconds)})
                    print(found[-1], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
