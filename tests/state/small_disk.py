"""Real faults of disks: a file system of a few kilobytes, or one that cannot be written, in a namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

_MOUNT = 'mount -t tmpfs -o "size=$2" none "$1" || exit 77; cd /; shift 2; exec "$@"'


@cache
def _can_mount() -> bool:
    tool = shutil.which("unshare")
    if tool is None:
        return False
    tried = subprocess.run(
        [tool, "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return tried.returncode == 0


#: For tests that need a disk of their own.
needs_own_disk = pytest.mark.skipif(
    not _can_mount(), reason="this system lets no test mount a disk of its own"
)


def run_on_disk(target: str, disk: Path, size: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `module:function` in a process that has a disk of that size at `disk`; nobody else sees it.

    The function is given the disk's path and the words.
    """
    disk.mkdir(exist_ok=True)
    module, _, function = target.partition(":")
    program = f"import sys; from {module} import {function}; {function}(*sys.argv[1:])"
    root = str(Path(__file__).parents[2])
    python = [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {program}"]
    command = ["unshare", "-rm", "sh", "-c", _MOUNT, "sh", str(disk), size, *python, str(disk), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def resize(disk: str, options: str) -> None:
    """Inside such a process: make the disk larger (`size=8m`), or read-only (`ro`)."""
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)
