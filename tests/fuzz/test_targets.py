"""Each fuzz target reads its corpus, and bytes that are nearly that, or refuses them as documented."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.fuzz.target import PlantedBug, Target
from tests.fuzz.targets import MODULES, target

#: Changed inputs for each one of a corpus.
CHANGED = 12


def mutations(seed: bytes, words: list[bytes], draw: random.Random) -> Iterator[bytes]:
    """Bytes flipped, pieces cut out, doubled and moved, words of the format put in; the same ones every time."""
    for _ in range(CHANGED):
        data = bytearray(seed)
        for _ in range(draw.randint(1, 4)):
            start = draw.randrange(len(data) + 1)
            end = min(len(data), start + draw.randint(1, 16))
            change = draw.randrange(5)
            if change == 0 and start < len(data):
                data[start] ^= 1 << draw.randrange(8)
            elif change == 1:
                del data[start:end]
            elif change == 2:
                data[start:start] = data[start:end] * draw.choice([1, 2, 40])
            elif change == 3:
                data[start:end] = draw.choice(words)
            else:
                data[start:end] = draw.randbytes(end - start)
        yield bytes(data)


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
        for data in mutations(seed, list(fuzzed.words), draw):
            fuzzed.run(data)


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
