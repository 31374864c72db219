"""A Containerfile carried out step by step with debootstrap and chroot, where there is nobody to build images.

python -m tests.deploy.container        # build deploy/Containerfile's image, say what each step took and what it weighs

Each stage is a root directory of its own, a Debian with Python in place of `python:3.11-slim-bookworm`. Commands see
that directory, processes of their own and no package index: what pip would fetch is downloaded before, by the pip of
this machine (so PIP_FIND_LINKS may hand in a wheel of torch for CPUs), and lies at /wheels.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "Containerfile"
#: The Debian that images are of, and what it takes to be `python:3.11-slim`: that image has the headers too.
RELEASE, MIRROR = "bookworm", "http://deb.debian.org/debian"
PYTHON = ("ca-certificates", "python-is-python3", "python3", "python3-dev", "python3-venv")
#: What commands are given beside the file's own ENV; the wheels are mounted there.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": "/wheels",
}
#: Seconds that a step may take: the longest compiles the kernels and unpacks torch.
LONGEST = 900


def lacking() -> str:
    """Why it cannot be done here; empty: it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "chroot takes root on Linux"
    gone = [name for name in ("debootstrap", "unshare", "chroot") if shutil.which(name) is None]
    return f"{', '.join(gone)} of Debian's packages is not here" if gone else ""


@dataclass(frozen=True, slots=True)
class Step:
    """An instruction of the file. `line`: where it begins."""

    line: int
    keyword: str
    words: str


def steps(text: str) -> Iterator[Step]:
    """The instructions, with continued lines joined and comments left out."""
    begun, parts = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        begun = begun if parts else number
        parts.append(line.removesuffix("\\").strip())
        if not line.endswith("\\"):
            keyword, _, words = " ".join(parts).partition(" ")
            yield Step(begun, keyword, words)
            parts = []


@dataclass(slots=True)
class Stage:
    """A root directory, and what is set for the commands that run in it."""

    root: Path
    wheels: Path
    environment: dict[str, str] = field(default_factory=lambda: dict(ENVIRONMENT))
    folder: str = "/"
    user: str = "root"
    entrypoint: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)  # CMD
    stops_by: str = "SIGTERM"

    def command(self, words: list[str]) -> list[str]:
        """The words that run a command in it, among processes of its own; what is mounted goes with them."""
        mounts = 'mount --bind "$1" "$0/wheels"; mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"'
        script = f'set -e; {mounts}; cd /; exec chroot --userspec="$2" "$0" /bin/sh -c "$3" "$@"'
        enters = f'shift 2; cd {shlex.quote(self.folder)}; exec "$@"'
        inside = [str(self.root), str(self.wheels), self.user, enters]
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]
        return [*own, *inside, *words]

    def run(self, words: list[str]) -> str:
        """Run a command to its end; what it printed. Raises CalledProcessError."""
        done = subprocess.run(
            self.command(words), env=self.environment, capture_output=True, text=True, timeout=LONGEST
        )
        if done.returncode:
            sys.stderr.write(done.stdout + done.stderr)
        done.check_returncode()
        return done.stdout

    def inside(self, path: str) -> Path:
        """Where a path of the stage is for us."""
        return self.root / os.path.join(self.folder, path).lstrip("/")


