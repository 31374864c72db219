"""weighbridge.yaml is read again: replicas come, go and change, and what is open goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.backends import Backend, all_served, clients, events, until
from tests.server.running import free_port, running
from weighbridge.fleet.config.difference import difference, each
from weighbridge.fleet.config.load import parse_config
from weighbridge.fleet.config.spec import FleetSpec
from weighbridge.server.gateway.changes import FleetAct, read_changes

KEY = "a-long-key-of-the-operator"
HEADERS = {"authorization": f"Bearer {KEY}"}


def configured(replicas: dict[str, str], model: str = "", top: str = "") -> str:
    entries = "".join(f"      - {{name: {name}, {rest}}}\n" for name, rest in replicas.items())
    return f"{top}\nmodels:\n  m:\n{model}    replicas:\n{entries}"


def spec(replicas: dict[str, str], model: str = "", top: str = "") -> FleetSpec:
    return parse_config(configured(replicas, model, top), "weighbridge.yaml", Path())


ENTRIES = st.dictionaries(
    st.sampled_from("abcd"), st.sampled_from(["url: http://h:1", "url: http://h:2"]), min_size=1
)


@given(ENTRIES, ENTRIES)
def test_what_is_added_removed_and_changed_leads_from_one_to_the_other(
    before: dict[str, str], after: dict[str, str]
) -> None:
    one, two = spec(before), spec(after)
    found = difference(one, two)
    assert found.later == ()
    replicas = each(one.models[0])
    for model in found.models:
        for name in model.removed:
            del replicas[name]
        replicas.update({each_one.name: each_one for each_one in (*model.added, *model.changed)})
        assert model.spec == two.models[0]
        assert not {each_one.name for each_one in model.added} & set(before)
    assert replicas == each(two.models[0])
    assert bool(found.models) == (list(before.items()) != list(after.items()))


@pytest.mark.parametrize(
    ("before", "after", "later"),
    [
        (spec({"a": "url: http://h"}), spec({"a": "url: http://h"}, top="queue: {max_requests: 3}"), "queue"),
        (
            spec({"a": "url: http://h"}),
            spec({"a": "url: http://h"}, "    policy: random\n"),
            "models.m.policy",
        ),
        (
            spec({"a": "process: x", "b": "url: http://h"}),
            spec({"a": "process: y", "b": "url: http://h"}),
            "models.m.replicas.a",
        ),
    ],
)
def test_what_cannot_hold_at_once_is_named(before: FleetSpec, after: FleetSpec, later: str) -> None:
    found = difference(before, after)
    assert found.later == (later,)
    assert f"not until a restart: {later}" in found.in_words()


def test_aliases_hold_at_once() -> None:
    one = spec({"a": "url: http://h"})
    found = difference(one, spec({"a": "url: http://h"}, "    aliases: [n]\n"))
    assert (found.later, found.models[0].spec.aliases) == ((), ("n",))


class Served:
    """A gateway in a process of its own, over a file that a test rewrites."""

    def __init__(self, folder: Path) -> None:
        self.file, self.changes = folder / "weighbridge.yaml", folder / "changes.jsonl"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log"

    def write(self, replicas: dict[str, str], model: str = "") -> None:
        top = f"listen: 127.0.0.1:{self.port}\nadmin_key: {KEY}\nchanges_file: {self.changes}\n"
        top += "health: {interval: 0.05, slow_start: 0}\n"
        self.file.write_text(configured(replicas, model, top))

    @property
    def command(self) -> list[str]:
        command = f"exec {sys.executable} -m weighbridge serve --config {self.file} 2>{self.log}"
        return ["/bin/sh", "-c", command]


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path)


async def test_a_running_gateway_reads_its_file_again(served: Served) -> None:
    first, second, third = (Backend(name) for name in ("first", "second", "third"))
    first.gate = asyncio.Event()
    first.hold_after = 2
    async with all_served((first, second, third)), clients() as client:

        async def ask(method: str, path: str) -> tuple[int, Any]:
            async with client.request(method, served.url + path, headers=HEADERS) as answer:
                return answer.status, await answer.json()

        async def standing() -> dict[str, str]:
            _, told = await ask("GET", "/admin/replicas")
            return {one["name"]: one["standing"] for one in told["data"]}

        async def standing_is(wanted: dict[str, str]) -> None:
            for _ in range(2000):
                if await standing() == wanted:
                    return
                await asyncio.sleep(0.01)
            assert await standing() == wanted

        def at(backend: Backend) -> str:
            return f"url: '{backend.url}', dialect: weighbridge"

        served.write({"one": at(first), "two": at(second)})
        with running(served.command, 30) as process:
            while True:
                try:
                    if (await ask("GET", "/health"))[0] == 200:
                        break
                except OSError:
                    assert process.poll() is None, served.log.read_text()
                await asyncio.sleep(0.05)
            await standing_is({"one": "up", "two": "up"})
            body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
            streams = []
            while not first.running:  # one of the two has it
                streams.append(await client.post(served.url + "/v1/chat/completions", json=body))
                await asyncio.sleep(0.01)

            served.write({"two": at(second), "three": at(third)}, "    aliases: [other]\n")
            status, told = await ask("POST", "/admin/reload")
            assert (status, told["added"], told["removed"]) == (200, ["three"], ["one"])
            await standing_is({"one": "draining", "two": "up", "three": "up"})
            first.let_go()
            for stream in streams:
                assert events(await stream.read())[-1] == "[DONE]"
                stream.close()
            await standing_is({"two": "up", "three": "up"})
            async with client.post(
                served.url + "/v1/chat/completions", json={**body, "stream": False, "model": "other"}
            ) as answer:
                assert answer.status == 200

            served.file.write_text("models: {m: {replicas: [{urll: x}]}}")
            status, told = await ask("POST", "/admin/reload")
            assert status == 400
            assert "urll" in told["error"]["message"]
            await standing_is({"two": "up", "three": "up"})

            served.write({"two": at(third), "three": at(third)})  # another server behind the same name
            os.kill(process.pid, signal.SIGHUP)
            calls = len(second.calls)
            await until(
                lambda: "the configuration was read again by SIGHUP: changed two" in served.log.read_text()
            )
            for _ in range(4):
                async with client.post(
                    served.url + "/v1/chat/completions", json={**body, "stream": False}
                ) as answer:
                    assert answer.status == 200
            assert len(second.calls) == calls

            served.file.write_text("models: [")
            os.kill(process.pid, signal.SIGHUP)
            await until(lambda: "the one from before stays in use" in served.log.read_text())
            assert process.poll() is None
    lines = read_changes(served.changes)
    assert [one.act for one in lines] == [FleetAct.RELOAD, FleetAct.RELOAD]
    assert lines[0].changed_by == "operator at 127.0.0.1"
    assert lines[0].after == "added three; removed one"
    assert json.loads(served.changes.read_text().splitlines()[1])["changed_by"] == "SIGHUP"
