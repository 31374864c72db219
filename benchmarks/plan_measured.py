"""The plan of our own engine beside what its server takes: memory to the byte of the process, and the time of a step.

    python benchmarks/plan_measured.py FILE.gguf [FILE ...] [--quantize auto,int8] [--kv-dtype int8] [--kernels avx2]

For each file and `--quantize`: the command that the plan prints is started as it is printed (on a free port), filled
to the last block of a cache of --kv-cache-memory with prompts of random words, and its resident memory is read beside
what the plan said. What a server takes without weights and cache is read off as well. With --calibrate the file is
calibrated first, and the decode step of the plan is compared with the seconds a token of a running answer takes, at one
client; on a machine that is not idle, both are of the same few minutes, not of the same second. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from servers import free_port, stop, wait_until_ready

MIB = 1 << 20
PROGRAM = [sys.executable, "-m", "weighbridge"]


@dataclass(frozen=True, slots=True)
class Row:
    """One start: MiB planned and measured, and milliseconds of a decode step."""

    name: str
    planned: dict[str, float]
    measured: dict[str, float]


@dataclass(frozen=True, slots=True)
class Task:
    """What to plan and start."""

    file: str
    kept: list[str]  # how weights and cache are kept, which `calibrate` takes too
    others: list[str]  # flags of the plan alone
    environment: dict[str, str]

    @property
    def flags(self) -> list[str]:
        return [*self.kept, *self.others]


def plan_of(task: Task) -> dict[str, Any]:
    """The plan as JSON."""
    command = [
        *PROGRAM,
        "plan",
        task.file,
        "--engine",
        "weighbridge",
        "--device",
        "here",
        *task.flags,
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=task.environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


@contextmanager
def served(command: str, environment: dict[str, str]) -> Iterator[tuple[int, str]]:
    """The printed command, on a free port instead of 8000 and without guessing: its process and its address."""
    words, port = shlex.split(command), free_port()
    words = [*PROGRAM, *words[1 : words.index("--port")], "--port", str(port), "--no-speculate"]
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, "what the command prints")
        yield process.pid, url
    finally:
        stop(process)


def resident(pid: int) -> dict[str, float]:
    """MiB of the process now and at its peak."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(("VmRSS", "VmHWM")):
            found[line[2:5]] = int(line.split()[1]) / 1024
    return found


def ask(url: str, words: int, tokens: int) -> tuple[float, dict[str, Any]]:
    """Seconds and usage of an answer to random words."""
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        model = json.load(answer)["data"][0]["id"]
    prompt = " ".join(str(random.randint(100, 999)) for _ in range(words))
    fields = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(fields).encode(), {"content-type": "application/json"}
    )
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=1800) as answer:
        usage = json.load(answer)["usage"]
    return time.perf_counter() - started, usage


def fill(url: str, plan: dict[str, Any]) -> None:
    """Prompts as long as the model takes, until every block of the cache has been written."""
    length, left = plan["max_model_len"], plan["kv_cache_tokens"]
    each = ask(url, 64, 1)[1]["prompt_tokens"] / 64
    while left > 0:
        left -= ask(url, int((length - 32) / each), 1)[1]["prompt_tokens"]


def step_seconds(url: str, tokens: int = 48) -> float:
    """Seconds that a token of an answer takes, behind a short prompt: the median of three."""
    found = []
    for _ in range(3):
        short = ask(url, 24, 1)[0]
        found.append((ask(url, 24, tokens + 1)[0] - short) / tokens)
    return sorted(found)[1]


def measure(task: Task, *, calibrate: bool) -> Row:
    if calibrate:
        command = [*PROGRAM, "calibrate", task.file, *task.kept, "--json"]
        subprocess.run(command, env=task.environment, stdout=subprocess.DEVNULL, check=True)
    plan = plan_of(task)
    planned = {
        "weights": plan["weights_gib"] * 1024,
        "cache": plan["kv_pool_gib"] * 1024,
        "rest": (plan["framework_gib"] + plan["activation_gib"]) * 1024,
    }
    planned["all"] = sum(planned.values())
    with served(plan["command"], task.environment) as (pid, url):
        ready = resident(pid)
        step = step_seconds(url) if calibrate else 0.0
        fill(url, plan)
        full = resident(pid)
    measured = {"ready": ready["RSS"], "all": full["RSS"], "peak": full["HWM"]}
    if calibrate:
        planned["step"] = plan["speed"][0]["tpot"] * 1e3
        measured["step"] = step * 1e3
    return Row(f"{Path(task.file).stem[:28]} {' '.join(task.kept[1::2])}", planned, measured)


def show(row: Row) -> None:
    p, m = row.planned, row.measured
    off = p["all"] / m["all"] - 1
    line = (
        f"{row.name:46} weights {p['weights']:7.0f}  cache {p['cache']:5.0f}  rest {p['rest']:5.0f}  "
        f"planned {p['all']:7.0f}  measured {m['all']:7.0f} MiB ({off:+.1%})  peak {m['peak']:7.0f}  "
        f"ready {m['ready']:7.0f}"
    )
    if "step" in m:
        line += f"  step {p['step']:.1f} / {m['step']:.1f} ms ({p['step'] / m['step'] - 1:+.0%})"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+")
    parser.add_argument("--quantize", default="auto,none,int8,int4")
    parser.add_argument("--kv-dtype", default="auto")
    parser.add_argument("--max-model-len", default="2048")
    parser.add_argument("--kv-cache-memory", default="64MiB")
    parser.add_argument(
        "--kernels", default="", help="avx2 ...: forced, as on an older CPU, in float32 if it is avx2"
    )
    parser.add_argument("--calibrate", action="store_true")
    args = parser.parse_args()
    environment = dict(os.environ)
    kept, others = ["--kv-dtype", args.kv_dtype], ["--concurrency", "1"]
    if args.kernels:
        environment["WEIGHBRIDGE_KERNELS"] = args.kernels
        others += ["--cpu", args.kernels]
        kept += ["--dtype", "float32"] if args.kernels == "avx2" else []
    others += ["--max-model-len", args.max_model_len, "--kv-cache-memory", args.kv_cache_memory]
    for file in args.files:
        for scheme in args.quantize.split(","):
            task = Task(file, ["--quantize", scheme, *kept], others, environment)
            show(measure(task, calibrate=args.calibrate))


if __name__ == "__main__":
    main()
