"""An environment for each set of packages, kept outside of the repository: made once, and anew for other versions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from tests.clients.lane.table import Client

#: Seconds that an installation may take.
PATIENCE = 900.0
_MADE = "made"


def cache() -> Path:
    """Where environments are: `WEIGHBRIDGE_CLIENTS`, or a folder of the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("WEIGHBRIDGE_CLIENTS") or Path(home) / "weighbridge-clients")


def environment_of(client: Client) -> Path:
    return npm_folder(client.packages) if client.is_node else python_of(client.packages).parents[1]


def python_of(packages: Sequence[str]) -> Path:
    """The interpreter of an environment that has these packages, and what they need, alone."""
    folder = _place(packages)
    python = folder / "bin" / "python"
    if not (folder / _MADE).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
        (folder / _MADE).touch()
    return python


def npm_folder(packages: Sequence[str], *, scripts: bool = False) -> Path:
    """A folder with `node_modules` of these packages; no script of theirs has run unless `scripts` are asked for, as
    programs need them that come as one for each machine."""
    folder = _place(packages)
    if not (folder / _MADE).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text("{}")
        flags = ["--no-audit", "--no-fund", "--loglevel=error", *([] if scripts else ["--ignore-scripts"])]
        _run(["npm", "install", *flags, *packages], folder)
        (folder / _MADE).touch()
    return folder


def _place(packages: Sequence[str]) -> Path:
    named = f"{sys.version_info.major}.{sys.version_info.minor}\n" + "\n".join(packages)
    first = packages[0].strip("@").split("@")[0].split("==")[0].replace("/", "-").split("[")[0]
    return cache() / f"{first}-{sha256(named.encode()).hexdigest()[:12]}"


def _run(words: list[str], folder: Path | None = None) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stderr[-3000:]}")
