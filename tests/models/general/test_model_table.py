"""Every type of model that transformers has a head for text for: exact, or refused by name; none is wrong."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.models.general.apart import judged_apart, kinds

pytestmark = [pytest.mark.proof, pytest.mark.timeout(1800)]


def test_no_type_is_wrong_and_most_that_people_serve_are_exact() -> None:
    verdicts = [judged_apart(kind) for kind in kinds()]
    counts = Counter(verdict.status for verdict in verdicts)
    assert [verdict for verdict in verdicts if verdict.status == "wrong"] == []
    assert counts["exact"] >= 80, counts
