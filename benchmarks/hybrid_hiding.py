"""What redaction misses where values hide, and what it touches where there are none. Patterns and a deny list, no NER.

    python benchmarks/hybrid_hiding.py encodings   each way of writing a value: share that is replaced, stays, or leaves
    python benchmarks/hybrid_hiding.py negatives   lines of code, logs and ids: share that is touched, and by what
    python benchmarks/hybrid_hiding.py negatives --unseen    lines that somebody wrote who had not read the patterns
    python benchmarks/hybrid_hiding.py negatives --file LINES   the same over a file of one's own; --ner with the model

Values and lines are made by `benchmarks/evidence/encodings.py` and `negatives.py`, from seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.evidence.encodings import DENIED, ENCODINGS, is_left, values
from benchmarks.evidence.negatives import lines
from benchmarks.evidence.unseen_negatives import unseen_lines

from weighbridge.routes.privacy.guard import Guard
from weighbridge.routes.privacy.hits import Detector
from weighbridge.routes.privacy.ner import NerDetector
from weighbridge.routes.privacy.patterns import DenyListDetector, PatternDetector


async def outcomes(rounds: int, seed: int) -> dict[str, dict[str, Counter[str]]]:
    """Of each encoding and type, how often a value was replaced, stayed or left; changed values only."""
    guard = Guard([PatternDetector(), DenyListDetector([DENIED])], timeout=60.0)
    table: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    rng = random.Random(seed)
    for _ in range(rounds):
        for kind, value in values(rng).items():
            plain = ENCODINGS["as it is"](value)
            for name, encode in ENCODINGS.items():
                planted = encode(value)
                if name != "as it is" and planted == plain:
                    continue  # this encoding changes nothing of it
                inspection = await guard.inspect(planted.body)
                redacted = await guard.redact(inspection, planted.body)
                left = redacted is not None and is_left(planted, redacted.body)
                outcome = "stays" if redacted is None else "leaves" if left else "replaced"
                table[name][kind][outcome] += 1
    guard.close()
    return table


def show_encodings(rounds: int) -> None:
    table = asyncio.run(outcomes(rounds, seed=1))
    print("| written | kept | replaced | stays | leaves |\n|---|---|---|---|---|")
    for name, kinds in table.items():
        sums = sum(kinds.values(), Counter())
        count = sums.total()
        leaving = [
            f"{kind} {row['leaves'] / row.total():.2f}" for kind, row in kinds.items() if row["leaves"]
        ]
        kept = (sums["replaced"] + sums["stays"]) / count
        replaced, stays = sums["replaced"] / count, sums["stays"] / count
        print(f"| {name} | {kept:.3f} | {replaced:.2f} | {stays:.2f} | {', '.join(leaving)} |")


def show_negatives(read: list[str], with_ner: bool) -> None:
    detectors: list[Detector] = [PatternDetector()]
    if with_ner:
        detectors.append(NerDetector())
    guard = Guard(detectors)
    touched, kinds = 0, Counter[str]()
    for line in read:
        found = guard.scan(line)
        touched += bool(found)
        kinds.update({one.type for one in found})
    guard.close()
    print(
        f"{touched} of {len(read)} lines touched ({touched / max(len(read), 1):.2%}); by type: {dict(kinds)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("encodings", "negatives"))
    parser.add_argument("--count", type=int, default=0, help="values of each type (20), or lines (4000)")
    parser.add_argument("--file", type=Path, help="lines to use instead of those that are made")
    parser.add_argument(
        "--unseen", action="store_true", help="lines by somebody who had not read the patterns"
    )
    parser.add_argument("--ner", action="store_true", help="with the NER model, where it is installed")
    options = parser.parse_args()
    if options.what == "encodings":
        show_encodings(options.count or 20)
    else:
        count = options.count or 4000
        made = unseen_lines(seed=1, draws=-(-count // 400)) if options.unseen else lines(count, seed=1)
        read = options.file.read_text(encoding="utf-8").splitlines() if options.file else list(made)[:count]
        show_negatives(read, options.ner)


if __name__ == "__main__":
    main()
