"""Five minutes of everything that means harm, beside honest load: the honest notice little, and nothing is left behind.

`ADVERSARY_SECONDS=60 pytest -m proof -s tests/adversary` is a shorter try. Where others use the machine too, all of it
can come some steps of niceness before them: `ADVERSARY_FIRST=5`, as root.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import pytest

from tests.adversary.burner import burn
from tests.adversary.honest import RATES, Sample
from tests.adversary.measure import percentile
from tests.adversary.run import Run, Stage, before_others, duration

#: How much slower the 99th percentile of the honest may be than in the quiet turns.
WORST_RATIO = 1.5
#: What a server may grow by in the second half of the time, and files it may have more than before, once at rest.
MOST_GROWTH_MIB, MOST_FILES = 24.0, 32
#: No turn of an event loop may keep everybody waiting for longer, unless it does in the quiet turns.
LONGEST_STALL = 0.5
#: Cores that others may take of the machine while the percentile over all turns tells of the adversary: it is the few
#: slowest of all requests, and where others work it is their worst seconds.
OTHERS = 0.1
UNHANDLED = re.compile(
    r"Traceback \(most recent call last\)|was never retrieved|Exception in|was never awaited"
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

Figure = Callable[[Sample], float]
FIGURES: dict[str, Figure] = {"first": lambda sample: sample.first, "whole": lambda sample: sample.whole}


def p(samples: list[Sample], share: float, figure: Figure, door: str | None = None) -> float:
    """A percentile of the answered requests, in milliseconds."""
    values = [figure(sample) for sample in samples if not sample.failure and door in (None, sample.door)]
    return 1000 * percentile(values, share)


def ratio(attacked: Run, quiet: Run, figure: Figure) -> float:
    """Of the 99th percentiles over all turns."""
    return p(attacked.samples, 0.99, figure) / p(quiet.samples, 0.99, figure)


def ratios(attacked: Run, quiet: Run, figure: Figure) -> list[float]:
    """Of the 99th percentiles of each turn and of the quiet one behind it."""
    pairs = zip(attacked.turns, quiet.turns, strict=True)
    return [p(one, 0.99, figure) / p(other, 0.99, figure) for one, other in pairs]


def rounded(values: dict[str, Any], places: int = 1) -> dict[str, Any]:
    return {name: np.round(value, places).tolist() for name, value in values.items()}


def told(attacked: Run, quiet: Run) -> str:
    """Everything that is measured, as text."""
    counts = f"{len(attacked.samples)} attacked, {len(quiet.samples)} quiet"
    lines = [f"honest requests: {counts}, at {attacked.rate:.2f} of the usual rate"]
    for name, figure in FIGURES.items():
        for door in (None, *RATES):
            halves = [
                (p(run.samples, 0.5, figure, door), p(run.samples, 0.99, figure, door))
                for run in (attacked, quiet)
            ]
            lines.append(
                f"{name:5} {door or 'all':8} p50 {halves[0][0]:6.0f} / {halves[1][0]:6.0f} ms   "
                f"p99 {halves[0][1]:6.0f} / {halves[1][1]:6.0f} ms   ratio {halves[0][1] / halves[1][1]:.2f}"
            )
        lines.append(
            f"{name:5} p99 by pairs of turns: {np.round(ratios(attacked, quiet, figure), 2).tolist()}"
        )
    for title, run in (("attacked", attacked), ("quiet", quiet)):
        lines += _told_of(title, run)
    lines += [f"{name}: {did}" for name, did in attacked.did.items()]
    return "\n".join(lines)


def _told_of(title: str, run: Run) -> list[str]:
    in_cores = {name: used / run.seconds for name, used in run.cpu.items()}
    machine = {
        "busy": run.machine.busy_s / run.seconds,
        "idle": run.machine.idle_s / run.seconds,
        "stolen": run.machine.stolen_s / run.seconds,
        "of others": run.others / run.seconds,
    }
    waiting = {name: waited / run.seconds for name, waited in run.waited.items()}
    return [
        f"{title}, {run.seconds:.0f} s; the machine, in cores: {rounded(machine, 3)}",
        f"  CPU in cores: {rounded(in_cores, 3)}",
        f"  threads that waited for a core: {rounded(waiting, 3)}",
        f"  memory in MiB {rounded(run.rss_mib)}, grown {rounded(run.grown_mib)}, files {run.files}",
        f"  longest stalls {run.stalls}",
    ]


@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_the_honest_notice_little_of_an_adversary(tmp_path: Path, default_model_path: Path) -> None:
    with before_others():
        attacked, quiet = Stage(tmp_path, default_model_path, duration()).played()
    print("\n" + told(attacked, quiet))
    assert quiet.failures == []
    assert attacked.failures == []
    check_the_servers(attacked, quiet)
    check_the_adversary(attacked)
    others = max(run.others / run.seconds for run in (attacked, quiet))
    for name, figure in FIGURES.items():
        by_turns = median(ratios(attacked, quiet, figure))
        assert by_turns <= WORST_RATIO, f"{name}: {by_turns:.2f} in the median of all turns"
        whole = ratio(attacked, quiet, figure)
        assert whole <= WORST_RATIO or others > OTHERS, f"{name}: {whole:.2f} over all turns"


def check_the_servers(run: Run, quiet: Run) -> None:
    """They are the same processes, hold nothing, have not grown, and met nothing that they did not mean to."""
    assert all(run.alive.values()), run.alive
    assert run.held == {}
    for name, (before, after) in run.files.items():
        assert run.grown_mib[name] <= MOST_GROWTH_MIB, run.grown_mib
        assert after <= before + MOST_FILES, (name, before, after)
    for name, log in run.logs.items():
        found = UNHANDLED.search(log)
        assert found is None, f"{name}: ... {log[max(found.start() - 500, 0) : found.end() + 3000]}"
    for name, longest in run.stalls.items():
        if name.endswith("loop"):
            assert longest <= max(LONGEST_STALL, quiet.stalls[name]), (name, run.stalls, quiet.stalls)


def check_the_adversary(run: Run) -> None:
    """It did its work: every kind of it, and no secret went to a backend."""
    liars, files = run.did["liars"], run.did["files"]
    assert liars["asked"] > 0
    assert liars.get("told a secret", 0) == 0
    assert set(files) <= {"safetensors", "gguf", "tokenizer", "template", "served not"}, files
    assert min(files.get(name, 0) for name in ("safetensors", "gguf", "tokenizer", "template")) > 0, files
    assert run.grown_mib["files"] <= MOST_GROWTH_MIB, run.grown_mib
    malformed = run.did["malformed"]
    assert sum(malformed.values()) >= run.seconds / 5, f"the malformed clients had no time: {malformed}"
    assert not [answer for answer in malformed if answer.split()[1] == "500"], malformed


def test_a_burner_burns_what_it_is_told() -> None:
    began = process_time()
    burn(0.5, 0.2)
    assert 0.05 <= process_time() - began <= 0.2


@pytest.mark.parametrize(("share", "value"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0)])
def test_a_percentile_is_one_of_the_values(share: float, value: float) -> None:
    assert percentile([float(number) for number in range(100, 0, -1)], share) == value
