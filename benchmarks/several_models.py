"""Three models in memory for two under a load that switches: who is killed, who waits, how often is loaded.

    python benchmarks/several_models.py --virtual            # virtual clock, 20 seeds, a table of policies: seconds
    python benchmarks/several_models.py MODEL.gguf           # `weighbridge serve --config`, three copies of it
    python benchmarks/several_models.py MODEL.gguf --hasty   # the same without hold and turn: plain LRU
    python benchmarks/several_models.py MODEL.gguf --router /path/to/llama-server   # llama.cpp's router mode
    python benchmarks/several_models.py                      # three tiny random models, where there is no file

The load is open: Poisson arrivals whose model is that of the one before with the probability `--sticky`, else
another; streamed answers of 8 to `--tokens` tokens; all from `--seed`. A request is answered if its stream came to its
end, refused if it got an error status, and killed if its stream or connection broke. Switches are loads beyond the
first of each model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import aiohttp
import numpy as np
from tests.fleet.on_demand.world import Request, World
from tests.server.running import free_port, wait_until_ready
from tests.tiny import make_tiny

from weighbridge.fleet.on_demand.occupancy import ModelNeeds, OccupancyRules

NAMES = ("one", "two", "three")
#: What each model is said to take, so that two of three fit whatever the file is.
EACH_GIB = 1
PATIENCE = 600.0
PROMPT = "Write a few words about the weather, the sea and the time of the year."


@dataclass(frozen=True)
class Sent:
    """One request of the load: seconds after the start, the model, tokens of its answer."""

    at: float
    model: str
    tokens: int


@dataclass(frozen=True)
class Answered:
    """How it ended: answered, refused (and in which words) or killed; seconds to its first token and to its end."""

    how: str
    first: float
    whole: float
    why: str = ""


def load_of(seed: int, number: int, rate: float, sticky: float, most_tokens: int) -> list[Sent]:
    chance = random.Random(seed)
    found, at, model = [], 0.0, NAMES[0]
    for _ in range(number):
        at += chance.expovariate(rate)
        if chance.random() >= sticky:
            model = chance.choice([name for name in NAMES if name != model])
        found.append(Sent(at, model, chance.randint(8, most_tokens)))
    return found


# -- under a virtual clock -----------------------------------------------------------------------------------


def virtual(options: argparse.Namespace) -> None:
    """Compare policies where a load takes 4 s and a token 50 ms, whatever else runs."""
    policies = {
        "hold 0.1, turn 1 (default)": (0.1, 1.0),
        "hold 0.25, turn 2": (0.25, 2.0),
        "hold 0, turn 1": (0.0, 1.0),
        "hold 0, turn 0 (LRU)": (0.0, 0.0),
    }
    print("| load | policy | requests | killed | switches | p50 s | p99 s | share of time in loads |")
    print("|---|---|---|---|---|---|---|---|")
    for rate, sticky in ((0.1, 0.5), (1.0, 0.5), (5.0, 0.5), (5.0, 0.95)):
        for name, (hold, turn) in policies.items():
            rows = [_virtual_run(seed, options, rate, sticky, hold, turn) for seed in range(20)]
            seconds = [one for world in rows for one in world.served.values()]
            switches = fmean(world.loads - len(NAMES) for world in rows)
            share = fmean(world.loads * 4.0 / 2 / world.now for world in rows)
            p50, p99 = np.quantile(seconds, (0.5, 0.99))
            ended = sum(len(world.served) + len(world.refused) for world in rows)
            print(
                f"| {rate:g}/s, same model {sticky:.0%} | {name} | {ended} | {len(rows) * options.requests - ended} "
                f"| {switches:.1f} | {p50:.2f} | {p99:.2f} | {share:.0%} |"
            )


def _virtual_run(
    seed: int, options: argparse.Namespace, rate: float, sticky: float, hold: float, turn: float
) -> World:
    models = [ModelNeeds(name, 1) for name in NAMES]
    rules = OccupancyRules(memory=2, hold=hold, turn=turn, max_wait=1e9)
    world = World(models, rules, dict.fromkeys(NAMES, 4.0))
    sent = load_of(seed, options.requests, rate, sticky, options.tokens)
    return world.run([Request(one.at, one.model, 0.05 * one.tokens) for one in sent])


# -- live ----------------------------------------------------------------------------------------------------


async def run_load(url: str, sent: Sequence[Sent]) -> list[Answered]:
    began = time.monotonic()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:

        async def one(request: Sent) -> Answered:
            await asyncio.sleep(max(began + request.at - time.monotonic(), 0.0))
            return await _ask(client, url, request)

        return list(await asyncio.gather(*map(one, sent)))


async def _ask(client: aiohttp.ClientSession, url: str, request: Sent) -> Answered:
    body = {
        "model": request.model,
        "prompt": PROMPT,
        "max_tokens": request.tokens,
        "temperature": 0,
        "stream": True,
    }
    came, first = time.monotonic(), float("nan")
    text = b""
    try:
        async with client.post(url + "/v1/completions", json=body) as answer:
            if answer.status != 200:
                why = (await answer.text())[:200]
                return Answered("refused", first, time.monotonic() - came, f"{answer.status} {why}")
            async for chunk in answer.content.iter_any():
                if b"data:" in chunk and first != first:
                    first = time.monotonic() - came
                text += chunk
    except (aiohttp.ClientError, TimeoutError):
        return Answered("killed", first, time.monotonic() - came)
    whole = b"[DONE]" in text and b'"error"' not in text
    return Answered("answered" if whole else "killed", first, time.monotonic() - came)


def three_of(model: Path | None, home: Path) -> Path:
    """A folder with three models under the names of the load."""
    folder = home / "models"
    folder.mkdir()
    if model is None:
        for name in NAMES:
            make_tiny("llama", folder / name)
        return folder
    for name in NAMES:  # copies, since a router may look behind links
        shutil.copyfile(model, folder / f"{name}.gguf")
    return folder


def configuration(folder: Path, port: int, hasty: bool) -> str:
    patience = ", hold: 0, turn: 0" if hasty else ""
    lines = [f"listen: 127.0.0.1:{port}", f"on_demand: {{memory: {2 * EACH_GIB}GiB{patience}}}", "models:"]
    for name in NAMES:
        path = next(one for one in (folder / f"{name}.gguf", folder / name) if one.exists())
        lines.append(f"  {name}: {{memory: {EACH_GIB}GiB, replicas: [{{process: {path}}}]}}")
    return "\n".join(lines) + "\n"


def started(options: argparse.Namespace, folder: Path, home: Path, port: int) -> subprocess.Popen[bytes]:
    log = (home / "log").open("wb")
    if options.router is not None:
        command = [options.router, "--models-dir", str(folder), "--models-max", "2", "--port", str(port)]
        command += ["--ctx-size", "8192", "--parallel", "4"]
    else:
        config = home / "weighbridge.yaml"
        config.write_text(configuration(folder, port, options.hasty))
        command = [sys.executable, "-m", "weighbridge", "serve", "--config", str(config)]
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def loads_in(log: str, router: bool) -> int:
    """How often a model was loaded, as the server's log says."""
    return len(
        re.findall(
            r"spawning server instance with name=" if router else r"INFO: loading (?:one|two|three) ", log
        )
    )


