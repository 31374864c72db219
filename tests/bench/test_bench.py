"""The load generator: counts, formulas and traces, against a server whose timing is known."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from weighbridge.bench.client import StreamedAnswer
from weighbridge.bench.prompts import prompt_ids
from weighbridge.bench.report import LoadReport
from weighbridge.bench.serve import ServeOptions, run_async
from weighbridge.errors import BadInput
from weighbridge.workload.arrivals import closed, poisson
from weighbridge.workload.quantiles import quantile
from weighbridge.workload.requests import TraceRow
from weighbridge.workload.slo import parse_slo
from weighbridge.workload.traces import TraceOptions, read_rows


def test_tpot_is_the_time_after_the_first_token_over_the_rest() -> None:
    answer = StreamedAnswer(10.0, 5, 11, [10.5, 11.0, 12.5], 12.5)
    assert answer.ttft == pytest.approx(0.5)
    assert answer.e2e == pytest.approx(2.5)
    assert answer.tpot == pytest.approx(0.2)
    assert answer.gaps == pytest.approx([0.5, 1.5])


def test_percentiles_interpolate() -> None:
    values = [random.Random(0).random() for _ in range(101)]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    for share in (0.5, 0.95, 0.99):
        assert quantile(values, share) == pytest.approx(cuts[round(share * 100) - 1])
    assert quantile([], 0.5) == 0.0


def test_goodput_counts_requests_that_kept_both_limits() -> None:
    good = StreamedAnswer(0.0, 1, 3, [0.1, 0.2, 0.3], 0.3)
    late = StreamedAnswer(0.0, 1, 3, [0.9, 1.0, 1.1], 1.1)
    slow = StreamedAnswer(0.0, 1, 3, [0.1, 0.6, 1.1], 1.1)
    figures = LoadReport([good, late, slow], 2.0, parse_slo("ttft=500ms,tpot=200ms,p=30")).as_dict()
    assert figures["goodput_rps"] == pytest.approx(0.5)
    assert figures["output_tokens_per_s"] == pytest.approx(4.5)
    assert figures["good_share"] == pytest.approx(1 / 3)
    assert figures["slo"] == pytest.approx({"ttft_ms": 500, "tpot_ms": 200, "p": 30, "met": True})


def test_where_every_request_failed_no_time_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    failed = StreamedAnswer(0.0, 1, error="HTTP 404")
    LoadReport([failed], 1.0, parse_slo("ttft=1s,tpot=100ms")).print()
    shown = capsys.readouterr().out
    assert shown.count(" - ") == 4 * 3
    assert "1 requests, 1 errors" in shown


def test_traces_of_both_kinds(tmp_path: Path) -> None:
    azure = tmp_path / "a.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.6805900,400,200\n"
    )
    assert read_rows(azure, TraceOptions(speed=2.0, scale_prompt=0.5, max_output=100)) == [
        TraceRow(0.0, 187, 44),
        TraceRow(2.0, 200, 100),
    ]
    mooncake = tmp_path / "m.jsonl"
    mooncake.write_text('{"timestamp": 3000, "input_length": 10, "output_length": 4, "hash_ids": [1]}\n')
    assert read_rows(mooncake) == [TraceRow(0.0, 10, 4, blocks=(1,))]
    azure.write_text("a,b\n1,2\n")
    with pytest.raises(BadInput, match="ContextTokens"):
        read_rows(azure)


def test_poisson_keeps_lengths_and_rate() -> None:
    arrivals = poisson(closed(2000, 7, 9), 50.0, random.Random(1))
    assert arrivals[-1].at == pytest.approx(40.0, rel=0.1)
    assert {(one.prompt_tokens, one.output_tokens) for one in arrivals} == {(7, 9)}


def test_prompts_have_their_length_and_share_their_prefix() -> None:
    rng = random.Random(2)
    first, second = (prompt_ids(20, range(100), rng, [5] * 8) for _ in range(2))
    assert len(first) == len(second) == 20
    assert first[:8] == second[:8]
    assert first != second
    assert prompt_ids(3, range(100), rng, [5] * 8) == [5] * 3


class FakeServer:
    """Streams `max_tokens` chunks after a pause each; every fifth request is refused."""

    def __init__(self, refuse: bool) -> None:
        self.running = self.most = self.seen = 0
        self._refuse = refuse

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.text())
        self.seen += 1
        if self._refuse and self.seen % 5 == 0:
            return web.json_response({"error": {"message": "full"}}, status=429)
        self.running += 1
        self.most = max(self.most, self.running)
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(body["max_tokens"]):
            await asyncio.sleep(0.005)
            await answer.write(b'data: {"choices":[{"index":0,"text":"x"}]}\n\n')
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        await answer.write(f'data: {{"choices":[],"usage":{json.dumps(usage)}}}\n\ndata: [DONE]\n\n'.encode())
        self.running -= 1
        return answer


@pytest.mark.parametrize("refuse", [False, True])
async def test_a_closed_loop_counts_what_the_server_did(refuse: bool) -> None:
    fake = FakeServer(refuse)
    app = web.Application()
    app.router.add_post("/v1/completions", fake.complete)
    async with TestServer(app) as server:
        options = ServeOptions(str(server.make_url("/")), "fake", closed(20, 12, 6), concurrency=4)
        report = await asyncio.wait_for(run_async(options), 30)
    figures = report.as_dict()
    assert fake.most <= 4
    assert fake.seen == 20
    assert (figures["requests"], figures["errors"]) == (20, 4 if refuse else 0)
    for answer in report.good:
        assert (answer.prompt_tokens, answer.output_tokens, len(answer.chunks)) == (12, 6, 6)
        assert answer.ttft >= 0.004
        assert answer.e2e >= 0.028
    if refuse:
        assert "429" in figures["error_samples"][0]
