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
    """Return the program, built in `folder`."""
    clang = compiler()
    if clang is None:
        raise NotBuilt(MISSING)
    sources = NATIVE if bug is None else _without(folder / "sources", bug)
    tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    options = [f"-DCMAKE_CXX_COMPILER={clang}", f"-DNATIVE={sources}", "-DCMAKE_BUILD_TYPE=None"]
    for command in (["-S", TARGET, "-B", folder, "-G", "Ninja", *options], ["--build", folder]):
        done = subprocess.run(["cmake", *command], env=tools, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotBuilt(f"{done.stdout}{done.stderr}"[-_MOST_WORDS:])
    return folder / "fuzz_native"


def _without(folder: Path, bug: NativeBug) -> Path:
    """Copy the sources to `folder`, without a check; files that stay the same are not built again."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(NATIVE.glob("*.*")):
        text = file.read_text(encoding="utf-8")
        if file.name == bug.file:
            assert text.count(bug.code) == 1, (
                f"{bug.file} has {bug.code!r} {text.count(bug.code)} times, not once"
            )
            text = text.replace(bug.code, bug.instead)
        copy = folder / file.name
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")
    return folder
