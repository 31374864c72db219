"""A self-contained HTML page of an experiment: figures, timelines of one seed, curves of a sweep. No scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weighbridge.pages.charts import Chart, Series, binned
from weighbridge.pages.html import Html, joined, page, save, table, tag
from weighbridge.simulator.experiment import Experiment
from weighbridge.simulator.fleet import Act, Run, Simulation
from weighbridge.simulator.timeline import Timeline, Track

#: Parts of the time axis: more spans than that become their mean and their peak in each part.
BINS = 440
_QUANTILES = ("p50", "p95", "p99")

Figures = Mapping[str, Any]


def write_page(path: Path, experiment: Experiment, result: Figures) -> None:
    """Write the page; a run without comparison or sweep is simulated once more to draw its timelines.

    Raises BadInput when the file cannot be written.
    """
    parts = [tag("h1", "weighbridge simulate"), *_setup(result.get("setup", {}))]
    if "sweep" in result:
        parts += _sweep(result["sweep"], experiment)
    elif "compare" in result:
        parts += [tag("h2", "Compared"), _compared(result["compare"])]
    else:
        parts += [tag("h2", "Figures"), _latencies(result), *_facts(result), *_timelines(experiment)]
    save(path, page("weighbridge simulate", *parts))


def _setup(setup: Mapping[str, str]) -> Iterator[Html]:
    """Say what was simulated, a line for each thing."""
    if setup:
        lines = (f"{name}: {words}" for name, words in setup.items())
        yield tag("p", joined(lines, Html("<br>")), cls="soft")


# -- tables --------------------------------------------------------------------------------------------


def _latencies(result: Figures) -> Html:
    names = {
        "TTFT, ms": "ttft_ms",
        "TPOT, ms": "tpot_ms",
        "ITL, ms": "itl_ms",
        "whole request, ms": "e2e_ms",
        "waiting in the gateway, ms": "gateway_wait_ms",
    }
    columns = ("mean", "p50", "p90", "p95", "p99")
    return table(
        ("", *columns), ([name, *(_ms(result, key, q) for q in columns)] for name, key in names.items())
    )


def _ms(result: Figures, key: str, column: str) -> object:
    if column not in result[key]:
        return ""
    interval = result.get("intervals", {}).get(key, {}).get(column)
    half = interval["high"] - interval["mean"] if interval else 0.0
    value = f"{result[key][column]:,.1f}"
    return joined((value, " ", tag("span", f"± {half:,.1f}", cls="soft"))) if half else value


def _facts(result: Figures) -> Iterator[Html]:
    """Say what is no latency, in words and numbers; and list the replicas."""
    seeds = f", mean of {result['seeds']} seeds, ± for 95 % of them" if result["seeds"] > 1 else ""
    facts = [
        f"{result['requests']:,.0f} requests in {result['seconds']:,.1f} s{seeds}",
        f"{result['output_tokens_per_s']:,.1f} output tokens/s",
        f"{result['goodput_rps']:,.2f} requests/s within the targets ({result['good_share']:.1%})",
        f"{result['preemptions']:,.0f} preemptions, {result['retries']:,.0f} retries, {result['failed']:,.0f} failed",
    ]
    if result["usd"]:
        facts.append(
            f"{result['usd']:,.2f} USD, {result['usd_per_million_output_tokens']:,.2f} per million output tokens"
        )
    rows = [
        (
            name,
            f"{replica['requests']:,.0f}",
            f"{replica['utilization']:.1%}",
            f"{replica['kv_occupancy']:.1%}",
            f"{replica['iterations']:,.0f}",
            f"{replica['tokens_per_iteration']:,.1f}",
            f"{replica['sequences_per_iteration']:,.1f}",
        )
        for name, replica in list(result["replicas"].items())[:64]
    ]
    head = ("replica", "requests", "busy", "KV held", "iterations", "tokens each", "sequences each")
    yield tag("p", f"{'; '.join(facts)}.")
    yield table(head, rows)


#: Columns of comparisons and sweeps: name, digits, whether less is better (None: neither), and the value.
_COLUMNS: tuple[tuple[str, str, str | None], ...] = (
    *((f"TTFT {q}, ms", "ttft_ms", q) for q in _QUANTILES),
    *((f"TPOT {q}, ms", "tpot_ms", q) for q in ("p50", "p99")),
    ("output tokens/s", "output_tokens_per_s", None),
    ("within targets", "good_share", None),
    ("prompt from caches", "prefix_hit_rate", None),
    ("busy", "utilization", None),
    ("KV held", "kv_occupancy", None),
)


def _compared(results: Mapping[str, Figures]) -> Html:
    """Return a row for each; the bar behind a number is its share of the column's largest."""
    rows = []
    columns = [
        [float(figures[key] if q is None else figures[key][q]) for figures in results.values()]
        for _, key, q in _COLUMNS
    ]
    for place, name in enumerate(results):
        cells: list[object] = [name]
        for (_, key, q), column in zip(_COLUMNS, columns, strict=True):
            value = column[place]
            text = f"{value:.1%}" if q is None and "per_s" not in key else f"{value:,.{1 if q else 0}f}"
            cells.append(_bar(text, value / (max(column) or 1.0)))
        rows.append(cells)
    return table(("", *(name for name, _, _ in _COLUMNS)), rows)


def _bar(text: str, share: float) -> Html:
    fill = f"linear-gradient(to left,#2f74d033 {share:.1%},transparent {share:.1%})"
    return tag("span", text, style=f"display:block;padding:0 .3rem;background:{fill}")


# -- timelines -----------------------------------------------------------------------------------------


