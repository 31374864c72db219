"""The recorded agents under every mode, in virtual time: the table of docs/measured/flow.md.

    python -m benchmarks.flow.modes --data ../shared/data

Each workload is replayed by the real runtime and gate (`weighbridge flow replay`), once priced as
`benchmarks.flow.workloads` says and once free, as on a machine of one's own that is idle.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import get_args

import msgspec
from benchmarks.flow.workloads import write

from weighbridge.flow.replay.replay import ReplayMode, ReplaySettings, replay
from weighbridge.flow.replay.workload import RecordedTask, read_workload


def free(tasks: list[RecordedTask]) -> list[RecordedTask]:
    """The same tasks at no price."""
    return [
        msgspec.structs.replace(
            task, steps=tuple(msgspec.structs.replace(call, usd=0.0) for call in task.steps)
        )
        for task in tasks
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--value-per-second", type=float, default=ReplaySettings().value_per_second)
    options = parser.parse_args()
    settings = ReplaySettings(value_per_second=options.value_per_second)
    print("| workload | mode | mean s | p50 | p95 | vs sequential | wasted | won/lost/declined | $ |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for path in write(options.data, Path(directory)):
            tasks = read_workload(path)
            for label, variant in ((path.stem, tasks), (f"{path.stem}, free", free(tasks))):
                sequential = replay(variant, dataclasses.replace(settings, mode="sequential"))
                for mode in get_args(ReplayMode):
                    result = replay(variant, dataclasses.replace(settings, mode=mode)).report(sequential)
                    spans, bets = result["makespan_s"], result["bets"]
                    print(
                        f"| {label} | {mode} | {spans['mean']:.1f} | {spans['p50']:.1f} | {spans['p95']:.1f} "
                        f"| {result['speedup_over_sequential']:.2f}x | {result['wasted_share']:.1%} "
                        f"| {bets['won']}/{bets['lost']}/{bets['declined']} | {result['usd']:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
