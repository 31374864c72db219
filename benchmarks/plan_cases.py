"""Plans against what engines printed at start.

    python benchmarks/plan_cases.py DATA/memory/cases.jsonl           every figure of every case
    python benchmarks/plan_cases.py DATA/memory/cases.jsonl --cross   fit on one half, judge the other

A case is a JSON object a line: see `benchmarks.evidence.memory_cases`. The first form prints for each figure what the
log said and what is planned, then how many lie within the bounds asked for (cache accounting 0.2 % or what the
digits of the log leave open, weights 1 %, cache memory 5 %). The second fits the two constants of
`weighbridge.planner.memory.activation` on the cases whose identifier hashes to even, prints the error of the cache
memory on the odd ones, and the other way round.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.evidence.memory_cases import Comparison, compare_all

from weighbridge.planner.memory.activation import FITTED, Constants

TOKENS = ("kv_tokens", "kv_blocks", "max_concurrency", "kv_mib", "kv_swa_mib", "k_mib", "states_mib")
WEIGHTS = ("weights_gib", "gpu_model_mib", "model_mib", "file_gib")
MEMORY = ("available_kv_gib", "est_blocks")
LIMITS = {**dict.fromkeys(TOKENS, 0.002), **dict.fromkeys(WEIGHTS, 0.01), **dict.fromkeys(MEMORY, 0.05)}


def limit(one: Comparison) -> float:
    """What the figure may be off; two digits of a printed concurrency, or the memory's, may leave more open."""
    printed = 0.005 / one.reported if one.figure == "max_concurrency" else 0.0
    return max(LIMITS[one.figure], one.rounding, printed)


def show(found: Iterable[Comparison]) -> None:
    for one in found:
        mark = " " if abs(one.error) <= limit(one) else "!"
        bounds = f"[{one.low:,.2f}, {one.high:,.2f}]" if one.high else ""
        print(
            f"{mark} {one.confidence} {one.case:44} {one.figure:16} {one.reported:14,.2f} "
            f"{one.planned:14,.2f} {one.error:+8.2%} {bounds}"
        )


def totals(found: list[Comparison]) -> None:
    for grade in ("A", "B", "C"):
        rows = [one for one in found if one.confidence == grade and one.reported > 0]
        for name, figures in (("cache accounting", TOKENS), ("weights", WEIGHTS), ("cache memory", MEMORY)):
            some = [one for one in rows if one.figure in figures]
            good = sum(abs(one.error) <= limit(one) for one in some)
            if some:
                print(f"grade {grade}: {name:17} {good} of {len(some)} within {LIMITS[figures[0]]:.1%}")
        bounded = [one for one in rows if one.high]
        if bounded:
            print(
                f"grade {grade}: truth within bounds {sum(one.covered for one in bounded)} of {len(bounded)}"
            )


def memory_error(path: Path, constants: Constants, parity: int) -> tuple[float, float, int]:
    """Mean and largest absolute error of the cache memory of grade-A and -B cases of one half that started."""
    found, _ = compare_all(path, constants)
    errors = [
        min(abs(one.error), 0.5)
        for one in found
        if one.figure in MEMORY and one.reported > 5 and zlib.crc32(one.case.encode()) % 2 == parity
    ]
    return sum(errors) / len(errors), max(errors), len(errors)


def cross(path: Path) -> None:
    grid = [Constants(b, g) for b in range(26, 60, 2) for g in (0.005, 0.01, 0.015, 0.02, 0.03)]
    for half, other in ((0, 1), (1, 0)):
        best = min(grid, key=lambda constants: memory_error(path, constants, half)[0])
        own, held = memory_error(path, best, half), memory_error(path, best, other)
        print(
            f"fitted on {own[2]} figures: {best.sampler_bytes:g} B per logit, {best.graph_gib:g} GiB per layer; "
            f"mean error there {own[0]:.1%}, on the {held[2]} others {held[0]:.1%} (largest {held[1]:.1%})"
        )
    for half in (0, 1):
        mean, largest, count = memory_error(path, FITTED, half)
        print(f"as shipped, half {half}: mean error {mean:.1%} of {count} figures, largest {largest:.1%}")


def main() -> None:
    path = Path(sys.argv[1])
    if "--cross" in sys.argv:
        cross(path)
        return
    found, failed = compare_all(path)
    show(found)
    totals(found)
    for line in failed:
        print("not planned:", line)


if __name__ == "__main__":
    main()
