"""Each fuzz target reads its corpus, and bytes that are nearly that, or refuses them as documented."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.fuzz.changes import changed
from tests.fuzz.target import PlantedBug, Target
from tests.fuzz.targets import MODULES, target

#: Changed inputs for each one of a corpus.
CHANGED = 12


@pytest.fixture(params=MODULES)
def fuzzed(request: pytest.FixtureRequest) -> Target:
    return target(request.param)


def test_the_corpus_is_well_formed(fuzzed: Target) -> None:
    """At least one input goes so deep that a planted bug could be there."""
    found = []
    for seed in fuzzed.seeds():
        fuzzed.run(seed)
        try:
            found.append(fuzzed.parse(seed))
        except fuzzed.errors:
            continue
    assert any(found)


def test_changed_inputs_are_read_or_refused(fuzzed: Target) -> None:
    draw = random.Random(fuzzed.name)
    for seed in fuzzed.seeds():
        for _ in range(CHANGED):
            fuzzed.run(changed(seed, fuzzed.words, draw))


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 40, b"[" * 999, b'{"a":' * 500, b"\x01" + b"\r" * 99])
def test_what_is_nothing_is_refused(fuzzed: Target, data: bytes) -> None:
    fuzzed.run(data)


def test_a_planted_bug_is_in_the_depth_of_an_input(fuzzed: Target) -> None:
    """It is behind what a well-formed input says, and nothing else raises it."""
    for seed in fuzzed.seeds():
        fuzzed.run(seed, planted=True)
    parse = fuzzed.parse
    deep = replace(fuzzed, parse=lambda data: (parse(data), b"zz~!~bug")[1])
    with pytest.raises(PlantedBug):
        deep.run(fuzzed.seeds()[0], planted=True)
    deep.run(fuzzed.seeds()[0])