def _timelines(experiment: Experiment) -> Iterator[Html]:
    simulation: Simulation
    timeline = Timeline(lambda name: simulation.replicas[name], lambda: len(simulation.gateway.queue))
    seed = experiment.seeds[0]
    requests = experiment.source.requests(seed, experiment.rate)
    simulation = Simulation(experiment.fleet, requests, seed, watcher=timeline)
    run = simulation.run()
    end = run.seconds or 1.0
    script = [act for act in experiment.fleet.script if act.at <= end]
    acts = [_mark(act) for act in script]
    yield tag("h2", f"Timelines of seed {seed}")
    yield tag("p", _grain(end), cls="soft")
    queue = Series("waiting", *_columns(timeline.gateway), steps=True)
    yield Chart("Waiting at the gateway", "seconds", "requests", [queue], end, down=acts).html()
    if len(run.sizes) > len(experiment.fleet.replicas):
        yield _sizes(run, end, acts)
    for number, (name, track) in enumerate(sorted(timeline.replicas.items())):
        own = [_mark(act) for act in script if act.replica == name.partition("@")[0]]
        drawn = (chart.html() for chart in _of_replica(track, end, own))
        yield tag("details", tag("summary", f"Replica {name}"), *drawn, open=number == 0 or None)
    if timeline.left_out:
        yield tag("p", f"{len(timeline.left_out)} more replicas are not drawn.")


def _mark(act: Act) -> tuple[float, str]:
    return act.at, f"{act.what} {act.replica}"


def _grain(end: float) -> str:
    return f"A line is the mean over {end / BINS:.3g} s, the shade above it the most in that time; idle counts as 0."


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [float(y) for _, y in points]


def _sizes(run: Run, end: float, acts: Sequence[tuple[float, str]]) -> Html:
    at, sizes = _columns([*run.sizes, (end, run.sizes[-1][1])])
    line = Series("replicas", at, sizes, steps=True)
    return Chart(
        "Replicas that are paid for", "seconds", "replicas", [line], end, height=140, down=acts
    ).html()


def _of_replica(track: Track, end: float, acts: Sequence[tuple[float, str]]) -> Iterator[Chart]:
    def line(name: str, column: str, factor: float = 1.0) -> Series:
        begins, ends = track.span(end)
        x, mean, peak = binned(begins, ends, track[column] * factor, end, BINS)
        return Series(name, x, mean, steps=True, peak=peak)

    decodes, prompts = line("sequences that decode", "decodes"), line("prompt tokens", "prompt_tokens")
    yield Chart("Batch of an iteration: decodes", "seconds", "sequences", [decodes], end, down=acts)
    yield Chart("Batch of an iteration: prompts", "seconds", "prompt tokens", [prompts], end, down=acts)
    both = [line("running", "running"), line("waiting", "waiting")]
    yield Chart("Requests in the replica", "seconds", "requests", both, end, down=acts)
    kv = line("held by requests", "kv_share", 100.0)
    full = 100.0 if float(np.max(track["kv_share"], initial=0.0)) > 0.5 else None
    yield Chart("KV blocks that requests hold", "seconds", "% of the pool", [kv], end, top=full, down=acts)


# -- sweeps --------------------------------------------------------------------------------------------


def _sweep(sweep: Figures, experiment: Experiment) -> Iterator[Html]:
    points: Sequence[Figures] = sweep["points"]
    knee, share = sweep["knee_rps"], f"{sweep['served_share']:.0%}"
    targets = (
        f"TTFT {experiment.targets.ttft_s * 1e3:,.0f} ms and TPOT {experiment.targets.tpot_s * 1e3:,.0f} ms"
    )
    said = "No rate that was tried" if knee is None else f"Up to {knee:.3g} requests/s, the knee,"
    yield tag("h2", "Rates")
    yield tag("p", f"{said} keeps {share} of the requests within {targets}.")
    yield _compared({f"{point['rate']:.3g} requests/s": point for point in points})
    for name, key, target in (
        ("TTFT", "ttft_ms", experiment.targets.ttft_s * 1e3),
        ("TPOT", "tpot_ms", experiment.targets.tpot_s * 1e3),
    ):
        yield _curve(points, knee, name, key, target)
    good = Series(
        "within targets", [p["rate"] for p in points], [p["goodput_rps"] for p in points], dots=True
    )
    most = max(point["rate"] for point in points) * 1.04
    yield Chart(
        "Goodput over the rate offered", "requests/s offered", "requests/s within targets", [good], most,
        height=240, down=_knee(knee, knee),
    ).html()  # fmt: skip


def _knee(at: float | None, knee: float | None) -> list[tuple[float, str]]:
    return [] if at is None or knee is None else [(at, f"knee: {knee:.3g} requests/s")]


def _curve(points: Sequence[Figures], knee: float | None, name: str, key: str, target: float) -> Html:
    """Draw latency over throughput: up and to the right as the rate rises, and straight up behind the knee."""
    x = [float(point["output_tokens_per_s"]) for point in points]
    notes = [f"{point['rate']:.3g} requests/s offered" for point in points]
    lines = [Series(q, x, [point[key][q] for point in points], dots=True, notes=notes) for q in _QUANTILES]
    at = next((out for out, point in zip(x, points, strict=True) if point["rate"] == knee), None)
    return Chart(
        f"{name} over throughput", "output tokens/s", f"{name}, ms", lines, max(x) * 1.04, height=320,
        logarithmic=True, down=_knee(at, knee), across=[(target, f"target {target:,.0f} ms")],
    ).html()  # fmt: skip
