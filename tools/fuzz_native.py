"""Build the fuzz target of the compiled layer with clang's libFuzzer, as it is or without one of its checks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fuzz.planted import NativeBug

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "src" / "weighbridge" / "models" / "compute" / "kernels" / "native"
TARGET = ROOT / "tests" / "fuzz" / "native"
_NUMBERED = re.compile(r"clang\+\+-(\d+)")
MISSING = (
    "the native target needs clang with libFuzzer and OpenMP: "
    "apt-get install clang-16 libclang-rt-16-dev libomp-16-dev"
)
#: Of what the compiler says.
_MOST_WORDS = 4000


class NotBuilt(Exception):
    """The compiled target could not be built."""


def compiler() -> str | None:
    """Return clang++, or the newest of those with a number behind their name; None: there is none."""
    if plain := shutil.which("clang++"):
        return plain
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    found = [
        (int(match[1]), str(file))
        for folder in folders
        if folder.is_dir()
        for file in folder.iterdir()
        if (match := _NUMBERED.fullmatch(file.name))
    ]
    return max(found)[1] if found else None


def build(folder: Path, bug: NativeBug | None = None) -> Path:
    """Return the program. All of them are built in `folder`, so that one without a check takes one file more."""
    clang = compiler()
    if clang is None:
        raise NotBuilt(MISSING)
    planted = "" if bug is None else str(_without(folder / "planted", bug))
    tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    options = [f"-DCMAKE_CXX_COMPILER={clang}", f"-DNATIVE={NATIVE}", f"-DPLANTED={planted}"]
    options += ["-DCMAKE_BUILD_TYPE=None"]
    for command in (["-S", TARGET, "-B", folder, "-G", "Ninja", *options], ["--build", folder]):
        done = subprocess.run(["cmake", *command], env=tools, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotBuilt(f"{done.stdout}{done.stderr}"[-_MOST_WORDS:])
    made = folder / "programs" / (Path(planted).parent.name or "whole")
    made.parent.mkdir(exist_ok=True)
    return Path(shutil.copy2(folder / "fuzz_native", made))


def _without(folder: Path, bug: NativeBug) -> Path:
    """Write a file without its check; it is not built again while it stays the same."""
    text = (NATIVE / bug.file).read_text(encoding="utf-8")
    assert text.count(bug.code) == 1, f"{bug.file} has {bug.code!r} {text.count(bug.code)} times, not once"
    made = folder / re.sub(r"\W+", "-", f"{bug.file} {bug.code}") / bug.file
    made.parent.mkdir(parents=True, exist_ok=True)
    text = text.replace(bug.code, bug.instead)
    if not made.exists() or made.read_text(encoding="utf-8") != text:
        made.write_text(text, encoding="utf-8")
    return made
