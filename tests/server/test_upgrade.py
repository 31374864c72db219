"""A new process takes the listening socket over: under load no connection is refused, and nothing open is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.fleet.backends import Backend, all_served, clients, events, until
from tests.server.running import free_port, running, wait_until_ready
from weighbridge.errors import BadInput
from weighbridge.server.upgrade.handover import Handover
from weighbridge.server.upgrade.inherited import Taken

BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def command(file: Path, log: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "weighbridge", "serve", "--config", str(file), *more]
    return ["/bin/sh", "-c", f"exec {' '.join(words)} 2>>{log}"]


def written(folder: Path, backends: list[Backend], port: int) -> Path:
    entries = ", ".join(f"{{name: {b.name}, url: '{b.url}', dialect: weighbridge}}" for b in backends)
    file = folder / "weighbridge.yaml"
    file.write_text(
        f"listen: 127.0.0.1:{port}\nhandover: {folder / 'next.sock'}\n"
        f"health: {{interval: 0.05, slow_start: 0}}\nmodels: {{m: {{replicas: [{entries}]}}}}\n"
    )
    return file


class Load:
    """Clients that ask without a pause: some keep their connections, some make one for each request."""

    def __init__(self, url: str) -> None:
        self.url, self.answered = url, 0
        self.failed: list[object] = []
        self.over = False

    async def keeping(self) -> None:
        async with clients() as client:
            await self._ask_on(client)

    async def anew(self) -> None:
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as client:
            await self._ask_on(client)

    async def _ask_on(self, client: aiohttp.ClientSession) -> None:
        while not self.over:
            try:
                async with client.post(self.url + "/v1/chat/completions", json=BODY) as answer:
                    await answer.read()
                    if answer.status != 200:
                        self.failed.append(answer.status)
            except Exception as error:
                self.failed.append(repr(error))
            self.answered += 1


async def test_an_upgrade_under_load_refuses_no_connection(tmp_path: Path) -> None:
    backend = Backend("first", gap=0.001)
    backend.gate, backend.hold_after = asyncio.Event(), 2
    port, log = free_port(), tmp_path / "log"
    url = f"http://127.0.0.1:{port}"
    async with all_served((backend,)), clients() as client:
        file = written(tmp_path, [backend], port)
        with running(command(file, log), 30) as old:
            await asyncio.to_thread(wait_until_ready, url, old)
            await until((tmp_path / "next.sock").exists)
            backend.let_go()  # whole answers do not wait; the stream below does, at a gate of its own
            backend.gate = asyncio.Event()
            stream = await client.post(url + "/v1/chat/completions", json={**BODY, "stream": True})
            backend_gate, backend.gate = backend.gate, None
            load = Load(url)
            tasks = [asyncio.create_task(one()) for one in (load.keeping, load.keeping, load.anew, load.anew)]
            await until(lambda: load.answered > 50)
            with running(command(file, log, "--takeover"), 30) as new:
                await until(lambda: "a new process is starting" in log.read_text())
                os.kill(new.pid, signal.SIGHUP)  # it does not serve yet
                await until(lambda: "another process serves in the place" in log.read_text())
                await until(lambda: "read again by SIGHUP" in log.read_text())
                before = load.answered
                await until(lambda: load.answered > before + 100)
                assert old.poll() is None  # its stream is open
                backend_gate.set()
                assert events(await stream.read())[-1] == "[DONE]"
                await until(lambda: old.poll() is not None or os.kill(old.pid, signal.SIGHUP))
                assert old.returncode == 0
                before = load.answered
                await until(lambda: load.answered > before + 50)
                load.over = True
                await asyncio.gather(*tasks)
                assert load.failed == []
                assert (tmp_path / "next.sock").exists()  # the new one's own
                assert new.poll() is None


async def test_who_fails_to_start_changes_nothing(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    handover = Handover(tmp_path / "next.sock", listener)
    handover.open()
    passed = asyncio.create_task(handover.taken())
    taken = await asyncio.to_thread(Taken, tmp_path / "next.sock")
    assert taken.listener.getsockname() == listener.getsockname()
    taken._line.close()  # it died while it was loading
    again = await asyncio.to_thread(Taken, tmp_path / "next.sock")
    assert not passed.done()
    await asyncio.to_thread(again.ready)
    await asyncio.wait_for(passed, 10)
    assert not (tmp_path / "next.sock").exists()
    for one in (taken.listener, again.listener, listener):
        one.close()


def test_without_a_process_to_take_over_from_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="start it without --takeover"):
        Taken(tmp_path / "nobody.sock")


async def test_a_socket_of_systemd_is_listened_on(tmp_path: Path) -> None:
    """As `systemd-socket-activate` does it: the socket is file 3, and the process is told its own number."""
    backend = Backend("first")
    async with all_served((backend,)), clients() as client:
        file = written(tmp_path, [backend], free_port())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = "http://{}:{}".format(*listener.getsockname())

            def activate() -> None:
                os.dup2(listener.fileno(), 3)

            words = f"LISTEN_FDS=1 LISTEN_PID=$$ exec {sys.executable} -m weighbridge serve --config {file}"
            process = subprocess.Popen(["/bin/sh", "-c", words], pass_fds=(3,), preexec_fn=activate)  # noqa: ASYNC220
            try:
                await asyncio.to_thread(wait_until_ready, url, process)
                async with client.post(url + "/v1/chat/completions", json=BODY) as answer:
                    assert answer.status == 200
            finally:
                process.terminate()
                assert process.wait(30) == 0
            # Whoever connects while nobody serves waits in the socket's queue, and is not refused.
            socket.create_connection(listener.getsockname(), 2.0).close()
