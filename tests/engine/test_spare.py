"""What requests that get only what is spare cost those of other classes, under a virtual clock."""

from __future__ import annotations

import random
import statistics

import pytest

from tests.engine.fake_model import Driver, make_request, make_scheduler
from weighbridge.engine.request import SPARE_CLASS, Request

#: So much worse may the slowest of a hundred be: to the first token, and to the end.
WORSE = 1.10
ARRIVALS, LINES = 150, 8


def arrivals(seed: int) -> list[Request]:
    """Requests that take about half of the machine, all at random."""
    generator, now, found = random.Random(seed), 0.0, []
    for number in range(ARRIVALS):
        now += generator.expovariate(1 / 0.8)
        prompt = [generator.randrange(5) for _ in range(generator.randrange(40, 200))]
        found.append(
            make_request(f"i{number}", prompt, generator.randrange(10, 40), arrival=now, seed=3 * number + 1)
        )
    return found


def times(seed: int, lines: int) -> tuple[list[float], list[float], int]:
    """Seconds to first tokens and to ends of all arrivals, beside so many lines at any time; and lines that ended."""
    driver = Driver(
        make_scheduler(
            num_blocks=4000, block_size=16, max_sequences=32, speculate=False, max_batch_tokens=512
        )
    )
    coming, first, ended = arrivals(seed), dict[str, float](), dict[str, float]()
    made = done = 0
    while len(ended) < ARRIVALS:
        while coming and coming[0].arrival <= driver.now:
            driver.add(coming.pop(0))
        while made - done < lines:
            prompt = [made % 5] * (300 + made % 7) + [made // 5 % 5, made // 25 % 5]
            driver.add(
                make_request(
                    f"s{made}", prompt, 60, arrival=driver.now, priority=SPARE_CLASS, seed=3 * made + 1
                )
            )
            made += 1
        if not driver.scheduler.has_work():
            driver.now = coming[0].arrival
            continue
        _, progress = driver.step()
        for one in progress:
            request = one.request
            if request.priority < SPARE_CLASS:
                first.setdefault(request.id, driver.now - request.arrival)
                if one.finish_reason is not None:
                    ended[request.id] = driver.now - request.arrival
            elif one.finish_reason is not None:
                done += 1
    return sorted(first.values()), sorted(ended.values()), done


@pytest.mark.proof
@pytest.mark.timeout(600)
def test_the_slowest_of_a_hundred_are_no_more_than_a_tenth_slower_beside_a_batch() -> None:
    worse_first, worse_end = [], []
    for seed in range(3):
        alone, beside = times(seed, 0), times(seed, LINES)
        at = int(0.99 * ARRIVALS)
        worse_first.append(beside[0][at] / alone[0][at])
        worse_end.append(beside[1][at] / alone[1][at])
        assert beside[2] > 100  # and the batch gets on
    assert statistics.median(worse_first) <= WORSE
    assert statistics.median(worse_end) <= WORSE