async def live(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        home, port = Path(place), free_port()
        folder = three_of(options.model, home)
        process = started(options, folder, home, port)
        url = f"http://127.0.0.1:{port}"
        try:
            await asyncio.to_thread(wait_until_ready, url, process, 120.0)
            began = time.monotonic()
            sent = load_of(options.seed, options.requests, options.rate, options.sticky, options.tokens)
            answers = await run_load(url, sent)
            seconds = time.monotonic() - began
        finally:
            _end(process)
        log = (home / "log").read_text(errors="replace")
        if options.show_log:
            print(log, file=sys.stderr)
        return _summary(options, answers, loads_in(log, options.router is not None), seconds)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the group that was started here
            process.wait(10)


def _summary(
    options: argparse.Namespace, answers: Sequence[Answered], loads: int, seconds: float
) -> dict[str, Any]:
    how = Counter(one.how for one in answers)
    done = [one for one in answers if one.how == "answered"]
    told: dict[str, Any] = {
        "server": "llama-server"
        if options.router
        else "weighbridge, LRU"
        if options.hasty
        else "weighbridge",
        "requests": len(answers),
        **{name: how[name] for name in ("answered", "refused", "killed")},
        "refusals": dict(Counter(one.why for one in answers if one.why)),
        "switches": loads - len(NAMES),
        "seconds": round(seconds, 1),
    }
    for name, values in (("first", [one.first for one in done]), ("whole", [one.whole for one in done])):
        for share in (0.5, 0.99):
            told[f"{name}_p{share * 100:.0f}_s"] = (
                round(float(np.quantile(values, share)), 3) if values else None
            )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?", help="a GGUF file; none: tiny random models")
    parser.add_argument("--virtual", action="store_true")
    parser.add_argument("--hasty", action="store_true", help="without hold and turn")
    parser.add_argument("--router", help="a llama-server to run in router mode instead")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rate", type=float, default=2.0, help="arrivals a second")
    parser.add_argument("--sticky", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, default=48, help="of the longest answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show-log", action="store_true")
    options = parser.parse_args()
    if options.virtual:
        virtual(replace_requests(options))
    else:
        print(json.dumps(asyncio.run(live(options)), indent=1))


def replace_requests(options: argparse.Namespace) -> argparse.Namespace:
    """Under a virtual clock a few hundred requests cost nothing."""
    return argparse.Namespace(**{**vars(options), "requests": max(options.requests, 400)})


if __name__ == "__main__":
    main()
