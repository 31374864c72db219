"""What becomes of every type of model that transformers has a head for text for: exact, or refused by name.

    python benchmarks/model_table.py [--write docs/measured/models.md] [--jobs N] [TYPE ...]

Of each type a tiny random model is made and saved, and held against transformers in a process of its own: logits in
float32 through chunks, and greedy tokens through the engine with prefixes found again and requests preempted. It ends
with 1 where one is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.models.general.apart import judged_apart, kinds
from tests.models.general.judged import Verdict

from weighbridge.models.files.hf_config import FAMILIES

BEGIN, END = "<!-- table: models -->", "<!-- end -->"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", help="only these")
    parser.add_argument("--write", type=Path, help="a page whose table is replaced")
    parser.add_argument("--jobs", type=int, default=1, help="types at a time")
    options = parser.parse_args()
    verdicts = []
    with ThreadPoolExecutor(options.jobs) as pool:  # each is judged in a process of its own
        for verdict in pool.map(judged_apart, options.types or kinds()):
            verdicts.append(verdict)
            print(_row(verdict), flush=True)
    counts = Counter(verdict.status for verdict in verdicts)
    print(dict(counts))
    if options.write is not None:
        text = options.write.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        options.write.write_text(f"{before}{BEGIN}\n{_table(verdicts)}{END}{after}", encoding="utf-8")
    return 1 if counts["wrong"] else 0


def _table(verdicts: list[Verdict]) -> str:
    """The counts, the exact types in a paragraph, and a row for each of the others."""
    exact = [verdict for verdict in verdicts if verdict.status == "exact"]
    others = [verdict for verdict in verdicts if verdict.status != "exact"]
    counts = Counter(verdict.status for verdict in verdicts)
    told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    worst = max((verdict.worst or 0.0 for verdict in exact), default=0.0)
    names = ", ".join(f"`{verdict.kind}`{'*' if verdict.kind in FAMILIES else ''}" for verdict in exact)
    head = f"transformers {transformers.__version__}, {len(verdicts)} types: {told}.\n\n"
    head += (
        f"Exact (a logit differs by {worst:.1g} at most; * is also computed by our own decoder): {names}.\n\n"
    )
    return head + "| type | | why |\n|---|---|---|\n" + "".join(_row(verdict) + "\n" for verdict in others)


def _row(verdict: Verdict) -> str:
    detail = verdict.reason or (f"{verdict.worst:.1g}" if verdict.worst is not None else "")
    return f"| `{verdict.kind}` | {verdict.status} | {detail.replace('|', '/')} |"


if __name__ == "__main__":
    sys.exit(main())
