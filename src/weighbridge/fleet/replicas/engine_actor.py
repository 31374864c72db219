"""What runs in a Ray worker: one engine, kept running as long as the actor lives, and ended with it.

The class goes to the worker as it is, so that nothing of ours need be installed there: it needs Python and Ray.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

#: A program that lived so long had started well; its next start is not delayed.
STARTED_WELL = 60.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: Lines of its output that are kept, to say why it ended.
LAST_LINES = 12
#: Exit code of bad input: starting again would not help.
BAD_INPUT = 2


class EngineActor:
    """`plan` has the command with its places, the environment, the key, and the text of the keeper.

    `told` says where it listens. The engine is started again when it ends, here, where its resources are; Ray starts
    the actor again where it finds a place, when its worker or its machine is gone.
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        import ray
        from ray.util import get_node_ip_address

        self._plan = plan
        self._node = ray.get_runtime_context().get_node_id()
        self._host = get_node_ip_address()
        self._raylet = os.getppid()
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._starts = 0
        self._began = time.time()
        self._ended = ""
        self._stopping = threading.Event()
        self._lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()
        threading.Thread(target=self._watch_raylet, daemon=True).start()

    def told(self) -> dict[str, Any]:
        """Return where it listens (empty while it does not run), with which key, and how it has been."""
        process = self._process
        runs = process is not None and process.poll() is None
        return {
            "url": self._url if runs else "",
            "key": self._plan["key"],
            "digest": self._plan["digest"],
            "pid": process.pid if process is not None and runs else None,
            "actor_pid": os.getpid(),
            "node": self._node,
            "host": self._host,
            "starts": self._starts,
            "began": self._began,
            "ended": self._ended,
            "lines": list(self._lines),
        }

    def stop(self, seconds: float) -> None:
        """End the engine: SIGTERM, time to drain, then SIGKILL to all of it."""
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(seconds + 5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5.0)

    def _watch_raylet(self) -> None:
        """End with the raylet: Ray has this actor started elsewhere, and two would answer for one."""
        while os.getppid() == self._raylet:
            time.sleep(1.0)
        os._exit(1)  # the keeper's pipe ends with us, and the engine with the keeper

    def _keep(self) -> None:
        pause = 0.0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = self._run()
            if self._stopping.is_set():
                return
            lived = time.monotonic() - began
            self._ended = f"its engine ended with code {code} after {lived:.1f} s"
            if code == BAD_INPUT:
                self._ended += "; it is not started again"
                return
            pause = (
                SHORTEST_PAUSE if lived > STARTED_WELL else min(max(2 * pause, SHORTEST_PAUSE), LONGEST_PAUSE)
            )
            self._stopping.wait(pause)

    def _run(self) -> int:
        """Start the engine and wait until it ends; return its exit code."""
        with socket.socket() as probe:
            probe.bind((self._host, 0))
            port = probe.getsockname()[1]
        values = {"host": self._host, "port": str(port), "key": self._plan["key"], "python": sys.executable}
        command = [_filled(word, values) for word in self._plan["command"]]
        env = {name: _filled(value, values) for name, value in self._plan["env"].items()}
        keeper = [sys.executable, "-c", self._plan["keeper"], "-", str(self._plan["grace"]), "--"]
        self._began, self._starts = time.time(), self._starts + 1
        self._process = subprocess.Popen(
            [*keeper, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
        )
        self._url = f"http://{self._host}:{port}"
        self._read(self._process)
        return self._process.wait()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """Pass its output on to Ray's log, and keep the end of it."""
        assert process.stdout is not None
        for line in process.stdout:
            text = line.decode("utf-8", "replace").rstrip()
            self._lines.append(text[:500])
            with contextlib.suppress(OSError, ValueError):
                print(text, flush=True)


def _filled(word: str, values: dict[str, str]) -> str:
    return re.sub(r"{(host|port|key|python)}", lambda found: values[found[1]], word)
