"""The wheel and the sdist of this tree, what is in them unpacked beside nothing else, and the commands there."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import typer

ROOT = Path(__file__).parents[2]

#: Runs the installed command with the package of the wheel before everything, without the checkout's own finder.
#: `site` is left out: it is what brings the checkout in.
_RUN = """
import sys
sys.path[:0] = [{package!r}]
sys.path.append({libraries!r})
for name in {blocked!r}:
    sys.modules[name] = None
sys.argv = ["weighbridge", *sys.argv[1:]]
from weighbridge.cli import main
main()
"""


def build_wheel(folder: Path, source: Path = ROOT, *, compiled: bool = True) -> Path:
    """Build as `pip install` does, with the compiled parts of earlier builds where nothing of them changed."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    command += [] if compiled else ["--config-settings=wheel.cmake=false"]
    subprocess.run(command, check=True, timeout=900, cwd=folder)
    [wheel] = folder.glob("weighbridge-*.whl")
    return wheel


def build_sdist(folder: Path) -> Path:
    """Build the source distribution, as `python -m build --sdist` does."""
    hook = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", hook, str(folder)], check=True, timeout=300, cwd=ROOT)
    [sdist] = folder.glob("weighbridge-*.tar.gz")
    return sdist


def unpack_sdist(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [tree] = folder.iterdir()
    return tree


def unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def command(package: Path, *words: str, without: tuple[str, ...] = ()) -> list[str]:
    """The words that run the unpacked command; `without`: modules that cannot be imported there."""
    text = _RUN.format(package=str(package), libraries=str(Path(typer.__file__).parents[1]), blocked=without)
    return [sys.executable, "-S", "-c", text, *words]


def run(package: Path, *words: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(package, *words, without=without),
        capture_output=True,
        text=True,
        timeout=110,
        cwd=package,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
