"""Starting each peer's server with its best reasonable settings, and ending it for certain."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import environments

from weighbridge.models.catalogue.store import resolve

HERE = Path(__file__).parent
START_TIMEOUT, STOP_TIMEOUT = 600.0, 20.0
LIFE_LIMIT = 1800  # seconds after which a server ends by itself, should the comparison be killed

#: Random prompts make a small model repeat itself, which our prompt lookup turns into speed that real text
#: would not see: it is off here, as the peers have nothing of the kind switched on.
OURS = ["--no-speculate"]

#: Tokens of the default model's context, for a conversation.
SESSION_CONTEXT = "8192"

Command = tuple[list[str], dict[str, str]]


@contextmanager
def server(peer: str, clients: int, *, session: bool = False) -> Iterator[str]:
    """A peer's server on a free local port, once it answers; ended by its own process id. `session`: it is set up for
    one long conversation whose beginnings are kept, instead of for prompts that have nothing in common."""
    port = free_port()
    command, settings = command_of(peer, port, clients, session)
    with running(command, settings, peer, port) as url:
        yield url


@contextmanager
def serving(program: list[str], name: str) -> Iterator[str]:
    """The default model, served by a checkout's own `weighbridge`; `name` is what its log is called."""
    port = free_port()
    with running([*program, "serve", "--port", str(port), *OURS], {}, name, port) as url:
        yield url


@contextmanager
def running(command: list[str], settings: dict[str, str], name: str, port: int) -> Iterator[str]:
    if shutil.which("timeout"):
        command = ["timeout", f"--kill-after={STOP_TIMEOUT:.0f}", str(LIFE_LIMIT), *command]
    environments.HOME.mkdir(parents=True, exist_ok=True)
    with (environments.HOME / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url, process, log.name)
            yield url
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, then end the whole session that the process was started in."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_TIMEOUT)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def command_of(peer: str, port: int, clients: int, session: bool = False) -> Command:
    """The command line and the environment variables of a peer."""
    if peer.startswith("weighbridge"):
        scheme = peer.partition("-")[2] or "auto"
        base = [sys.executable, "-m", "weighbridge", "serve", "--port", str(port)]
        return [*base, "--quantize", scheme, *OURS, *(["--prefix-care"] if session else [])], {}
    if peer == "llama":
        python = str(environments.python_of(peer))
        words = [
            str(resolve("default")),
            str(port),
            str(clients),
            "2",
            *([SESSION_CONTEXT] if session else []),
        ]
        return [python, str(HERE / "llama_server.py"), *words], {}
    if peer == "vllm":
        return vllm(port, session)
    raise ValueError(f"unknown peer {peer!r}")


def vllm(port: int, session: bool = False) -> Command:
    """bfloat16, both cores bound, 4 GB of KV, Intel's OpenMP preloaded as its documentation advises."""
    python = environments.python_of("vllm")
    command = [str(python.parent / "vllm"), "serve", str(exported_model())]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    if session:
        command += ["--max-model-len", SESSION_CONTEXT, "--enable-prompt-tokens-details"]
        command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    else:
        command += ["--max-model-len", "2048", "--max-num-seqs", "256", "--no-enable-prefix-caching"]
    command += ["--gpu-memory-utilization", "0.5"]  # also the share of host memory that it checks at start
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    settings = {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": cores, "HF_HUB_OFFLINE": "1"}
    return command, settings


def exported_model() -> Path:
    """The default model as a Hugging Face directory in bfloat16, for peers that read no GGUF."""
    directory = environments.HOME / "smollm2-hf"
    if not directory.exists():
        partial = directory.with_name(f"{directory.name}.partial")
        command = [sys.executable, str(HERE / "export_hf.py"), str(resolve("default")), str(partial)]
        subprocess.run(command, check=True, timeout=300)
        partial.rename(directory)
    return directory


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}; see {log}")
        try:
            with urllib.request.urlopen(f"{url}/v1/models", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"the server did not answer within {START_TIMEOUT:.0f} s; see {log}")
