"""Walk through a page as a reader would: write its files, start its servers, run its commands, compare what they say.

python tools/walk.py docs/guide/start.md [--section "A plan"] [--replace qwen2.5-coder-1.5b=qwen2.5-coder-0.5b]
python tools/walk.py --count        # how many blocks of commands README and the guides have, and which are not run

A block of bash is run. One of "bash serve PORT" is started, and the walk goes on when the server is ready; it ends
with its section. "yaml NAME" and "python NAME" are files, as are those of json and jsonl. Each line of text must be
in what the block before it printed, where "…" stands for anything. It all happens in an empty folder, at other ports
than the page's, which may be in use. Text that has a word behind its language is no output. "bash not run: WHY" is
for readers alone; why is a cloud, a cluster or a GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: The pages whose commands people are meant to type.
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md")))
#: What "not run:" may be followed by.
EXCUSES = ("a cloud", "a cluster", "a GPU")

#: Seconds that a block may take, and a server until it is ready.
LONGEST, READY_WITHIN = 300.0, 300.0

_FENCE = re.compile(r"^```(\w*) ?(.*)$")
_FILES = ("yaml", "python", "json", "jsonl", "csv")


class Stumbled(Exception):
    """A block did not do what the page says; the message begins with its place."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code. `more`: what stands behind the language."""

    place: str
    section: str
    language: str
    more: str
    text: str

    @property
    def serves(self) -> bool:
        return self.language == "bash" and self.more.startswith("serve ")

    @property
    def is_left_out(self) -> bool:
        return self.language == "bash" and self.more.startswith("not run: ")

    @property
    def is_file(self) -> bool:
        return self.language in _FILES and bool(self.more)


