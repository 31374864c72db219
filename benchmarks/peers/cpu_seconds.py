"""Weighbridge and llama-server on one file, by the CPU time of a token: a comparison for machines that are not idle.

    python benchmarks/peers/cpu_seconds.py FILE.gguf [--rounds 3] [--clients 16] [--kernels avx2] [--ours "..."]

Both servers run at once with one thread each and are asked in turn (A B A B). What counts is the time that their
threads were on a core, which other work on the machine disturbs little (it takes a share of caches and of memory
bandwidth), never the time on the clock. Decode: an answer of 33 tokens to a prompt of some 12, less one of 1.
Prompt: one of some 300, less the short one. Clients: --clients of them at once, answers of 33 tokens to such short
prompts, prompts included, as llama-server may have begun some when others still come. Prompts are random, speculation
is off. Linux. Last, resident memory and its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import environments
from servers import HERE, OURS, free_port, stop, wait_until_ready

WORDS = (
    "alpha",
    "beta",
    "river",
    "mountain",
    "code",
    "function",
    "return",
    "value",
    "stream",
    "batch",
    "token",
)
SHORT, LONG, ANSWER = 4, 100, 33


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that runs, and the name its model has there."""

    name: str
    url: str
    pid: int
    model: str

    def cpu_seconds(self) -> float:
        """Time that the threads of the server have been on a core."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def ask(self, words: int, tokens: int) -> tuple[float, int]:
        """CPU seconds of an answer, and the tokens of its prompt."""
        prompt = " ".join(f"{random.choice(WORDS)}{random.randint(0, 99)}" for _ in range(words))
        fields = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        body = json.dumps({**fields, "ignore_eos": True}).encode()
        request = urllib.request.Request(
            f"{self.url}/v1/completions", body, {"content-type": "application/json"}
        )
        before = self.cpu_seconds()
        with urllib.request.urlopen(request, timeout=300) as answer:
            used = json.load(answer)["usage"]
        return self.cpu_seconds() - before, used["prompt_tokens"]

    def ask_together(self, clients: int, words: int, tokens: int) -> float:
        """CPU seconds of as many answers at once."""
        before = self.cpu_seconds()
        with ThreadPoolExecutor(clients) as pool:
            for done in [pool.submit(self.ask, words, tokens) for _ in range(clients)]:
                done.result()
        return self.cpu_seconds() - before

    def memory(self) -> str:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return ", ".join(" ".join(line.split()) for line in lines if line.startswith(("VmRSS", "VmHWM")))


@contextmanager
def running(name: str, command: list[str], settings: dict[str, str]) -> Iterator[Peer]:
    environments.HOME.mkdir(parents=True, exist_ok=True)
    log = environments.HOME / f"{name}.log"
    port = int(command[command.index("--port") + 1]) if "--port" in command else int(command[3])
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=file, stderr=file, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, str(log))
        with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
            model = json.load(answer)["data"][0]["id"]
        yield Peer(name, url, process.pid, model)
    finally:
        stop(process)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--kernels", default="", help="instruction set of Weighbridge's kernels")
    parser.add_argument("--ours", default="", help="more options of `weighbridge serve`")
    options = parser.parse_args()
    file = str(options.file)
    ours = [sys.executable, "-m", "weighbridge", "serve", file, "--port", str(free_port()), *OURS]
    ours += ["--max-model-len", "1024", "--threads", "1", *shlex.split(options.ours)]
    peer = [
        str(environments.python_of("llama")),
        str(HERE / "llama_server.py"),
        file,
        str(free_port()),
        str(options.clients),
        "1",
    ]
    settings = {"OMP_NUM_THREADS": "1", "WEIGHBRIDGE_KERNELS": options.kernels}
    with ExitStack() as stack:
        peers = [
            stack.enter_context(running("weighbridge", ours, settings)),
            stack.enter_context(running("llama-server", peer, {})),
        ]
        for peer in peers:
            peer.ask(SHORT, 4)
        if options.clients > 1:
            together(peers, options.rounds, options.clients)
        else:
            alone(peers, options.rounds)


def together(peers: list[Peer], rounds: int, clients: int) -> None:
    found: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            found[peer.name].append(clients * ANSWER / peer.ask_together(clients, SHORT, ANSWER))
            print(f"{peer.name:13} {clients} clients {found[peer.name][-1]:6.1f}", flush=True)
    print("\nmedians, tokens per CPU second")
    for peer in peers:
        print(f"{peer.name:13} {clients} clients {statistics.median(found[peer.name]):6.1f}  {peer.memory()}")


def alone(peers: list[Peer], rounds: int) -> None:
    decode: dict[str, list[float]] = {peer.name: [] for peer in peers}
    prompt: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            short, short_tokens = peer.ask(SHORT, 1)
            longer, _ = peer.ask(SHORT, ANSWER)
            whole, whole_tokens = peer.ask(LONG, 1)
            decode[peer.name].append((ANSWER - 1) / (longer - short))
            prompt[peer.name].append((whole_tokens - short_tokens) / (whole - short))
            print(
                f"{peer.name:13} decode {decode[peer.name][-1]:6.1f}  prompt {prompt[peer.name][-1]:7.1f}",
                flush=True,
            )
    print("\nmedians, tokens per CPU second")
    for peer in peers:
        decoded, read = statistics.median(decode[peer.name]), statistics.median(prompt[peer.name])
        print(f"{peer.name:13} decode {decoded:6.1f}  prompt {read:7.1f}  {peer.memory()}")


if __name__ == "__main__":
    main()