class Build:
    """Carries out the instructions of a file. `took`: seconds of each, by its line."""

    def __init__(self, folder: Path, context: Path = ROOT) -> None:
        self._folder = folder
        self._context = context
        self._stages: dict[str, Stage] = {}
        self._wheels = folder / "wheels"
        self._base: Path | None = None
        self.took: dict[str, float] = {}

    def run(self, text: str) -> Stage:
        """The last stage."""
        with self._timed("wheels that are handed in"):
            download(self._wheels)
        stage: Stage | None = None
        for step in steps(text):
            with self._timed(f"{step.line}: {step.keyword} {step.words}"):
                if step.keyword == "FROM":
                    stage = self._from(step)
                else:
                    assert stage is not None, f"line {step.line}: {step.keyword} stands before FROM"
                    self._do(stage, step)
        assert stage is not None, "there is no FROM"
        return stage

    def report(self, image: Stage) -> str:
        """What each step took, and what the image weighs."""
        lines = [f"{seconds:7.1f} s   {name[:90]}" for name, seconds in self.took.items()]
        lines.append(f"{sum(self.took.values()):7.1f} s   in all")
        whole, ours = size_of(image.root), size_of(image.inside("/opt/weighbridge"))
        lines.append(f"{whole / 1e6:7.0f} MB  unpacked, of it {ours / 1e6:.0f} MB in /opt/weighbridge")
        return "\n".join(lines)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.took[name] = time.monotonic() - began

    def _from(self, step: Step) -> Stage:
        """A new stage over a fresh Debian; `AS NAME` names it."""
        image, _, name = step.words.partition(" AS ")
        assert image.endswith(f"-{RELEASE}"), f"line {step.line}: {image} is not of {RELEASE}"
        if self._base is None:
            self._base = bootstrap(self._folder / "debian")
        root = self._folder / f"stage-{len(self._stages)}"
        subprocess.run(["cp", "-a", "--reflink=auto", str(self._base), str(root)], check=True)
        stage = Stage(root, self._wheels)
        self._stages[name or str(len(self._stages))] = stage
        return stage

    def _do(self, stage: Stage, step: Step) -> None:
        match step.keyword:
            case "RUN":
                stage.run(["/bin/sh", "-c", step.words])
            case "WORKDIR":
                stage.folder = step.words
                stage.inside("").mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(stage, step.words)
            case "USER":
                stage.user = step.words
            case "ENV":
                for word in shlex.split(step.words):
                    name, _, value = word.partition("=")
                    stage.environment[name] = expanded(value, stage.environment)
            case "ENTRYPOINT":
                stage.entrypoint = json.loads(step.words)
            case "CMD":
                stage.words = json.loads(step.words)
            case "STOPSIGNAL":
                stage.stops_by = step.words
            case "EXPOSE":
                pass  # says a port to readers
            case _:
                raise AssertionError(f"line {step.line}: {step.keyword} is not known here")

    def _copy(self, stage: Stage, words: str) -> None:
        """Of the context only what is tracked, as a clean clone has it."""
        *sources, to = words.split()
        if sources[0].startswith("--from="):
            other = self._stages[sources.pop(0).removeprefix("--from=")]
            for source in sources:
                subprocess.run(["cp", "-a", str(other.inside(source)), str(stage.inside(to))], check=True)
            return
        assert to == "./" or sources == [to], f"COPY {words}: what is copied keeps its name here"
        listed = subprocess.run(
            ["git", "ls-files", *sources], cwd=self._context, capture_output=True, text=True, check=True
        )
        for name in listed.stdout.splitlines():
            target = stage.inside(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self._context / name, target)


def expanded(value: str, environment: Mapping[str, str]) -> str:
    """A value with the variables in it."""
    return re.sub(r"\$(\w+)", lambda found: environment[found[1]], value)


def bootstrap(root: Path) -> Path:
    """A small Debian with Python, and the settings of this machine's apt for where packages come from."""
    include = f"--include={','.join(PYTHON)}"
    command = ["debootstrap", "--variant=minbase", include, RELEASE, str(root), MIRROR]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    settings = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True)
    (root / "etc/apt/apt.conf.d/99of-this-machine").write_text(settings.stdout, encoding="utf-8")
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    (root / "wheels").mkdir()
    return root


def download(folder: Path) -> None:
    """Fetch what the steps install: the package's own dependencies and what builds it, in the pinned versions."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.search(r"'\.\[(.*?)\]'", FILE.read_text(encoding="utf-8"))
    wanted = [*told["dependencies"], "scikit-build-core", "nanobind", "ninja", "cmake"]
    wanted.append("async-timeout")  # redis asks for it below Python 3.11.3, as Debian's is
    for extra in extras[1].split(",") if extras else ():
        wanted += told["optional-dependencies"][extra]
    command = [sys.executable, "-m", "pip", "download", "-qqq", "--dest", str(folder)]
    command += ["-c", str(ROOT / "constraints.txt"), *wanted]
    subprocess.run(command, check=True, timeout=LONGEST)


def size_of(path: Path) -> int:
    """Bytes on disk below a path."""
    done = subprocess.run(["du", "-sxB1", str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def main() -> None:
    if why := lacking():
        sys.exit(why)
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        build = Build(Path(folder))
        image = build.run(FILE.read_text(encoding="utf-8"))
        print(build.report(image))


if __name__ == "__main__":
    main()
