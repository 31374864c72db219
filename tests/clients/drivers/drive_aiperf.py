"""aiperf, by its command: what it counts of requests, whole and streamed, refused and cancelled."""

from __future__ import annotations

import json
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


def profiled(place: Place, *more: str, tokens: int = SHORT) -> dict[str, Any]:
    """The summary of a run."""
    folder = Path(mkdtemp())
    words = [
        str(Path(sys.executable).with_name("aiperf")),
        "profile",
        "--model",
        place.model,
        "--url",
        place.url,
    ]
    words += ["--endpoint-type", "chat", "--tokenizer", place.tokenizer, "--api-key", place.key]
    words += ["--request-count", str(REQUESTS), "--concurrency", "2", "--ui", "simple"]
    words += ["--synthetic-input-tokens-mean", "16", "--output-tokens-mean", str(tokens)]
    words += ["--output-artifact-dir", str(folder), "--random-seed", "1", *more]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    files = list(folder.rglob("profile_export_aiperf.json"))
    check(files, done.stdout[-1500:] + done.stderr[-1500:])
    summary: dict[str, Any] = json.loads(files[0].read_text())
    return summary


def count(summary: dict[str, Any], name: str) -> float:
    return float((summary.get(name) or {}).get("avg") or 0)


def chat(place: Place) -> None:
    summary = profiled(place)
    check(count(summary, "request_count") == REQUESTS and not count(summary, "error_request_count"), summary)


def stream(place: Place) -> None:
    summary = profiled(place, "--streaming")
    check(count(summary, "request_count") == REQUESTS, summary)
    check(count(summary, "time_to_first_token") > 0, summary)


def refused(place: Place, status: int) -> None:
    summary = profiled(place)
    codes = [one["error_details"]["code"] for one in summary["error_summary"]]
    check(status in codes, summary["error_summary"])


def cancelled(place: Place) -> None:
    summary = profiled(
        place,
        "--streaming",
        "--request-cancellation-rate",
        "100",
        "--request-cancellation-delay",
        "0.2",
        tokens=LONG,
    )
    check(
        [one["error_details"]["code"] for one in summary["error_summary"]] == [499], summary["error_summary"]
    )


if __name__ == "__main__":
    drive(
        ("aiperf",),
        {
            "chat": chat,
            "stream": stream,
            "401": lambda place: refused(place.with_key(WRONG_KEY), 401),
            "404": lambda place: refused(place.with_model(NOBODY), 404),
            "429": lambda place: refused(place.crowded, 429),
            "cancelled": cancelled,
        },
        CANNOT,
    )
