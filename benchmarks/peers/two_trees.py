"""This checkout's server beside another checkout's, in pairs: did a change make it slower?

    python benchmarks/peers/two_trees.py --other ../before/.venv/bin/weighbridge
        [--scenarios n1,n16,n64] [--pairs 5] [--json FILE]

Both servers are up all the time, so that neither meets a machine in another state; each pair sends the same
scenario (those of compare.py) to the one and then to the other, and every second pair in the other order.
What counts is the ratio within a pair, this one by the other: its median, the least and the most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

from compare import SCENARIOS, bench
from servers import serving


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--other", required=True, help="the other checkout's weighbridge program")
    parser.add_argument("--scenarios", default="n1,n16,n64")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scenarios = options.scenarios.split(",")
    if unknown := {*scenarios} - {*SCENARIOS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    with ExitStack() as stack:
        urls = {
            "this": stack.enter_context(serving([sys.executable, "-m", "weighbridge"], "this")),
            "other": stack.enter_context(serving([options.other], "other")),
        }
        rows = {name: pairs(urls, name, options.pairs) for name in scenarios}
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))


def pairs(urls: dict[str, str], scenario: str, count: int) -> list[dict[str, float]]:
    """Output tokens a second of each pair, by tree."""
    found = []
    for number in range(count):
        order = list(urls) if number % 2 == 0 else list(urls)[::-1]
        pair = {}
        for tree in order:
            figures = bench(urls[tree], *SCENARIOS[scenario], seed=1000 * number + len(pair))
            if figures["errors"]:
                raise RuntimeError(f"{tree}, {scenario}: {figures['error_samples']}")
            pair[tree] = figures["output_tokens_per_s"]
        print(scenario, json.dumps(pair), file=sys.stderr, flush=True)
        found.append(pair)
    return found


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    lines = ["| scenario | this, tok/s | other, tok/s | this / other (least to most) |", "|---|---|---|---|"]
    for name, found in rows.items():
        this, other = (statistics.median(pair[tree] for pair in found) for tree in ("this", "other"))
        ratios = sorted(pair["this"] / pair["other"] for pair in found)
        middle = statistics.median(ratios)
        lines.append(
            f"| {name} | {this:.0f} | {other:.0f} | {middle:.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
