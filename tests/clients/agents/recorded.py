"""One run of a coding agent with a real model: `python -m tests.clients.agents.recorded --client codex [--model NAME]`.

The agent gets the task of the scripted runs, on a machine that has a loopback interface and no other (`unshare -rn`),
from `weighbridge serve` with a model of the catalogue that was pulled before. Whatever comes is told: each turn with
its tokens, how many of them were cached, what was called and what came of it, and at the end whether the test passes.
It is over when the agent ends, after so many turns, or after so many minutes. Flags that are not named here go to
`weighbridge serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.clients.agents.started import command_of, environment_of, json_of, serving, worked
from tests.clients.agents.tap import Tap, Turn
from tests.clients.agents.task import FILE, SOURCE, checked, laid_out
from tests.clients.lane.environments import npm_folder
from tests.clients.lane.table import AGENTS

NAMES = {"claude-code": "claude", "codex": "codex"}


async def recorded(agent: str, asked: argparse.Namespace, more: Sequence[str], place: Path) -> dict[str, Any]:
    """What came of a run; `place`: an empty folder."""
    work, home = laid_out(place)
    patience_s = 60.0 * asked.minutes
    async with serving(["serve", asked.model, "--served-model-name", "coder", *more], place / "log") as url:
        tap = Tap(url, asked.turns)
        async with tap.serving() as between:
            words, environment = command_of(agent, between, home, "auto", patience_s)
            began = time.monotonic()
            ended = await worked(
                words, environment_of(home, Path(asked.binaries)) | environment, work, patience_s, tap.enough
            )
            seconds = time.monotonic() - began
        tickets = {one["id"]: one for one in (await json_of(f"{url}/v1/tickets?limit=1000"))["data"]}
    file = work / FILE
    return {
        **ended,
        "seconds": round(seconds, 1),
        "turns": [asdict(turn) | {"missed": turn.missed} for turn in tap.turns],
        "prefixes": [tickets.get(turn.ticket, {}).get("prefix") for turn in tap.turns],
        "changed": file.is_file() and file.read_text(encoding="utf-8") != SOURCE,
        "checked": checked(work),
        "told": told(tap.turns),
    }


def told(turns: Sequence[Turn]) -> str:
    """A line for each turn, and their sums."""
    lines = [" turn  prompt  cached  answer  first s  whole s  ended; calls"]
    for number, turn in enumerate(turns, 1):
        figures = f"{turn.prompt_tokens:7,} {turn.cached_tokens:7,} {turn.output_tokens:7,}"
        seconds = " ".join(
            f"{'-' if one is None else f'{one:.1f}':>8}" for one in (turn.first_s, turn.whole_s)
        )
        calls = ", ".join(f"{call.name} {call.arguments[:100]}" for call in turn.calls)
        said = calls or ("a call in its text" if turn.missed else "no call") + f": {turn.text[:100]!r}"
        lines.append(f"{number:5} {figures} {seconds}  {turn.ended or turn.refused[:200]}; {said}")
        lines += [f"{'':8}{'failed' if one.failed else 'came'}: {one.text[:160]!r}" for one in turn.results]
    results = [one for turn in turns for one in turn.results]
    prompt, cached, written = (
        sum(getattr(turn, name) for turn in turns)
        for name in ("prompt_tokens", "cached_tokens", "output_tokens")
    )
    lines.append(
        f"{len(turns)} turns, {sum(len(turn.calls) for turn in turns)} calls of tools, "
        f"{sum(one.failed for one in results)} of {len(results)} results failures, "
        f"{sum(turn.missed for turn in turns)} calls left in a text, "
        f"{cached:,} of {prompt:,} prompt tokens cached, {written:,} written"
    )
    return "\n".join(lines)


def _asked(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--client", choices=NAMES, required=True)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b", help="of the catalogue, pulled before")
    parser.add_argument("--turns", type=int, default=12, help="after which it is over")
    parser.add_argument("--minutes", type=float, default=30.0, help="after which it is over")
    parser.add_argument("--keep", type=Path, help="where all of it is put, as JSON")
    parser.add_argument("--binaries", help=argparse.SUPPRESS)  # given where it runs within the namespace
    return parser.parse_known_args(words)


def main(words: Sequence[str]) -> int:
    asked, more = _asked(words)
    if asked.binaries is None:
        folder = npm_folder(tuple(AGENTS.values()), scripts=True)
        within = ["unshare", "-rn", sys.executable, "-m", "tests.clients.agents.recorded", *words]
        return subprocess.run(
            [*within, "--binaries", str(folder / "node_modules" / ".bin")], check=False
        ).returncode
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as name:
        found = asyncio.run(recorded(NAMES[asked.client], asked, more, Path(name)))
    if asked.keep is not None:
        asked.keep.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(found["told"])
    print(f"{found['seconds']:.0f} s; the agent ended with {found['code']}: {found['said'][-600:]}")
    print(
        f"{FILE} {'was' if found['changed'] else 'was not'} changed; the test says {found['checked'] or 'no'!r}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
