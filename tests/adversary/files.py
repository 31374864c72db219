"""Hostile files: models, tables and tokenizers, given one after another to the loaders of one process.

Now and then one is given to `weighbridge serve`, which must say in a line what is wrong, and end.
"""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.adversary.programs import Task, attend, report
from tests.fuzz.changes import changed
from tests.fuzz.targets import target
from tests.models.test_hostile_gguf import HEADERS

LOADERS = [target(name) for name in ("safetensors", "gguf", "tokenizer", "template")]
#: Seconds between two servers that are started over a hostile file.
EVERY = 20.0
#: And for one to end: it is as nice as whoever starts it.
STARTING = 240.0


def serve(file: Path) -> str:
    """Start a server over a file; returns how it ended."""
    command = [sys.executable, "-m", "weighbridge", "serve", str(file), "--port", "0"]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=STARTING, check=False)
    except subprocess.TimeoutExpired:
        return "served too long"
    said = ended.stderr.decode("utf-8", "replace") + ended.stdout.decode("utf-8", "replace")
    if ended.returncode != 2 or "Traceback" in said:
        return f"served with code {ended.returncode}: {said[-300:]}"
    return "served not"


def main(task: Task) -> dict[str, Any]:
    draw, next_server, done = random.Random(task.seed), time.monotonic() + 2.0, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        while task.left:
            chosen = draw.choice(LOADERS)
            chosen.run(changed(draw.choice(chosen.seeds()), chosen.words, draw))
            done[chosen.name] += 1
            if time.monotonic() > next_server and task.left > 10.0:
                file = Path(folder) / "hostile.gguf"
                file.write_bytes(HEADERS[draw.choice(sorted(HEADERS))][0])
                done[serve(file)] += 1
                next_server = time.monotonic() + EVERY
    return report(done)


if __name__ == "__main__":
    logging.disable()  # what is hostile is warned of
    attend(main)
