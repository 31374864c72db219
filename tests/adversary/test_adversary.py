"""Five minutes of everything that means harm, beside honest load: the honest notice little, and nothing is left behind.

`ADVERSARY_SECONDS=60 pytest -m proof -s tests/adversary` is a shorter try.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest

from tests.adversary.burner import burn
from tests.adversary.honest import RATES, Sample
from tests.adversary.measure import percentile
from tests.adversary.run import ATTACKERS, Run, Stage, duration

#: How much slower the 99th percentile of the honest may be than in a quiet run.
WORST_RATIO = 1.5
#: What a server may grow by in the second half of the time, and files it may have more than before, once at rest.
MOST_GROWTH_MIB, MOST_FILES = 24.0, 32
#: No turn of an event loop may keep everybody waiting for longer.
LONGEST_STALL = 0.5
UNHANDLED = re.compile(
    r"Traceback \(most recent call last\)|was never retrieved|Exception in|was never awaited"
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

Figure = Callable[[Sample], float]
FIGURES: dict[str, Figure] = {"first": lambda sample: sample.first, "whole": lambda sample: sample.whole}


def p(run: Run, share: float, figure: Figure, door: str | None = None) -> float:
    """A percentile of the answered requests, in milliseconds."""
    values = [figure(sample) for sample in run.samples if not sample.failure and door in (None, sample.door)]
    return 1000 * percentile(values, share)


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: np.round(value, 1).tolist() for name, value in values.items()}


def told(attacked: Run, quiet: Run) -> str:
    """Everything that is measured, as text."""
    lines = [f"honest requests: {len(attacked.samples)} attacked, {len(quiet.samples)} quiet"]
    for name, figure in FIGURES.items():
        for door in (None, *RATES):
            halves = [(p(run, 0.5, figure, door), p(run, 0.99, figure, door)) for run in (attacked, quiet)]
            lines.append(
                f"{name:5} {door or 'all':8} p50 {halves[0][0]:6.0f} / {halves[1][0]:6.0f} ms   "
                f"p99 {halves[0][1]:6.0f} / {halves[1][1]:6.0f} ms   ratio {halves[0][1] / halves[1][1]:.2f}"
            )
    for title, run in (("attacked", attacked), ("quiet", quiet)):
        shares = {name: f"{used / run.seconds:.3f}" for name, used in run.cpu.items()}
        lines.append(f"{title}, {run.seconds:.0f} s, CPU in cores: {shares}")
        lines.append(
            f"  memory in MiB {rounded(run.rss_mib)}, grown {rounded(run.grown_mib)}, files {run.files}"
        )
        lines.append(f"  longest stalls {run.stalls}")
    lines += [f"{name}: {did}" for name, did in attacked.did.items()]
    return "\n".join(lines)


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_the_honest_notice_little_of_an_adversary(tmp_path: Path, default_model_path: Path) -> None:
    stage = Stage(tmp_path, default_model_path, duration())
    attacked = stage.attacked()
    burnt = {name: attacked.cpu[name] for name in (*ATTACKERS, "liars")}
    quiet = stage.quiet(burnt, attacked.seconds)
    print("\n" + told(attacked, quiet))
    assert quiet.failures == []
    assert attacked.failures == []
    check_the_servers(attacked)
    check_the_adversary(attacked)
    for name, figure in FIGURES.items():
        ratio = p(attacked, 0.99, figure) / p(quiet, 0.99, figure)
        assert ratio <= WORST_RATIO, f"{name}: {ratio:.2f}"


def check_the_servers(run: Run) -> None:
    """They are the same processes, hold nothing, have not grown, and met nothing that they did not mean to."""
    assert all(run.alive.values()), run.alive
    assert run.held == {}
    for name, (before, after) in run.files.items():
        assert run.grown_mib[name] <= MOST_GROWTH_MIB, run.grown_mib
        assert after <= before + MOST_FILES, (name, before, after)
    for name, log in run.logs.items():
        found = UNHANDLED.search(log)
        assert found is None, f"{name}: ... {log[max(found.start() - 500, 0) : found.end() + 3000]}"
    assert max(longest for name, longest in run.stalls.items() if "loop" in name) <= LONGEST_STALL, run.stalls


def check_the_adversary(run: Run) -> None:
    """It did its work: every kind of it, and no secret went to a backend."""
    liars, files = run.did["liars"]["done"], run.did["files"]["done"]
    assert liars["asked"] > 0
    assert liars["told a secret"] == 0
    assert set(files) <= {"safetensors", "gguf", "tokenizer", "template", "served not"}, files
    assert min(files[name] for name in ("safetensors", "gguf", "tokenizer", "template")) > 0
    assert run.grown_mib["files"] <= MOST_GROWTH_MIB, run.grown_mib
    malformed = run.did["malformed"]["done"]
    assert not [answer for answer in malformed if answer.split()[1] == "500"], malformed


def test_a_burner_burns_what_it_is_told() -> None:
    began = process_time()
    burn(0.5, 0.2)
    assert 0.05 <= process_time() - began <= 0.2


@pytest.mark.parametrize(("share", "value"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0)])
def test_a_percentile_is_one_of_the_values(share: float, value: float) -> None:
    assert percentile([float(number) for number in range(100, 0, -1)], share) == value
