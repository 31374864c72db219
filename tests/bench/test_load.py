"""Whole runs against a scripted server: prompts, loops, what the report admits."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from tests.bench.fake_server import Script, serving
from weighbridge.bench.interference import InterferenceOptions
from weighbridge.bench.interference import run_async as run_interference
from weighbridge.bench.prompts import WORDS
from weighbridge.bench.report import LoadReport
from weighbridge.bench.serve import ServeOptions, run_async
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.workload.arrivals import closed
from weighbridge.workload.requests import TraceRow
from weighbridge.workload.slo import USUAL
from weighbridge.workload.traces import TraceOptions, read_rows


async def measure(script: Script, **options: object) -> LoadReport:
    async with serving(script) as url:
        base = ServeOptions(url, None, closed(6, 10, 4), concurrency=3, timeout=10.0)
        return await asyncio.wait_for(run_async(dataclasses.replace(base, **options)), 30)  # type: ignore[arg-type]


async def test_the_warm_up_is_sent_and_not_counted() -> None:
    script = Script()
    report = await measure(script, warm_up=5)
    assert report.as_dict()["requests"] == 6
    assert len(script.bodies) == 1 + 5 + 6  # the first finds out whether ids are taken
    assert len({tuple(body["prompt"]) for body in script.bodies}) == 12  # no two prompts are alike
    assert all(
        body["ignore_eos"] and body["stream_options"] == {"include_usage": True} for body in script.bodies
    )


async def test_the_closed_loop_keeps_its_clients_busy_and_no_more() -> None:
    script = Script(pause=0.003)
    report = await measure(script, arrivals=closed(24, 10, 4), concurrency=5)
    assert script.most == 5
    assert report.as_dict()["output_tokens"] == 24 * 4
    assert report.as_dict()["client_cpu_share"] > 0


async def test_the_open_loop_waits_for_nobody() -> None:
    script = Script(pause=0.02)
    arrivals = [TraceRow(0.001 * n, 10, 4) for n in range(12)]
    report = await measure(script, arrivals=arrivals, concurrency=None)
    assert script.most == 12
    figures = report.as_dict()
    assert figures["errors"] == 0
    assert set(figures["late_ms"]) == {"p50", "p95", "p99"}
    assert report.seconds >= 0.011 + 4 * 0.02


async def test_same_seed_same_prompts_and_a_shared_prefix() -> None:
    first, second = Script(), Script()
    for script in (first, second):
        await measure(script, seed=3, shared_prefix=6, concurrency=1)
    assert first.bodies == second.bodies
    prompts = [body["prompt"] for body in first.bodies]
    assert all(prompt[:6] == prompts[0][:6] and len(prompt) == 10 for prompt in prompts)
    assert len({tuple(prompt) for prompt in prompts}) == len(prompts)


@pytest.mark.parametrize("shape", ["vllm", "llama"])
async def test_a_server_that_takes_no_ids_gets_text_of_the_right_length(shape: str) -> None:
    script = Script(takes_ids=False, tokenize=shape, template=2)
    report = await measure(script, warm_up=1, shared_prefix=5)
    assert report.prompts == "text"
    assert report.as_dict()["errors"] == 0
    assert {one.prompt_tokens for one in report.answers} == {10}
    prompts = [body["prompt"].split() for body in script.bodies]
    assert all(len(words) == 8 and words[:3] == prompts[0][:3] for words in prompts)


async def test_text_without_any_tokenizer_is_one_token_a_word() -> None:
    report = await measure(Script(), text_prompts=True)
    assert {one.prompt_tokens for one in report.answers} == {10}


async def test_a_local_tokenizer_counts_for_a_chat(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(["<s>", *WORDS])}, unk_token="<s>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    script = Script()
    report = await measure(script, endpoint="chat", tokenizer=tmp_path)
    assert report.as_dict()["errors"] == 0
    assert report.as_dict()["output_tokens"] == 24
    assert all(len(body["messages"][0]["content"].split()) == 9 for body in script.bodies)
    with pytest.raises(BadInput, match=r"tokenizer\.json"):
        await measure(Script(), endpoint="chat", tokenizer=tmp_path / "none")


async def test_the_report_admits_short_answers_and_missing_usage() -> None:
    figures = (await measure(Script(chunks=[1, 1], usage=False))).as_dict()
    assert (figures["short"], figures["counted_by_chunks"]) == (6, 6)
    figures = (await measure(Script(chunks=[2, 2]))).as_dict()
    assert (figures["short"], figures["counted_by_chunks"], figures["output_tokens"]) == (0, 0, 24)


async def test_every_failure_is_counted_and_the_slow_ones_are_cut_off() -> None:
    figures = (await measure(Script(hang=True), timeout=0.1)).as_dict()
    assert figures["errors"] == figures["requests"] == 6
    assert figures["output_tokens_per_s"] == figures["goodput_rps"] == 0.0
    assert "no end within 0.1 s" in figures["error_samples"][0]


async def test_no_server_is_said_plainly() -> None:
    with pytest.raises(WeighbridgeError, match="is a server running there"):
        await run_async(ServeOptions("http://127.0.0.1:9", None, closed(1, 1, 1)))


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_a_url_may_end_as_openai_clients_write_it(url: str) -> None:
    options = ServeOptions(url, "m", [])
    assert options.base + options.path == "http://h:1/v1/completions"


def test_the_table_and_the_json_have_the_names_that_scripts_read(capsys: pytest.CaptureFixture[str]) -> None:
    report = LoadReport([], 0.0, USUAL)
    report.print()
    assert "output tokens/s" in capsys.readouterr().out
    figures = report.as_dict()
    for name in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms"):
        assert set(figures[name]) == {"p50", "p95", "p99"}
    assert {"output_tokens_per_s", "goodput_rps", "errors", "requests"} <= set(figures)


def test_a_trace_is_put_in_order_and_bad_ones_are_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = ['{"timestamp": 5000, "input_length": 900, "output_length": 0}']
    rows += ['{"timestamp": 2000, "input_length": 30, "output_length": 7}', ""]
    path.write_text("\n".join(rows))
    assert read_rows(path, TraceOptions(speed=3.0, scale_prompt=0.5, max_prompt=100)) == [
        TraceRow(0.0, 15, 7),
        TraceRow(1.0, 100, 1),
    ]
    assert read_rows(path, TraceOptions(limit=1)) == [TraceRow(0.0, 30, 7)]
    for content in ("", "[1, 2]\n", "no json\n", '{"timestamp": "x"}\n'):
        path.write_text(content)
        with pytest.raises(BadInput, match=r"trace\.jsonl"):
            read_rows(path)
    for missing in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(BadInput, match="cannot be read"):
            read_rows(missing)


async def test_interference_tells_before_from_during() -> None:
    script = Script(pause=0.004)
    async with serving(script) as url:
        options = InterferenceOptions(
            url, streams=3, stream_prompt=5, stream_output=60, prompt_tokens=50, settle=10
        )
        report = await asyncio.wait_for(run_interference(options), 30)
    figures = report.as_dict()
    assert figures["errors"] == []
    assert figures["streams_cut_short"] == 0
    assert report.before
    assert report.during
    assert report.after
    assert len(report.gaps) <= 3 * 59
    assert figures["itl_during_prompt_ms"]["max"] <= figures["max_gap_ms"]
    assert figures["prompt_ttft_ms"] > 0
    assert figures["p99_over_median"] >= 1
    lengths = [len(body["prompt"]) for body in script.bodies]
    assert lengths == [5, 5, 5, 50]  # the long prompt came when the streams had settled


async def test_interference_says_when_the_streams_ended_too_early() -> None:
    async with serving(Script(chunks=[1, 1])) as url:
        report = await asyncio.wait_for(run_interference(InterferenceOptions(url, streams=2)), 30)
    assert report.as_dict()["streams_cut_short"] == 2
