"""Start Weighbridge's own commands as processes, and ask them, for the examples beside this file."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

SIMULATED = "replica --simulated --port 0 --served-model-name small --output-length 40"


@contextmanager
def running(*commands: str) -> Iterator[list[str]]:
    """Run `weighbridge COMMAND` for each command, yield where they listen, and end them afterwards."""
    processes: list[subprocess.Popen[str]] = []
    try:
        for command in commands:
            words = [sys.executable, "-m", "weighbridge", *shlex.split(command)]
            processes.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True))
        yield [_address(process) for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    """Where it listens, once it is ready."""
    said = ""
    for line in process.stderr or ():
        said += line
        if found := re.search(r"http://[\d.]+:\d+", line):
            while process.poll() is None and not _ready(found[0]):
                time.sleep(0.1)
            return found[0]
    raise SystemExit(said)


def _ready(url: str) -> bool:
    try:
        return urlopen(f"{url}/health").status == 200
    except URLError:  # it does not listen yet, or none of its replicas is up
        return False


def chat(
    url: str, model: str, text: str, extension: dict[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """Ask one question; return the answer and its ticket."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "weighbridge": extension or {}}
    request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
    with urlopen(request) as reply:
        answer = json.load(reply)
        ticket = reply.headers["x-weighbridge-ticket"]
    return answer["choices"][0]["message"]["content"], ticket_of(url, ticket)


def ticket_of(url: str, ticket: str) -> dict[str, Any]:
    with urlopen(f"{url}/v1/tickets/{ticket}") as reply:
        found: dict[str, Any] = json.load(reply)
        return found
