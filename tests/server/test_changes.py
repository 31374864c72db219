"""What operators change at run time: written down first, told, and so again after a restart."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.fleet.backends import Backend, Front, all_served, fleet
from weighbridge.cli.app import app
from weighbridge.errors import BadInput
from weighbridge.server.gateway.changes import (
    ChangeLog,
    FleetAct,
    FleetChange,
    NotWritten,
    Standings,
    entry_of,
    read_changes,
)

KEY = "a-long-key-of-the-operator"
HEADERS = {"authorization": f"Bearer {KEY}"}


@asynccontextmanager
async def changed(file: Path, *backends: Backend, replicas: str = "") -> AsyncIterator[Front]:
    """A gateway that writes its changes to `file`."""
    text = f"admin_key: {KEY}\nchanges_file: '{file}'\nhealth: {{interval: 0.05, slow_start: 0}}\n"
    entries = replicas or f"[{{name: first, url: '{backends[0].url}', dialect: weighbridge}}]"
    async with fleet(config=f"{text}models: {{m: {{replicas: {entries}}}}}\n") as front:
        yield front


async def change(front: Front, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    async with front.client.request(method, front.url + path, json=body, headers=HEADERS) as answer:
        return answer.status, await answer.json()


def standing(front: Front) -> dict[str, bool]:
    """The replicas, and whether each is to rest."""
    return {
        name: member.draining
        for pool in front.gateway.pools.values()
        for name, member in pool.members.items()
    }


async def test_changes_are_told_and_made_again_after_a_restart(tmp_path: Path) -> None:
    file, first, second = tmp_path / "state" / "changes.jsonl", Backend("first"), Backend("second")
    async with all_served((first, second)):
        async with changed(file, first) as front:
            entry = {"url": second.url, "dialect": "weighbridge", "name": "second"}
            assert (await change(front, "POST", "/admin/replicas", entry))[0] == 201
            for name in ("third", "fourth"):
                assert (await change(front, "POST", "/admin/replicas", {**entry, "name": name}))[0] == 201
            assert (await change(front, "POST", "/admin/replicas/first/drain"))[0] == 200
            assert (await change(front, "POST", "/admin/replicas/second/drain"))[0] == 200
            assert (await change(front, "POST", "/admin/replicas/second/undrain"))[0] == 200
            assert (await change(front, "DELETE", "/admin/replicas/third"))[0] == 200
            assert (await change(front, "POST", "/admin/replicas/nobody/drain"))[0] == 404
            wanted = standing(front)
            assert wanted == {"first": True, "second": False, "fourth": False}
            _, told = await change(front, "GET", "/admin/changes")
        assert told["file"] == str(file)
        acts = [(one["act"], one["replica"], one["before"]) for one in reversed(told["data"])]
        assert acts == [
            ("add", "second", None),
            ("add", "third", None),
            ("add", "fourth", None),
            ("drain", "first", "takes requests"),
            ("drain", "second", "takes requests"),
            ("undrain", "second", "draining"),
            ("remove", "third", "takes requests"),
        ]
        assert {one["changed_by"] for one in told["data"]} == {"operator at 127.0.0.1"}
        assert file.stat().st_mode & 0o077 == 0
        async with changed(file, first) as front:
            assert standing(front) == wanted
            assert (await change(front, "GET", "/admin/changes?limit=1"))[1]["data"] == told["data"][:1]


async def test_where_the_configuration_names_the_same_it_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, first, second = tmp_path / "changes.jsonl", Backend("first"), Backend("second")
    async with all_served((first, second)):
        async with changed(file, first) as front:
            entry = {"url": second.url, "dialect": "weighbridge", "name": "second"}
            assert (await change(front, "POST", "/admin/replicas", entry))[0] == 201
            assert (await change(front, "DELETE", "/admin/replicas/first"))[0] == 200
        entries = f"[{{name: first, url: '{first.url}'}}, {{name: second, url: '{first.url}', dialect: weighbridge}}]"
        async with changed(file, replicas=entries) as front:
            members = front.gateway.pools["m"].members
            assert set(members) == {"first", "second"}
            assert members["second"].spec.target == first.url
    assert "had been added, and the configuration names it now" in caplog.text
    assert "had been removed, but the configuration names it" in caplog.text


async def test_what_cannot_be_written_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, first = tmp_path / "changes.jsonl", Backend("first")
    async with all_served((first,)), changed(file, first) as front:
        whole = file.read_bytes()

        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("weighbridge.server.gateway.changes.os.fsync", full)
        status, said = await change(front, "POST", "/admin/replicas/first/drain")
        assert (status, said["error"]["code"]) == (503, "change_not_written")
        assert standing(front) == {"first": False}
        assert file.read_bytes() == whole
        assert (await change(front, "GET", "/admin/changes"))[1]["data"] == []


@pytest.mark.parametrize("field", ["key", "headers"])
async def test_secrets_are_not_written_down(tmp_path: Path, field: str) -> None:
    file, first = tmp_path / "changes.jsonl", Backend("first")
    value = "s3cret-of-a-replica"
    secret: Any = value if field == "key" else {"x-key": value}
    async with all_served((first,)):
        async with changed(file, first) as front:
            entry = {"url": first.url, "dialect": "weighbridge", "name": "second", field: secret}
            assert (await change(front, "POST", "/admin/replicas", entry))[0] == 201
            _, told = await change(front, "GET", "/admin/changes")
            assert value not in str(told)
        assert value not in file.read_text()
        async with changed(file, first) as front:
            assert set(standing(front)) == {"first"}


def test_an_account_in_an_address_is_a_secret() -> None:
    entry, words = entry_of({"url": "http://ann:s3cret@h:1", "name": "x"})
    assert entry is None
    assert "s3cret" not in words


_CHANGES = st.lists(st.tuples(st.sampled_from(FleetAct), st.sampled_from("abc")), max_size=20)


@given(_CHANGES, st.integers(0, 20))
def test_a_log_that_was_read_comes_to_the_same_as_one_that_was_written(
    changes: list[tuple[FleetAct, str]], torn: int
) -> None:
    """Also where a process was killed while it wrote a line."""
    with tempfile.TemporaryDirectory() as folder:
        file, whole = Path(folder) / "changes.jsonl", Standings()
        written = ChangeLog(file)
        for number, (act, name) in enumerate(changes):
            one = FleetChange(float(number), "operator", act, name, "m", None, "x", {"url": "http://h"})
            written.write(one)
            whole.take(one)
            if number == torn:
                with file.open("ab") as half:
                    half.write(b'{"schema": 1, "at":')
        again = ChangeLog(file)
        assert again.standing == written.standing == whole
        assert again.latest(100) == written.latest(100)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text('{"schema": 1, "prompt_hash": "x"}\n')
    with pytest.raises(BadInput, match="no change of a fleet"):
        ChangeLog(file)
    with pytest.raises(BadInput):
        ChangeLog(tmp_path / "other.jsonl" / "below")


def test_the_command_reads_a_file(tmp_path: Path) -> None:
    file = tmp_path / "changes.jsonl"
    log = ChangeLog(file)
    log.write(
        FleetChange(0.0, "operator at ::1", FleetAct.DRAIN, "far\x1b[31m", "m", "takes requests", "draining")
    )
    result = CliRunner().invoke(app, ["audit", str(file)])
    assert result.exit_code == 0
    shown = result.stdout
    assert "1970-01-01 00:00:00" in shown
    assert "takes requests" in shown
    assert "\x1b[31m" not in shown
    assert [one.replica for one in read_changes(file)] == ["far\x1b[31m"]
    log.path = tmp_path / "gone" / "changes.jsonl"
    with pytest.raises(NotWritten):
        log.write(FleetChange(1.0, "operator", FleetAct.DRAIN, "x", "m", None, None))
