"""From the start of a process to ready, and the memory it then takes, with the page cache dropped before each start.

    python benchmarks/cold_start.py FILE.gguf [FILE ...] [--tokens 4096] [--rounds 3] [--keep-cache] [--ours "..."]

For each file: the seconds that reading it takes (page cache dropped), the seconds from the start of `weighbridge serve`
until /health/ready says so (dropped again), its resident memory then, after a prompt that fills a cache of --tokens,
and its peak. Beside it what a process takes that has imported the server and has no model. Dropping needs root;
--keep-cache leaves the page cache as it is, and both times are then those of a file in memory. Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from servers import OURS, free_port, stop

from plan_measured import ask, resident
from weighbridge.models.files.checkpoint import open_checkpoint

READY_TIMEOUT = 300.0
PIECE = 8 << 20
#: What `weighbridge serve` has imported by the time it listens.
IDLE = "import weighbridge.cli.serve.running, weighbridge.engine.build, weighbridge.server.app"


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds, and MiB."""

    read: float
    ready: float
    resident: float
    full: float
    peak: float


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def read_seconds(file: Path) -> float:
    started = time.perf_counter()
    with file.open("rb", buffering=0) as data:
        while data.read(PIECE):
            pass
    return time.perf_counter() - started


@contextmanager
def started(
    file: Path, tokens: int, cache: int, ours: list[str]
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The server's process as soon as there is one, and its address."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "weighbridge",
        "serve",
        str(file),
        "--port",
        str(port),
        *OURS,
        *ours,
    ]
    command += ["--max-model-len", str(tokens), "--kv-cache-memory", f"{cache}B"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        stop(process)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, deadline: float) -> None:
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with code {process.returncode}")
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{url}/health/ready", timeout=2),
        ):
            return
        time.sleep(0.02)
    raise SystemExit(f"not ready within {READY_TIMEOUT:.0f} s")


def cache_bytes(file: Path, tokens: int) -> int:
    """A cache of that many tokens in two bytes an element, and one block more."""
    return open_checkpoint(file).config.kv_elements_per_token * 2 * (tokens + 64)


def measure(file: Path, tokens: int, drop: bool, ours: list[str]) -> Start:
    if drop:
        drop_caches()
    read = read_seconds(file)
    if drop:
        drop_caches()
    began = time.perf_counter()
    with started(file, tokens, cache_bytes(file, tokens), ours) as (process, url):
        wait_until_ready(process, url, began + READY_TIMEOUT)
        ready = time.perf_counter() - began
        first = resident(process.pid)
        words = tokens // 32
        each = ask(url, words, 1)[1]["prompt_tokens"] / words
        ask(url, int((tokens - 32) / each), 1)
        full = resident(process.pid)
    return Start(read, ready, first["RSS"], full["RSS"], full["HWM"])


def idle_memory() -> float:
    """MiB of a process with everything imported and no model."""
    program = f"{IDLE}; print(open('/proc/self/status').read())"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return int(told.partition("VmRSS:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep-cache", action="store_true")
    parser.add_argument("--ours", default="", help="more options of `weighbridge serve`")
    options = parser.parse_args()
    idle = idle_memory()
    print(f"idle without a model: {idle:.0f} MiB")
    print(
        "| file | MB | read s | ready s | behind the file | resident MiB | with the cache full | peak | above idle |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for file in options.files:
        ours = shlex.split(options.ours)
        rows = [measure(file, options.tokens, not options.keep_cache, ours) for _ in range(options.rounds)]
        read, ready, here, full, peak = (
            statistics.median(getattr(row, name) for row in rows) for name in Start.__slots__
        )
        size = file.stat().st_size
        print(
            f"| {file.stem} | {size / 1e6:.0f} | {read:.1f} | {ready:.1f} | {ready - read:+.1f} | {here:.0f} "
            f"| {full:.0f} | {peak:.0f} ({peak / full:.2f}x) | {(full - idle) * 1.048576e6 / size:.2f}x of the file |",
            flush=True,
        )


if __name__ == "__main__":
    main()
