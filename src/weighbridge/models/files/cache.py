"""What is worked out once and kept: JSON records under Weighbridge's home, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from weighbridge.state.documents import replace_file


def weighbridge_home() -> Path:
    """Return where pulled models and caches live: WEIGHBRIDGE_HOME, or weighbridge under the XDG cache."""
    home = os.environ.get("WEIGHBRIDGE_HOME")
    if home:
        return Path(home).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "weighbridge"


def fingerprint(files: Iterable[Path]) -> str:
    """Hex of a hash over names, sizes and modification times: changes when a file does."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def load_record(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in `path`, or None when there is none or it cannot be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def save_record(path: Path, record: dict[str, Any]) -> None:
    """Write `record` in one rename. Raises OSError when the directory cannot be written."""
    replace_file(path, json.dumps(record).encode())