def blocks(name: str, page: str) -> Iterator[Block]:
    """The blocks of a page that say in which language they are."""
    section, begun = "", 0
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None and line.startswith("## "):
            section = line[3:].strip()
        if fence and opened is None:
            opened, lines, begun = fence, [], number
        elif fence and opened is not None:
            if opened[1]:
                yield Block(f"{name}:{begun}", section, opened[1], opened[2].strip(), "\n".join(lines) + "\n")
            opened = None
        elif opened is not None:
            lines.append(line)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Walk:
    """One walk through the blocks of a page, in a folder."""

    def __init__(self, folder: Path, found: Sequence[Block], replace: Mapping[str, str]) -> None:
        self._folder = folder
        self._replace = replace
        self._ports = {one.more.split()[1]: free_port() for one in found if one.serves}
        self._printed = ""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self._environment = {**os.environ, "PATH": path, "COLUMNS": "160"}
        if "8080" in self._ports:  # where commands look that name no server
            self._environment["WEIGHBRIDGE_URL"] = f"http://127.0.0.1:{self._ports['8080']}"

    def section(self, name: str, found: Sequence[Block]) -> float:
        """Walk through one section; return the seconds it took. Raises Stumbled."""
        began = time.monotonic()
        with ExitStack() as servers:
            for block in found:
                self._step(block, servers)
        return time.monotonic() - began

    def _step(self, block: Block, servers: ExitStack) -> None:
        text = block.text
        for old, new in self._replace.items():
            text = text.replace(old, new)
        if block.is_left_out:
            return
        if block.is_file:
            (self._folder / block.more).write_text(self._ported(text), encoding="utf-8")
        elif block.serves:
            servers.enter_context(self._serving(block, text, block.more.split()[1]))
        elif block.language == "bash":
            self._printed = self._run(block, text)
        elif block.language == "text" and not block.more:
            self._compare(block, self._ported(text))

    def _ported(self, text: str) -> str:
        for port, ours in self._ports.items():
            text = re.sub(rf"\b{port}\b", str(ours), text)
        return text

    @contextmanager
    def _serving(self, block: Block, text: str, port: str) -> Iterator[None]:
        command = _started(text.split("  #")[0].strip(), self._ports[port])
        said = self._folder / f"server-{port}.log"
        with open(said, "wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait(block, process, f"http://127.0.0.1:{self._ports[port]}/health/ready", said)
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does: make leaves its child to it
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)

    def _wait(self, block: Block, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        until = time.monotonic() + READY_WITHIN
        while time.monotonic() < until and process.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except (OSError, urllib.error.URLError):
                time.sleep(0.2)
        said = log.read_text(encoding="utf-8", errors="replace")
        raise Stumbled(f"{block.place}: the server was not ready within {READY_WITHIN:g} s:\n{said}")

    def _run(self, block: Block, text: str) -> str:
        try:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", self._ported(text)],
                cwd=self._folder,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=LONGEST,
            )
        except subprocess.TimeoutExpired as error:
            raise Stumbled(f"{block.place}: takes longer than {LONGEST:g} s") from error
        if done.returncode:
            raise Stumbled(f"{block.place}: ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def _compare(self, block: Block, text: str) -> None:
        for line in text.splitlines():
            pattern = r"[^\n]*".join(re.escape(part.strip()) for part in line.split("…"))
            if not re.search(pattern.replace(r"\ ", r"\s+"), self._printed):
                raise Stumbled(f"{block.place}: nothing like {line!r} is in what was said:\n{self._printed}")


def _started(command: str, port: int) -> str:
    """A command of a page that serves, at a port of ours."""
    if command == "make serve":
        return f'exec make --directory {ROOT} serve ARGS="--port {port}"'
    return f"exec {command} --port {port}"


def sections(page: Path) -> list[str]:
    """The sections of a page that have something to run."""
    found = blocks(page.name, page.read_text(encoding="utf-8"))
    return list(dict.fromkeys(one.section for one in found if one.language == "bash" and not one.is_left_out))


@dataclass(frozen=True, slots=True)
class Count:
    """The blocks of commands of a page: how many are run, and those that are not, with the reason."""

    run: int
    left_out: tuple[tuple[str, str], ...]

    @property
    def all(self) -> int:
        return self.run + len(self.left_out)


def count(page: Path) -> Count:
    found = [one for one in blocks(page.name, page.read_text(encoding="utf-8")) if one.language == "bash"]
    left_out = tuple((one.place, one.more.removeprefix("not run: ")) for one in found if one.is_left_out)
    return Count(len(found) - len(left_out), left_out)


def walk(page: Path, only: str | None = None, replace: Mapping[str, str] | None = None) -> dict[str, float]:
    """Walk through a page, or one section of it; return the seconds that each took. Raises Stumbled."""
    found = [
        one for one in blocks(page.name, page.read_text(encoding="utf-8")) if only in (None, one.section)
    ]
    sections = dict.fromkeys(one.section for one in found)
    with tempfile.TemporaryDirectory() as folder:
        going = Walk(Path(folder), found, replace or {})
        return {name: going.section(name, [one for one in found if one.section == name]) for name in sections}


def _print_counts() -> None:
    counts = {page: count(page) for page in PAGES}
    for page, one in counts.items():
        print(f"{one.run:4} of {one.all:3} blocks are run  {page.relative_to(ROOT)}")
        for place, why in one.left_out:
            print(f"       not run: {place}: {why}")
    run, every = sum(one.run for one in counts.values()), sum(one.all for one in counts.values())
    print(f"{run:4} of {every:3} blocks are run, {run / max(every, 1):.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path, nargs="?")
    parser.add_argument(
        "--count", action="store_true", help="count blocks of commands, and say which are not run"
    )
    parser.add_argument("--section", help="this one alone")
    parser.add_argument(
        "--replace", action="append", default=[], metavar="OLD=NEW", help="in blocks; may repeat"
    )
    given = parser.parse_args()
    if given.count or given.page is None:
        _print_counts()
        return
    try:
        took = walk(given.page, given.section, dict(one.split("=", 1) for one in given.replace))
    except Stumbled as error:
        sys.exit(f"stumbled at {error}")
    for name, seconds in took.items():
        print(f"{seconds:6.1f} s  {name or 'before the first section'}")


if __name__ == "__main__":
    main()
