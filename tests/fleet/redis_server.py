"""A real Redis for tests, in memory only, where this machine has one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess

import pytest

from tests.fleet.backends import until
from tests.server.running import free_port

SERVER = os.environ.get("WEIGHBRIDGE_REDIS_SERVER") or shutil.which("redis-server")
needs_redis = pytest.mark.skipif(
    SERVER is None, reason="no redis-server; name one in WEIGHBRIDGE_REDIS_SERVER"
)


class Server:
    """A real Redis, in memory only."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([str(SERVER), *options], stdout=subprocess.DEVNULL)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(60)

    async def ready(self) -> None:
        await until(self._answers)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 2.0) as line:
                line.sendall(b"PING\r\n")
                return line.recv(16).startswith(b"+PONG")
        except OSError:
            return False
