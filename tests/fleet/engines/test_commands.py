"""Commands with places, what keeps a program, and a foreign engine as a process of the gateway's."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.backends import fleet, until
from weighbridge.errors import BadInput
from weighbridge.fleet.config.command import PLACES, all_filled, filled, own_command, places_of
from weighbridge.fleet.config.load import parse_config
from weighbridge.fleet.config.spec import ReplicaSpec
from weighbridge.fleet.load.dialects import DIALECTS
from weighbridge.fleet.replica import ReplicaError
from weighbridge.fleet.replicas import keeper
from weighbridge.fleet.replicas.http import HttpEndpoint
from weighbridge.fleet.replicas.process import ProcessReplica, Program


@given(st.lists(st.text(max_size=20)), st.dictionaries(st.sampled_from(PLACES), st.text(max_size=5)))
def test_what_is_no_place_stays_as_it_was(words: list[str], values: dict[str, str]) -> None:
    for word, out in zip(words, all_filled(words, values), strict=True):
        if not places_of([word]) & values.keys():
            assert out == word


def test_places_are_filled_now_or_later() -> None:
    words = ("vllm", "serve", "{model}", "--port={port}", "--opt", '{"port": 1, "x": {}}')
    first = all_filled(words, {"model": "m"})
    assert first == ("vllm", "serve", "m", "--port={port}", "--opt", '{"port": 1, "x": {}}')
    assert places_of(first) == {"port"}
    assert filled(first[3], {"port": "8000"}) == "--port=8000"
    assert filled("{port}", {"port": "{host}"}) == "{host}"  # what is filled in is not read again
    assert own_command("m", ["--threads", "3"], 2).count("--threads") == 1


def replica(text: str) -> ReplicaSpec:
    [model] = parse_config(f"models:\n  m:\n    replicas:\n      - {text}\n", "f", Path(".")).models
    return model.replicas[0]


def test_a_command_is_a_list_or_a_line_and_needs_a_port() -> None:
    listed = replica("{ray: org/m, command: [vllm, serve, '{model}', --port, {port}], dialect: vllm}")
    assert listed.command == ("vllm", "serve", "{model}", "--port", "{port}")
    assert (listed.dialect, listed.knows_key) == ("vllm", False)
    line = replica("{process: m, command: 'server -m {model} --port {port} --api-key {key}'}")
    assert line.command == ("server", "-m", "{model}", "--port", "{port}", "--api-key", "{key}")
    assert (line.dialect, line.knows_key) == ("openai", True)
    for bad, word in (
        ("{process: m, command: [server]}", "{port}"),
        ("{url: 'http://127.0.0.1:1', command: [a, '{port}']}", "process:"),
        ("{process: m, command: [a, '{port}'], options: [--x]}", "options"),
        ("{process: m, env: {A: b}}", "command"),
        ("{process: m, command: [{a: b}, '{port}']}", "list of words"),
        (r'{process: m, command: ["a\0", "{port}"]}', "command: has a character"),
        (r'{process: "m\0", command: ["a", "{port}"]}', "process: has a character"),
        (r'{process: m, options: [--x, "a\0b"]}', "options: has a character"),
        ("{process: m, command: [a, '{port}'], env: {'A=B': c}}", "'A=B' is no name of a variable"),
        ("{process: m, command: [a, '{port}'], env: {'': c}}", "'' is no name of a variable"),
    ):
        with pytest.raises(BadInput, match=word.replace("{", r"\{")):
            replica(bad)


def test_bundles_stand_for_all_resources() -> None:
    spec = replica("{ray: m, bundles: [{GPU: 2, CPU: 8}, {GPU: 2}], strategy: STRICT_PACK, keep: false}").ray
    assert (spec.bundles, spec.strategy, spec.keep) == (
        ({"GPU": 2.0, "CPU": 8.0}, {"GPU": 2.0}),
        "STRICT_PACK",
        False,
    )
    with pytest.raises(BadInput, match="first of them"):
        replica("{ray: m, bundles: [{GPU: 2}], gpus: 1}")


def test_streams_that_resume_need_a_tokenizer_and_the_check_says_so() -> None:
    with pytest.raises(BadInput, match="tokenizer"):
        parse_config("models: {m: {resume: true, replicas: [{ray: m}]}}", "f", Path("."))


@contextmanager
def kept(command: list[str], grace: float = 5.0) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, keeper.__file__, "-", str(grace), "--", *command]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait(5)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process ends in time; one that nobody has asked for its code yet has ended too."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


FAMILY = (
    "import os,signal,time\n"
    "signal.signal(signal.SIGTERM, {handler})\n"  # before anybody hears of it: a signal may follow at once
    "child = os.fork()\n"
    "if child:\n    print(os.getpid(), child, flush=True)\n"
    "time.sleep(60)\n"
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["end of the pipe", "SIGTERM"])
@pytest.mark.parametrize(("handler", "grace"), [("signal.SIG_DFL", 5.0), ("signal.SIG_IGN", 0.2)])
def test_a_keeper_ends_a_program_and_its_children(how: str, handler: str, grace: float) -> None:
    with kept([sys.executable, "-c", FAMILY.format(handler=handler)], grace) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        family = list(map(int, process.stdout.readline().split()))
        if how == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        else:
            process.stdin.close()
        assert process.wait(10) == (128 + (15 if handler == "signal.SIG_DFL" else 9))
        assert all(gone(pid) for pid in family)


def test_a_keeper_passes_on_how_its_program_ended() -> None:
    with kept([sys.executable, "-c", "raise SystemExit(7)"]) as process:
        assert process.wait(10) == 7
    with kept(["/no/such/program"]) as process:
        assert process.wait(10) == 127


async def test_an_engine_that_cannot_be_started_now_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has no process or file left for a while; what is said is what it was."""
    program = Program((sys.executable, "-c", "import time; time.sleep(60)"), is_ours=False)
    replica = ProcessReplica("p", program, lambda url: HttpEndpoint(url, DIALECTS["vllm"]))
    start = asyncio.create_subprocess_exec

    async def none_left(*args: Any, **kwargs: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(asyncio, "create_subprocess_exec", none_left)
    with pytest.raises(ReplicaError, match="is starting"):
        await replica.probe()
    await until(lambda: "cannot be started" in replica._ended)
    with pytest.raises(ReplicaError, match=r"cannot be started: .*temporarily unavailable"):
        await replica.probe()
    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    await until(lambda: replica.pid is not None)
    pid = replica.pid
    await replica.close()
    assert pid is not None
    assert gone(pid)


async def test_a_foreign_engine_is_started_watched_and_ended_with_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated replica stands for an engine of somebody else's, here with a key of its own."""
    from tests.fleet import backends
    from weighbridge.cli.serve.fleet import LocalMakers
    from weighbridge.fleet.replicas.build import build_replica

    line = "{python} -m weighbridge replica --simulated --host {host} --port {port} --api-key {key}"
    config = (
        "health: {interval: 0.1, slow_start: 0}\nmodels:\n  m:\n    replicas:\n"
        f"      - {{name: foreign, process: any, command: '{line} --served-model-name {{name}}', key: a-key-for-us, "
        "dialect: weighbridge}\n"
    )
    makers = LocalMakers(parse_config(config, "f", Path(".")))
    monkeypatch.setattr(backends, "build_replica", lambda spec: build_replica(spec, makers.by_kind()))
    async with fleet(config=config, wait=False) as front:
        await until(lambda: front.gateway.ready)
        events = await front.stream("/v1/completions", model="m", max_tokens=4)
        assert events[-1] == "[DONE]"
        process = front.gateway.member("foreign")[1].replica
        first = process.pid
        os.kill(first, signal.SIGKILL)  # the keeper: what it keeps ends too, whatever happens to it
        await until(lambda: process.pid not in (None, first))
        await until(lambda: front.gateway.ready)
        last = process.pid
    assert gone(last)
