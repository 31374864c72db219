"""The page of cases names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "measured" / "cases.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([a-z_/]+\.py)(?:::(test_\w+))?`", PAGE)))


def test_there_are_many() -> None:
    assert len(NAMED) > 150


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED if not file.startswith("benchmarks/")}))
def test_a_test_that_is_named_is_there(file: str) -> None:
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    missing = [name for one, name in NAMED if one == file and name and f"def {name}(" not in text]
    assert not missing
