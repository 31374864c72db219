"""Other Pythons of this machine, and environments of theirs without torch, made as `deploy/README.md` says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.install.wheel import ROOT

#: What the package is for beside the Python that the tests run on.
VERSIONS = ("3.12", "3.13")


def python_of(version: str) -> Path | None:
    """The Python of a version, on the PATH or among pyenv's; None: there is none that can make an environment."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    named = shutil.which(f"python{version}")
    found = [Path(named)] if named else []
    for one in [*found, *sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)]:
        ask = [str(one), "-c", "import ensurepip, venv, sys; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(ask, capture_output=True, text=True, timeout=60)
        if (
            done.returncode == 0 and done.stdout.strip() == version
        ):  # pyenv's shims are there for all, and refuse
            return one
    return None


def lacking(version: str) -> str:
    """What to install for the proofs of a version; empty: it is here."""
    if python_of(version) is not None:
        return ""
    return (
        f"needs Python {version} with venv: `apt install python{version}-venv`, or `pyenv install {version}`"
    )


@dataclass(frozen=True, slots=True)
class WithoutTorch:
    """An environment in which the package is installed, but for torch and transformers."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def command(self, *words: str) -> list[str]:
        """The installed command, which shows every warning."""
        return [str(self.python), "-W", "default", str(self.folder / "bin" / "weighbridge"), *words]

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            timeout=110,
            cwd=self.folder,
            env={**os.environ, **environment},
        )

    def said(self, program: str) -> str:
        """What a Python program prints there."""
        words = [str(self.python), "-c", program]
        return subprocess.run(
            words, check=True, capture_output=True, text=True, timeout=110, cwd=self.folder
        ).stdout.strip()


def wheel_of(python: Path, folder: Path) -> Path:
    """The wheel of this tree that a Python's own pip builds, its build tools fetched as for anybody."""
    builder = folder / "builder"
    subprocess.run([str(python), "-m", "venv", str(builder)], check=True, timeout=300)
    command = [str(builder / "bin" / "python"), "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=1700, env=_pip())
    [wheel] = folder.glob("weighbridge-*.whl")
    return wheel


def _pip() -> dict[str, str]:
    """The versions of everything that are ours."""
    return {
        **os.environ,
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def install(built: Path, python: Path, folder: Path) -> WithoutTorch:
    """Carry out the steps of `deploy/README.md`, with a wheel or an sdist in place of the tree."""
    text = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^## Without torch\n.*?^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found is not None, "deploy/README.md has no steps any more"
    steps = found[1].replace("/opt/weighbridge", str(folder))
    for written, here in (("python3 -m venv", f"{python} -m venv"), ("--no-deps .", f"--no-deps {built}")):
        assert steps.count(written) == 1, written
        steps = steps.replace(written, here)
    folder.mkdir()
    done = subprocess.run(
        ["bash", "-euc", steps],
        cwd=folder,
        env=_pip(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stdout
    return WithoutTorch(folder)
