"""Every door is opened once for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.doors.doors import Door, all_doors


@pytest.fixture(scope="session")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, dict[str, Door]]]:
    """The four doors without keys (False) and with keys (True)."""
    with all_doors(tmp_path_factory.mktemp("doors")) as found:
        yield found
