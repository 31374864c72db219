"""A tab of a browser for the tests that look at pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.console.chromium import Tab, browser


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    folder = tmp_path / "browser"
    folder.mkdir()
    with browser(folder) as tab:
        yield tab
