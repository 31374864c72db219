"""Every door that a run needs is opened once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.doors.doors import Door, all_doors


@pytest.fixture(scope="session")
def doors(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[bool, dict[str, Door]]]:
    """The four doors without keys (False) and with keys (True), or those of the two that the run looks at."""
    flavours = {flavour for item in request.session.items for flavour in _looked_at(item)}
    with all_doors(tmp_path_factory.mktemp("doors"), sorted(flavours)) as found:
        yield found


def _looked_at(item: pytest.Item) -> set[bool]:
    if not isinstance(item, pytest.Function) or "doors" not in item.fixturenames:
        return set()
    given = item.callspec.params if hasattr(item, "callspec") else {}
    return {given["row"].asks_for_keys} if "row" in given else {False, True}
