"""What an agent is asked to do: repair a function of a small file, and run the test that tells whether it is right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: The address is what a redacting route must take out, and put back.
FILE, TEST, RECIPIENT = "scales.py", "check.py", "mara.lindqvist@example.org"
WRONG, RIGHT = "return gross + tare", "return gross - tare  # asked: {who}"
SOURCE = f'"""Scales. Questions to {RECIPIENT}."""\n\n\ndef net(gross, tare):\n    {WRONG}\n'
CHECK = (
    "import scales\n\nassert scales.net(12, 5) == 7, scales.net(12, 5)\nassert scales.__doc__.endswith("
    f"{RECIPIENT + '.'!r})\nprint('weighed right')\n"
)
TASK = f"In {FILE}, net() is wrong. Repair it, and run `python3 {TEST}` to see that it is right."


def laid_out(place: Path) -> tuple[Path, Path]:
    """A folder with the task in it and an empty home, in an empty folder."""
    work, home = place / "work", place / "home"
    for folder in (work, home):
        folder.mkdir()
    (work / FILE).write_text(SOURCE, encoding="utf-8")
    (work / TEST).write_text(CHECK, encoding="utf-8")
    return work, home


def checked(work: Path) -> str:
    """What the test says now, by a run of our own; nothing where it fails. What stands in the folder beside it, and
    what it imports, is the agent's: it gets no environment and half a minute."""
    done = subprocess.run(
        [sys.executable, TEST], cwd=work, env={}, capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout.strip()
