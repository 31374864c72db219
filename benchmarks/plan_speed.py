"""The planner's speeds against measurements that had no part in them.

    python benchmarks/plan_speed.py DATA/simulator/silicon_ttft_tpot.csv         # the held-out table
    python benchmarks/plan_speed.py DATA/simulator/silicon_ttft_tpot.csv --fit   # and the efficiencies of all rows

Reads TPOT that was measured on real GPUs (aiconfigurator's table, Apache-2.0). For each (model, GPU) the efficiencies
are fitted to all other rows, from the same guess, and predict that group; then the same with whole models and whole
GPUs left out. The form of the roofline was chosen with the table in view, its numbers were not.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import fmean, median

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.evidence.speed_cases import SpeedCase, read_speed_cases
from benchmarks.evidence.speed_fit import Fitted, Floats, Table, errors, fit, held_out

LEFT_OUT: dict[str, Callable[[SpeedCase], object]] = {
    "(model, GPU)": lambda case: case.group,
    "model": lambda case: case.model,
    "GPU": lambda case: case.device,
}


def mape(error: Sequence[float] | Floats) -> float:
    return float(np.mean(np.abs(error)))


def spread(cases: Sequence[SpeedCase]) -> tuple[int, float]:
    """Cases measured several times (other builds, other days), and how far they lie from the median of theirs."""
    alike: dict[object, list[float]] = defaultdict(list)
    for c in cases:
        alike[(c.group, c.engine, c.deployment, c.batch, c.prompt, c.output)].append(c.tpot)
    repeated = [times for times in alike.values() if len(times) > 1]
    apart = [abs(t / median(times) - 1.0) for times in repeated for t in times]
    return len(apart), fmean(apart) if apart else 0.0


def print_groups(cases: Sequence[SpeedCase], error: Floats, own: Floats) -> None:
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        groups[case.group].append(index)
    print("| model | GPU | engines | rows | held-out MAPE | planned / measured | in sample |")
    print("|---|---|---|--:|--:|--:|--:|")
    for (model, device), rows in sorted(groups.items()):
        engines = ", ".join(sorted({cases[i].engine for i in rows}))
        ratio = median(float(error[i]) + 1.0 for i in rows)
        print(f"| {model} | {device} | {engines} | {len(rows)} | {mape(error[rows]):.1%} ", end="")
        print(f"| {ratio:.2f} | {mape(own[rows]):.1%} |")
    print(f"\nmean of groups {fmean(mape(error[rows]) for rows in groups.values()):.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path)
    parser.add_argument("--fit", action="store_true", help="print the efficiencies fitted to all rows")
    options = parser.parse_args()
    every = read_speed_cases(options.table)
    cases = [case for case in every if case.possible]
    print(
        f"{len(every)} different rows, {len(every) - len(cases)} faster than the data sheet allows: left out"
    )
    measured = np.array([case.tpot for case in cases])
    shipped = errors(Table(cases).predict(Fitted.shipped()), measured)
    for name, key in LEFT_OUT.items():
        error = errors(held_out(cases, key, Fitted.guess()), measured)
        if name == "(model, GPU)":
            print_groups(cases, error, shipped)
        near = float(np.mean(np.abs(np.log(error + 1.0)) <= np.log(1.5)))
        print(
            f"left out one {name}: MAPE {mape(error):.1%}, median error {median(np.abs(error)):.1%}, ", end=""
        )
        print(f"within 1.5x {near:.0%}, 5 % to 95 %: ", end="")
        print("{:.2f} to {:.2f}".format(*np.quantile(error + 1.0, (0.05, 0.95))))
    print(f"as shipped, in sample: MAPE {mape(shipped):.1%}")
    number, apart = spread(cases)
    print(f"{number} rows repeat a deployment (other builds): {apart:.1%} from the median of theirs")
    if options.fit:
        found = fit(cases)
        for field in fields(found.base):
            print(f"    {field.name}={getattr(found.base, field.name):.3g},")
        print(found.corrections)


if __name__ == "__main__":
    main()
