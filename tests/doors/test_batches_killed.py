"""A batch whose server is killed: every line is answered once, whatever happened in between."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from openai import APIConnectionError, OpenAI

from tests.doors.model import make_model
from tests.server.running import serving
from weighbridge.server.batch.store import BatchStore

LINES, KILLS = 2_000, (400, 1_200)


def requests() -> bytes:
    body = {"model": "tiny", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body | {"messages": [{"role": "user", "content": f"What weighs {number}?"}]},
        }
        for number in range(LINES)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def completed(asks: OpenAI, name: str) -> int:
    counts = asks.batches.retrieve(name).request_counts
    return counts.completed if counts else 0


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_two_thousand_lines_are_answered_once_although_the_server_is_killed_twice(tmp_path: Path) -> None:
    model, path = make_model(tmp_path / "tiny"), tmp_path / "batches.sqlite"
    name, answered = "", 0
    for kill_at in (*KILLS, None):
        with serving(model, "--batches-file", str(path), "--max-sequences", "32") as (url, process):
            asks = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)
            if not name:
                file = asks.files.create(file=("in.jsonl", requests()), purpose="batch")
                made = asks.batches.create(
                    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
                )
                name = made.id
            assert completed(asks, name) >= answered  # nothing that was said to be done is lost
            while (answered := completed(asks, name)) < (LINES if kill_at is None else kill_at):
                time.sleep(0.05)
            if kill_at is not None:
                process.kill()
                process.wait()
                with pytest.raises(APIConnectionError):
                    asks.models.list()
                continue
            while (done := asks.batches.retrieve(name)).status != "completed":
                time.sleep(0.05)
            assert done.output_file_id
            assert done.error_file_id is None
            assert done.request_counts
            assert done.request_counts.model_dump() == {"total": LINES, "completed": LINES, "failed": 0}
            rows = [json.loads(one) for one in asks.files.content(done.output_file_id).text.splitlines()]
    assert [row["custom_id"] for row in rows] == [f"line-{number}" for number in range(LINES)]
    assert done.usage
    assert (
        done.usage.output_tokens
        == 8 * LINES
        == sum(r["response"]["body"]["usage"]["completion_tokens"] for r in rows)
    )
    store = BatchStore(path, tenant_bytes=1, all_bytes=1)
    try:
        assert store.unfinished() == []
    finally:
        store.close()
