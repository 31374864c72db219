"""A run of load as a page: its figures, and how tokens, waiting and times went over the run. No scripts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weighbridge.bench.client import StreamedAnswer
from weighbridge.bench.report import LoadReport
from weighbridge.pages.charts import Chart, Series
from weighbridge.pages.html import Html, items, page, table, tag
from weighbridge.workload.quantiles import Floats

#: Parts of the run over which tokens are counted, and points of a curve of shares.
_BINS, _POINTS = 120, 200


def load_page(report: LoadReport, about: str) -> str:
    """The page of `bench serve --html`. `about`: who was asked for what."""
    told = report.as_dict()
    rows = [
        (name, *(f"{told[key][share]:.1f}" for share in ("p50", "p95", "p99")), meaning)
        for name, key, meaning in (
            ("TTFT, ms", "ttft_ms", "sent to first token"),
            ("ITL, ms", "itl_ms", "between two tokens"),
            ("TPOT, ms", "tpot_ms", "a request's mean gap between tokens"),
            ("total, ms", "e2e_ms", "sent to last token"),
        )
    ]
    kept = "was kept" if told["slo"]["met"] else "was not kept"
    return page(
        "Load",
        tag("h1", "Load"),
        tag("p", about, cls="soft"),
        tag(
            "p",
            f"{told['output_tokens_per_s']:.1f} output tokens/s and {told['goodput_rps']:.2f} requests/s within "
            f"TTFT {told['slo']['ttft_ms']:g} ms and TPOT {told['slo']['tpot_ms']:g} ms, which "
            f"{told['good_share']:.1%} of {told['requests']} requests kept: p {told['slo']['p']:g} {kept}. "
            f"{told['errors']} errors in {report.seconds:.1f} s.",
        ),
        items([*report.warnings(), *(f"error: {text}" for text in told["error_samples"])]),
        tag("h2", "Times"),
        table(["", "p50", "p95", "p99", ""], rows),
        *_shares(report),
        *_over_time(report),
    )


def _shares(report: LoadReport) -> list[Html]:
    """Which share of the requests was at least as quick."""
    good = report.good
    charts = []
    for title, values, bound in (
        ("Time to first token", [one.ttft for one in good], report.slo.ttft_s),
        ("Time per output token", [one.tpot for one in good if one.tpot is not None], report.slo.tpot_s),
    ):
        if values:
            shares = np.linspace(0.0, 1.0, min(_POINTS, max(len(values), 2)))
            line = Series(title, shares * 100, np.quantile(np.asarray(values) * 1e3, shares))
            words = f"SLO {bound * 1e3:g} ms"
            top = max(values) * 1e3
            across = [(bound * 1e3, words)] if bound * 1e3 < 3 * top else []
            charts.append(Chart(title, "share of the requests, %", "ms", [line], 100.0, across=across).html())
    return charts


def _over_time(report: LoadReport) -> list[Html]:
    good, right = report.good, report.seconds
    if not good or right <= 0.0:
        return []
    began = min(one.started for one in report.answers)
    edges, per_second = _tokens_per_second(good, began, right)
    tokens = Series("output tokens/s", edges, per_second, steps=True)
    times, running = _in_flight(good, began)
    order = sorted(good, key=lambda one: one.started)
    first = Series(
        "TTFT",
        [one.started - began for one in order],
        [one.ttft * 1e3 for one in order],
        dots=len(order) <= _POINTS,
    )
    return [
        tag("h2", "Over the run"),
        Chart("Output tokens per second", "seconds", "tokens/s", [tokens], right).html(),
        Chart(
            "Requests in flight",
            "seconds",
            "requests",
            [Series("requests", times, running, steps=True)],
            right,
        ).html(),
        Chart("Time to first token by when a request was sent", "seconds", "ms", [first], right).html(),
    ]


def _tokens_per_second(good: Sequence[StreamedAnswer], began: float, right: float) -> tuple[Floats, Floats]:
    """Tokens by the part of the run in which they came; a chunk counts as its share of its answer's tokens."""
    counts, edges = np.zeros(_BINS), np.linspace(0.0, right, _BINS + 1)
    for one in good:
        sizes = np.asarray(one.sizes or [1] * len(one.chunks), np.float64)
        if len(sizes) == 0 or sizes.sum() <= 0.0:
            continue
        place = np.clip((np.asarray(one.chunks) - began) / right * _BINS, 0, _BINS - 1).astype(np.int64)
        np.add.at(counts, place, sizes / sizes.sum() * one.output_tokens)
    return edges[:-1], counts / (right / _BINS)


def _in_flight(good: Sequence[StreamedAnswer], began: float) -> tuple[Floats, Floats]:
    times = np.asarray([one.started for one in good] + [one.finished for one in good]) - began
    steps = np.asarray([1.0] * len(good) + [-1.0] * len(good))
    order = np.argsort(times, kind="stable")
    return times[order], np.cumsum(steps[order])
