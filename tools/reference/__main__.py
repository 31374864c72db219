"""Make the pages under docs/reference from the code.

python -m tools.reference            # say which pages are stale; exit code 1 if any is
python -m tools.reference --write    # write them anew
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tools.reference import commands, configuration, environment, flows, http, metrics

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "reference"

#: Each page by its file.
PAGES: Mapping[str, Callable[[], str]] = {
    "cli.md": commands.page,
    "configuration.md": configuration.page,
    "http.md": http.page,
    "metrics.md": metrics.page,
    "environment.md": environment.page,
    "flow.md": flows.page,
}


def stale(folder: Path = FOLDER) -> list[str]:
    """The pages that are not as the code is now."""
    return [
        name
        for name, made in PAGES.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != made()
    ]


def write(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in PAGES.items():
        (folder / name).write_text(made(), encoding="utf-8")


def main(words: Sequence[str]) -> int:
    if "--write" in words:
        write()
    found = stale()
    for name in found:
        print(f"docs/reference/{name} is not as the code is; run python -m tools.reference --write")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
