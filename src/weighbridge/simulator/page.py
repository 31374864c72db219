"""A self-contained HTML page of an experiment: figures, timelines of one seed, curves of a sweep. No scripts."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.simulator.experiment import Experiment
from weighbridge.simulator.fleet import Simulation
from weighbridge.simulator.timeline import Point, Timeline

WIDTH, HEIGHT, LEFT = 960, 120, 60
#: Replicas drawn; more would make the page too long to read.
MOST_REPLICAS = 8
_COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed")

_STYLE = """
body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1060px;padding:0 1rem;color:#111;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}
td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}
svg{display:block;width:100%;height:auto;margin:.4rem 0 1rem}text{font:11px system-ui,sans-serif;fill:#444}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#16181d}td,th{border-color:#333}text{fill:#aaa}}
"""

Series = Sequence[tuple[float, float]]


def write_page(path: Path, experiment: Experiment, result: Mapping[str, Any]) -> None:
    """Write the page; a run without comparison or sweep is simulated once more to draw its timelines."""
    parts = ["<h1>weighbridge simulate</h1>"]
    if "sweep" in result:
        parts += _sweep(result["sweep"])
    elif "compare" in result:
        parts += [_figures(result["compare"])]
    else:
        parts += [_figures({experiment.fleet.policy: result}), *_timelines(experiment)]
    body = "\n".join(parts)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>weighbridge simulate</title>'
        f"<style>{_STYLE}</style><body>{body}</body></html>\n"
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror or error}", param="html") from error


def _figures(results: Mapping[str, Mapping[str, Any]]) -> str:
    heads = (
        "",
        "TTFT p50 ms",
        "p95",
        "p99",
        "TPOT p50 ms",
        "p99",
        "output tok/s",
        "good",
        "cache hits",
        "busy",
        "KV",
    )
    rows = [
        (
            html.escape(name),
            *(f"{one['ttft_ms'][q]:.0f}" for q in ("p50", "p95", "p99")),
            *(f"{one['tpot_ms'][q]:.1f}" for q in ("p50", "p99")),
            f"{one['output_tokens_per_s']:.0f}",
            *(f"{one[key]:.1%}" for key in ("good_share", "prefix_hit_rate", "utilization", "kv_occupancy")),
        )
        for name, one in results.items()
    ]
    head = "".join(f"<th>{text}</th>" for text in heads)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"


def _timelines(experiment: Experiment) -> Iterable[str]:
    requests = experiment.source.requests(experiment.seeds[0], experiment.rate)
    simulation: Simulation
    timeline = Timeline(lambda name: simulation.replicas[name], lambda: len(simulation.gateway.queue))
    simulation = Simulation(experiment.fleet, requests, experiment.seeds[0], watcher=timeline)
    end = simulation.run().seconds or 1.0
    queue = [(at, float(waiting)) for at, waiting in timeline.gateway]
    yield "<h2>Waiting at the gateway</h2>" + chart({"requests": queue}, end, steps=True)
    columns: dict[str, dict[str, Callable[[Point], float]]] = {
        "batch of each iteration": {
            "decodes": lambda p: p.decodes,
            "prompt tokens / 16": lambda p: p.prompt_tokens / 16,
        },
        "requests": {"running": lambda p: p.running, "waiting": lambda p: p.waiting},
        "KV blocks held, %": {"KV": lambda p: 100.0 * p.kv_share},
    }
    shown = sorted(timeline.replicas.items())[:MOST_REPLICAS]
    for name, points in shown:
        yield f"<h2>{html.escape(name)}</h2>"
        for title, lines in columns.items():
            series = {label: [(p.at, float(value(p))) for p in points] for label, value in lines.items()}
            yield f"<div>{html.escape(title)}</div>" + chart(series, end, steps=True)
    if len(timeline.replicas) > len(shown):
        yield f"<p>{len(timeline.replicas) - len(shown)} more replicas are not drawn.</p>"


def _sweep(sweep: Mapping[str, Any]) -> Iterable[str]:
    points = sweep["points"]
    yield _figures({f"{point['rate']:.3g} requests/s": point for point in points})
    knee = sweep["knee_rps"]
    said = "No rate tried" if knee is None else f"Up to {knee:.3g} requests/s"
    yield f"<p>{said} keeps {sweep['served_share']:.0%} of the requests within the targets.</p>"
    most = max(point["output_tokens_per_s"] for point in points)
    for title, key, quantiles in (
        ("TTFT in ms over output tokens/s", "ttft_ms", ("p50", "p95", "p99")),
        ("TPOT in ms over output tokens/s", "tpot_ms", ("p50", "p95", "p99")),
    ):
        curves = {q: [(point["output_tokens_per_s"], point[key][q]) for point in points] for q in quantiles}
        yield f"<h2>{title}</h2>" + chart(curves, most, height=260)


def chart(series: Mapping[str, Series], right: float, *, steps: bool = False, height: int = HEIGHT) -> str:
    """Lines over a common horizontal axis from 0 to `right`, as SVG. `steps`: values hold until the next."""
    top = max((y for line in series.values() for _, y in line), default=0.0) or 1.0
    plot = height - 30

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + (WIDTH - LEFT - 10) * min(x / right, 1.0), 10 + plot * (1.0 - y / top)

    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img">']
    for share in (0.0, 0.5, 1.0):
        _, y = place(0.0, share * top)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share * top:.3g}</text>')
    parts.append(f'<text x="{WIDTH - 10}" y="{height - 4}" text-anchor="end">{right:.4g}</text>')
    for number, (name, line) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path: list[str] = []
        last = 0.0
        for x, y in line:
            px, py = place(x, y)
            if steps and path:
                path.append(f"L{px:.1f} {last:.1f}")
            path.append(f"{'L' if path else 'M'}{px:.1f} {py:.1f}")
            last = py
        parts.append(f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
        label = html.escape(name)
        parts.append(
            f'<text x="{LEFT + 8 + 150 * number}" y="{height - 4}" style="fill:{colour}">{label}</text>'
        )
    return "".join(parts) + "</svg>"
