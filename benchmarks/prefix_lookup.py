"""What finding a prompt's beginning in the prefix cache costs, and putting its blocks there: no model, CPU time.

    python benchmarks/prefix_lookup.py [--tokens 2048]

A pool with so many tokens of one prompt in blocks of 32, and prompts that leave it at a block's end, in the middle of a
block, and in the middle of one with more beside it that begin alike than are looked at. Of each step the least of
twenty rounds of a hundred, in microseconds. It runs on trees before copies of blocks, too, to compare with.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable

from weighbridge.engine.memory.block_tables import BlockTables
from weighbridge.engine.memory.blocks import BlockPool
from weighbridge.engine.memory.prefix import PrefixCache
from weighbridge.engine.request import Request, SamplingParams

SIZE, ROUNDS, TIMES = 32, 20, 100


def request(tokens: list[int]) -> Request:
    return Request("r", tokens, SamplingParams(max_tokens=1), 0.0)


def least(step: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Microseconds of `step`, which `before` makes possible again."""
    found = []
    for _ in range(ROUNDS):
        spent = 0
        for _ in range(TIMES):
            before()
            began = time.process_time_ns()
            step()
            spent += time.process_time_ns() - began
        found.append(spent / TIMES / 1e3)
    return round(min(found), 2)


class Filled:
    """Tables in which one prompt is cached, and others behind its last whole block."""

    def __init__(self, tokens: int, beside: int) -> None:
        rng = random.Random(1)
        self.tables = BlockTables(BlockPool(tokens // SIZE + 4 * beside + 64, SIZE), PrefixCache(SIZE))
        self.prompt = [rng.randrange(50_000) for _ in range(tokens // SIZE * SIZE)]
        alike = [rng.randrange(50_000) for _ in range(SIZE - 1)]
        self.leaves = [*self.prompt, *alike[:-1], -1, -1]
        for other in range(beside + 1):
            self.keep(request([*self.prompt, *alike, other, 7]))

    def keep(self, one: Request) -> None:
        self.tables.open(one, self.tables.opening(one))
        one.num_computed_tokens = one.num_tokens
        self.tables.commit(one)
        self.tables.close(one)
        self.tables.forget(one)

    def looked_up(self, tokens: list[int]) -> float:
        one = request(tokens)
        self.tables.opening(one)  # its blocks are named once in its life
        return least(lambda: self.tables.opening(one))

    def entered(self) -> float:
        """A prompt of as many other tokens is put into the cache and returned, for each of its blocks."""
        rng = random.Random(2)
        runs = ROUNDS // 4
        found = []
        for _ in range(runs):
            one = request([rng.randrange(50_000) for _ in self.prompt[:-5]])
            self.tables.open(one, self.tables.opening(one))
            one.num_computed_tokens = one.num_tokens
            began = time.process_time_ns()
            self.tables.commit(one)
            self.tables.close(one)
            found.append((time.process_time_ns() - began) / 1e3 / (one.num_tokens // SIZE))
            self.tables.forget(one)
        return round(min(found), 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=2048)
    tokens = parser.parse_args().tokens
    alone, crowded = Filled(tokens, 0), Filled(tokens, 40)
    figures = {
        "leaves at a block's end": alone.looked_up([*alone.prompt, 1, 2, 3]),
        "leaves within a block": alone.looked_up(alone.leaves),
        "leaves within a block of many": crowded.looked_up(crowded.leaves),
        "entered and returned, for each block": alone.entered(),
    }
    print(json.dumps({"tokens": tokens, "us": figures}, indent=1))


if __name__ == "__main__":
    main()
