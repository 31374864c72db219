"""aiperf, by its command: what it counts of requests, whole and streamed, refused and cancelled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from contract import LONG, NOBODY, SHORT, WRONG_KEY, Place, check, drive

REQUESTS = 4
CANNOT = {
    "list": "it does not ask what there is",
    "tools": "it measures texts",
    "structured": "it measures texts",
    "400": "it sends what it is told",
}


def profiled(place: Place, *more: str, tokens: int = SHORT) -> list[dict[str, Any]]:
    """What a run wrote down of each request. Offline, it takes a folder with a tokenizer for a name at the hub."""
    folder = Path(mkdtemp())
    words = [str(Path(sys.executable).with_name("aiperf")), "profile", "--model", place.model]
    words += ["--url", place.url, "--endpoint-type", "chat", "--tokenizer", place.tokenizer]
    words += [
        "--api-key",
        place.key,
        "--request-count",
        str(REQUESTS),
        "--concurrency",
        "2",
        "--ui",
        "simple",
    ]
    words += ["--synthetic-input-tokens-mean", "16", "--output-tokens-mean", str(tokens)]
    words += ["--output-artifact-dir", str(folder), "--random-seed", "1", *more]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=environment)
    files = list(folder.rglob("profile_export.jsonl"))
    check(files, done.stdout[-1500:] + done.stderr[-1500:])
    return [json.loads(line) for line in files[0].read_text().splitlines()]


def chat(place: Place) -> None:
    records = profiled(place)
    check(len(records) == REQUESTS and not any(one.get("error") for one in records), records)


def stream(place: Place) -> None:
    records = profiled(place, "--streaming")
    times = [one["metrics"]["time_to_first_token"]["value"] for one in records]
    check(len(times) == REQUESTS and min(times) > 0, records)


def refused(place: Place, status: int) -> None:
    codes = {(one.get("error") or {}).get("code") for one in profiled(place)}
    check(codes == {status}, codes)


def crowded_out(place: Place) -> None:
    """Some of the requests that it sends at once may still fit into what is left; the others are refused."""
    codes = {(one.get("error") or {}).get("code") for one in profiled(place)}
    check({429} <= codes <= {None, 429}, codes)


def cancelled(place: Place) -> None:
    """All of them are left, a fifth of a second after they were sent."""
    leaving = ("--request-cancellation-rate", "100", "--request-cancellation-delay", "0.2")
    records = profiled(place, "--streaming", *leaving, tokens=LONG)
    check(records and all(one["metadata"]["was_cancelled"] for one in records), records)


if __name__ == "__main__":
    drive(
        ("aiperf",),
        {
            "chat": chat,
            "stream": stream,
            "401": lambda place: refused(place.with_key(WRONG_KEY), 401),
            "404": lambda place: refused(place.with_model(NOBODY), 404),
            "429": lambda place: crowded_out(place.crowded),
            "cancelled": cancelled,
        },
        CANNOT,
    )
