"""/openapi.json taken at its word: ten thousand calls by a program that knows nothing else of the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.lane.described import called
from tests.clients.lane.site import KEY, SINGLE, site

pytestmark = [pytest.mark.proof, pytest.mark.timeout(7200)]

#: What schemathesis says of an answer that is not as its schema has it.
NOT_AS_SAID = ("Response violates schema", "Undocumented Content-Type", "Undocumented HTTP status code")


def test_every_answer_is_as_it_is_described_and_none_is_a_failure(tmp_path: Path) -> None:
    with site(tmp_path, brief=True) as doors:
        calls = called(doors[SINGLE].place.url, KEY, 100, 1, tmp_path)
    print(calls.told())
    assert calls.failed == []
    assert not [words for words in NOT_AS_SAID if words in calls.said]
    assert len(calls.records) >= 10_000
    assert calls.good >= 0.3
