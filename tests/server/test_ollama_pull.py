"""`/api/pull`: a model of the catalogue comes into this machine's cache, or a sentence says why not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.backends import Backend, Front, fleet
from weighbridge.models.catalogue.entries import DEFAULT
from weighbridge.models.catalogue.store import model_file

KEYS = "admin_key: the-key-of-the-operator\ntenants: {alice: {key: the-long-key-of-alice}}"


async def pulled(front: Front, key: str = "", **fields: Any) -> tuple[int, list[dict[str, Any]]]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": DEFAULT.name, **fields}
    async with front.client.post(front.url + "/api/pull", json=body, headers=headers) as answer:
        return answer.status, [json.loads(line) for line in (await answer.read()).splitlines()]


async def test_what_is_in_the_cache_needs_no_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    file = model_file(DEFAULT)
    file.parent.mkdir(parents=True)
    file.touch()
    os.truncate(file, DEFAULT.size)
    async with fleet(Backend("a")) as front:
        status, lines = await pulled(front)
        whole = await pulled(front, stream=False, model="default:latest")
    assert status == 200
    assert lines[0] == {"status": "pulling manifest"}
    assert lines[1]["digest"] == f"sha256:{DEFAULT.sha256}"
    assert f"weighbridge serve {DEFAULT.name}" in lines[-2]["status"]
    assert lines[-1] == {"status": "success"}
    assert whole == (200, [{"status": "success"}])


async def test_a_download_that_fails_says_so_and_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    async with fleet(Backend("a")) as front:
        status, lines = await pulled(front)
    assert status == 200  # the stream had begun
    assert lines[-1]["error"].startswith("pull: ")
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if name.endswith(".gguf")]


async def test_what_is_put_on_this_disk_is_the_operators_where_keys_are_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    async with fleet(Backend("a"), top=KEYS) as front:
        status, [refused] = await pulled(front, "the-long-key-of-alice")
        assert (status, list(refused)) == (401, ["error"])
        assert await pulled(front, "the-long-key-of-alice", model="m") == (
            200,
            [{"status": "pulling manifest"}, {"status": "success"}],
        )
    assert not os.listdir(tmp_path)
