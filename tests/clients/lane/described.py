"""schemathesis against /openapi.json: `python -m tests.clients.lane.described [--examples N] [--door single|gateway]`.

Every operation is called as its document says, and as it says one must not; a program of its own, which knows nothing
of this server, makes the calls, follows links from what was answered to what can be asked of it, and holds each answer
to its schema. What no schema can say (ids that there are, tokens of this model, names of tools that were offered) is
put into three of four calls that are meant to be taken (`drivers/fill_calls.py`). Prints how many calls there were,
how they ended, and what was wrong. A run may be made in pieces, a server for each, and summed:

    python -m tests.clients.lane.described --phases examples,coverage --keep first.jsonl
    python -m tests.clients.lane.described --phases fuzzing,stateful --add first.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.lane.environments import python_of
from tests.clients.lane.site import KEY, Place, ask_json, site
from tests.clients.lane.table import SCHEMATHESIS

HOOKS = Path(__file__).parents[1] / "drivers" / "count_calls.py"
#: What schemathesis does, in this order: examples of the document, each bound of each field, random values, links.
PHASES = "examples,coverage,fuzzing,stateful"
#: Seconds for all calls.
PATIENCE = 3 * 3600.0


@dataclass(frozen=True, slots=True)
class Calls:
    """What became of all calls: one record each, and what schemathesis said."""

    records: Sequence[dict[str, Any]]
    said: str

    @property
    def good(self) -> float:
        """The share of 2xx."""
        return sum(200 <= one["status"] < 300 for one in self.records) / max(len(self.records), 1)

    @property
    def failed(self) -> list[dict[str, Any]]:
        """What was answered with 500 and more, but for what a request itself may bring about: 503 says not now, and 504
        that a deadline cannot be held."""
        return [one for one in self.records if one["status"] >= 500 and one["status"] not in (503, 504)]

    def by(self, *names: str) -> Counter[tuple[Any, ...]]:
        return Counter(tuple(one[name] for name in names) for one in self.records)

    def told(self) -> str:
        lines = [f"{len(self.records)} calls, {100 * self.good:.1f} % 2xx, {len(self.failed)} failed"]
        lines += [
            f"  {count:6} {' '.join(map(str, key))}" for key, count in sorted(self.by("status").items())
        ]
        lines += [
            f"  {count:6} {' '.join(map(str, key))}"
            for key, count in sorted(self.by("mode", "phase").items())
        ]
        return "\n".join(lines)


def called(
    url: str, key: str, examples: int, seed: int, folder: Path, phases: str = PHASES, paths: str = "."
) -> Calls:
    """Let schemathesis call a server, at paths that an expression is found in. Its findings are in `said`."""
    python = python_of((SCHEMATHESIS,))
    file = folder / "calls.jsonl"
    environment = {
        "CALLS_MADE_BEFORE": json.dumps(made_at(Place(url, "tiny", key))),
        "HOME": str(folder),
        "PATH": os.defpath,
        "NO_PROXY": "*",
        "CALLS_FILE": str(file),
        "SCHEMATHESIS_HOOKS": HOOKS.stem,
        "PYTHONPATH": str(HOOKS.parent),
        **{name: os.environ[name] for name in ("CALLS_IN_FULL",) if name in os.environ},
    }
    words = [
        str(python.parent / "st"),
        "run",
        f"{url}/openapi.json",
        "--header",
        f"Authorization: Bearer {key}",
    ]
    words += [
        "--include-path-regex",
        paths,
        "--phases",
        phases,
        "--max-examples",
        str(examples),
        "--seed",
        str(seed),
        "--continue-on-failure",
        "--no-color",
    ]
    words += ["--request-timeout", "60", "--suppress-health-check", "all"]
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return Calls(records_in(file), done.stdout + done.stderr[-2000:])


def made_at(place: Place) -> dict[str, str]:
    """Ids of what a client has made at a server before, by the holes of paths that they fill."""
    body = {"model": place.model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = uploaded(place, json.dumps(line).encode())
    batch = {"input_file_id": file, "endpoint": line["url"], "completion_window": "24h"}
    examples = [{"probability": number / 20, "outcome": number % 3 > 0} for number in range(20)]
    return {
        "file": file,
        "batch": ask_json(place, "/v1/batches", batch)["id"],
        "response": ask_json(place, "/v1/responses", {"model": place.model, "input": "hello"})["id"],
        "name": ask_json(place, "/v1/decisions/calibrations", {"name": "late", "examples": examples})["id"],
    }


def uploaded(place: Place, content: bytes) -> str:
    """The id of a file of requests."""
    head = (
        '--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\ncontent-disposition: '
    )
    head += 'form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    asked = urllib.request.Request(
        place.url + "/v1/files",
        head.encode() + content + b"\r\n--x--\r\n",
        {"authorization": f"Bearer {place.key}", "content-type": "multipart/form-data; boundary=x"},
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return str(json.load(answer)["id"])


def records_in(file: Path) -> list[dict[str, Any]]:
    """The records of a run; none where it made no call."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=150, help="of an operation")
    parser.add_argument("--door", choices=("single", "gateway"), default="single")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--phases", default=PHASES, help="some of them, with commas between")
    parser.add_argument(
        "--paths", default=".", help="an expression that is found in the paths that are called"
    )
    parser.add_argument("--keep", type=Path, help="where the records of all calls are put")
    parser.add_argument("--add", type=Path, action="append", default=[], help="records that are counted too")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, site(Path(name), brief=True) as doors:
        calls = called(
            doors[asked.door].place.url,
            KEY,
            asked.examples,
            asked.seed,
            Path(name),
            asked.phases,
            asked.paths,
        )
    calls = Calls([*calls.records, *(one for file in asked.add for one in records_in(file))], calls.said)
    if asked.keep is not None:
        asked.keep.write_text("\n".join(map(json.dumps, calls.records)), encoding="utf-8")
    print(calls.said)
    print(calls.told())
    return 0


if __name__ == "__main__":
    sys.exit(main())
