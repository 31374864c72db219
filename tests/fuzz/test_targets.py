"""Each fuzz target reads its corpus, and bytes that are nearly that, or refuses them as documented."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.changes import changed
from tests.fuzz.target import Target
from tests.fuzz.targets import MODULES, target

#: Changed inputs for each one of a corpus.
CHANGED = 12


@pytest.fixture(params=MODULES)
def fuzzed(request: pytest.FixtureRequest) -> Target:
    return target(request.param)


def test_the_corpus_is_read(fuzzed: Target) -> None:
    """Nearly all of it is well-formed: what is refused at the door shows nothing of what is behind it."""
    accepted = [fuzzed.run(seed) for seed in fuzzed.seeds()]
    assert accepted.count(False) <= 1, accepted


def test_changed_inputs_are_read_or_refused(fuzzed: Target) -> None:
    draw = random.Random(fuzzed.name)
    for seed in fuzzed.seeds():
        for _ in range(CHANGED):
            fuzzed.run(changed(seed, fuzzed.words, draw))


def test_inputs_that_are_changed_in_their_own_way_are_read_or_refused(fuzzed: Target) -> None:
    draw = random.Random(fuzzed.name)
    assert fuzzed.change is not None
    made = [fuzzed.change(seed, draw) for seed in fuzzed.seeds() for _ in range(CHANGED)]
    kept = [data for data in made if data is not None]
    assert len(kept) > len(made) // 2
    accepted = [fuzzed.run(data) for data in kept]
    assert any(accepted), "a change leaves nothing of the format"
    assert not all(accepted) or fuzzed.name in ("sse", "styles"), "nothing that is refused is tried"


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 40, b"[" * 999, b'{"a":' * 500, b"\x01" + b"\r" * 99])
def test_what_is_nothing_is_refused(fuzzed: Target, data: bytes) -> None:
    fuzzed.run(data)
