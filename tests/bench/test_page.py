"""The page of a run of load: its charts show what the answers were, and nothing is asked of anybody."""

from __future__ import annotations

import re

from weighbridge.bench.client import StreamedAnswer
from weighbridge.bench.page import load_page
from weighbridge.bench.report import LoadReport
from weighbridge.workload.slo import parse_slo

SLO = parse_slo("ttft=500ms,tpot=50ms,p=95")


def answer(started: float, ttft: float, gap: float, tokens: int) -> StreamedAnswer:
    chunks = [started + ttft + gap * index for index in range(tokens)]
    return StreamedAnswer(
        started, prompt_tokens=9, output_tokens=tokens, chunks=chunks, finished=chunks[-1], sizes=[4] * tokens
    )


def test_figures_and_charts_are_those_of_the_run() -> None:
    answers = [answer(100.0 + n / 10, 0.1 + n / 100, 0.02, 10) for n in range(30)]
    answers.append(StreamedAnswer(101.0, error="<b>refused</b>"))
    text = load_page(LoadReport(answers, 4.0, SLO), "http://127.0.0.1:8080: 31 requests")
    assert text.count("<svg") == 5
    assert "75.0 output tokens/s" in text
    assert "96.8% of 31 requests kept" in text
    assert "SLO 500 ms" in text
    assert "&lt;b&gt;refused&lt;/b&gt;" in text
    assert not re.search(r"<script|https?://(?!127)", text)


def test_a_run_in_which_everything_failed_has_a_page() -> None:
    text = load_page(LoadReport([StreamedAnswer(0.0, error="no")], 1.0, SLO), "nobody")
    assert "<svg" not in text
    assert "error: no" in text
