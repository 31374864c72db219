"""A plan as one self-contained HTML page: the memory of a GPU as a picture, speed by batch, and why."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from weighbridge.pages.charts import STYLE, Chart, Line
from weighbridge.planner.memory.fit import Change
from weighbridge.planner.memory.memory import GIB, MemoryPlan
from weighbridge.planner.report.report import figures
from weighbridge.planner.search.speed import Speed

_WIDTH, _BAR, _LEFT = 960, 64, 8
_COLORS = {
    "weights": "#3b6fb6", "activations": "#c8893a", "framework": "#8a8f98", "CUDA graphs": "#a35d9c",
    "cache": "#3d9970", "not used": "var(--line)",
}  # fmt: skip
_STYLE = """
.fits{color:#2f8f5b}.not{color:#c94f4f}.n{text-align:right}svg .on{fill:#fff}li{margin:.25rem 0}
td,th{text-align:left}table{width:100%}
code{background:color-mix(in srgb,var(--soft) 15%,transparent);padding:.1rem .3rem;border-radius:3px;
overflow-wrap:anywhere}
"""


def page(plan: MemoryPlan, speeds: Sequence[Speed], changes: Sequence[Change], command: str) -> str:
    """The whole page; `speeds` by rising batch (empty without a device)."""
    device = plan.device
    where = f"{plan.deployment.gpus} &times; {escape(device.name)}" if device else "no device given"
    name = escape(plan.model.name)
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{name}: plan</title>",
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}{_STYLE}</style>",
        f"<h1>{name}</h1><p class='soft'>{escape(plan.rules.engine)} on {where}, requests of up to "
        f"{plan.length:,} tokens, weights in {escape(plan.stored.format)}</p>",
        _verdict(plan, changes),
    ]
    if plan.available is not None and device is not None:
        parts += ["<h2>Memory of one GPU, GiB</h2>", _stack(plan)]
    parts += ["<h2>Figures</h2>", _table(("", "", "between"), figures(plan))]
    if speeds:
        parts += ["<h2>Speed and money</h2>", _curve(speeds), _speed_table(speeds)]
    parts += ["<h2>Why</h2><ul>", *(f"<li>{escape(line)}</li>" for line in plan.explain)]
    parts += [*(f"<li>{escape(line)}</li>" for line in (speeds[-1].explain if speeds else ())), "</ul>"]
    if plan.fits or device is None:
        parts.append(f"<h2>Start it</h2><p><code>{escape(command)}</code></p>")
    parts.append("</html>")
    return "\n".join(parts)


def _verdict(plan: MemoryPlan, changes: Sequence[Change]) -> str:
    if plan.device is None:
        return ""
    if plan.fits:
        return "<p class='fits'><b>Fits.</b></p>"
    found = [f"<p class='not'><b>Does not fit:</b> {escape(plan.problem)}.</p>"]
    if changes:
        found.append("<p>Any one of these makes it fit:</p><ul>")
        found += [f"<li>{escape(c.words)} &mdash; <code>{escape(c.flags)}</code></li>" for c in changes]
        found.append("</ul>")
    return "\n".join(found)


def _segments(plan: MemoryPlan) -> list[tuple[str, float]]:
    """What lies in the device's memory, in GiB, from the left."""
    over = plan.overheads
    found = [
        ("weights", plan.weights.value),
        ("activations", over.activation.value),
        ("framework", over.framework.value),
        ("CUDA graphs", over.graphs.value),
    ]
    assert plan.device is not None
    assert plan.available is not None
    cache = max(plan.available.value, 0.0)
    if plan.rules.engine == "llama.cpp" and plan.kv is not None:
        cache = plan.kv.pool_bytes / GIB
    found.append(("cache", cache))
    used = sum(size for _, size in found)
    found.append(("not used", max(plan.device.memory_gib - used, 0.0)))
    return [(name, size) for name, size in found if size > 0.005]


def _stack(plan: MemoryPlan) -> str:
    """One bar, to scale, with the device's end marked when the need passes it."""
    assert plan.device is not None
    segments = _segments(plan)
    total = max(sum(size for _, size in segments), plan.device.memory_gib)
    scale = (_WIDTH - 2 * _LEFT) / total
    drawn, x = [], float(_LEFT)
    for name, size in segments:
        width = size * scale
        drawn.append(
            f"<rect x='{x:.1f}' y='30' width='{width:.1f}' height='{_BAR}' fill='{_COLORS[name]}'>"
            f"<title>{name}: {size:.2f} GiB</title></rect>"
        )
        if width > 8 * len(name) + 10:
            tone = "" if name == "not used" else " class='on'"
            drawn.append(f"<text{tone} x='{x + 6:.1f}' y='58'>{name}</text>")
            drawn.append(f"<text{tone} x='{x + 6:.1f}' y='78'>{size:.2f}</text>")
        x += width
    end = _LEFT + plan.device.memory_gib * scale
    drawn.append(
        f"<line x1='{end:.1f}' x2='{end:.1f}' y1='20' y2='104' stroke='currentColor' stroke-width='2'/>"
    )
    anchor = "end" if end > _WIDTH / 2 else "start"
    label = f"{escape(plan.device.name)} ends at {plan.device.memory_gib:.2f} GiB"
    drawn.append(f"<text x='{end:.1f}' y='15' text-anchor='{anchor}'>{label}</text>")
    return (
        f"<div class='wide'><svg viewBox='0 0 {_WIDTH} 150'>{''.join(drawn)}{_legend(segments)}</svg></div>"
    )


def _legend(segments: Sequence[tuple[str, float]]) -> str:
    drawn, x = [], float(_LEFT)
    for name, size in segments:
        text = f"{name} {size:.2f}"
        drawn.append(f"<rect x='{x:.0f}' y='122' width='11' height='11' fill='{_COLORS[name]}'/>")
        drawn.append(f"<text class='soft' x='{x + 16:.0f}' y='132'>{text}</text>")
        x += 40 + 7.2 * len(text)
    return "".join(drawn)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th{' class=n' if i else ''}>{escape(x)}</th>" for i, x in enumerate(head))
    lines = [f"<tr>{cells}</tr>"]
    for first, *rest in rows:
        numbers = "".join(f"<td class='n'>{escape(x)}</td>" for x in rest)
        lines.append(f"<tr><td>{escape(first)}</td>{numbers}</tr>")
    return f"<div class='wide'><table>{''.join(lines)}</table></div>"


def _speed_table(speeds: Sequence[Speed]) -> str:
    rows = [
        (
            f"{s.batch}",
            f"{s.ttft * 1e3:,.0f} ms",
            f"{s.tpot * 1e3:,.1f} ms",
            f"{s.tokens_per_second:,.0f}",
            f"{s.usd_per_million_output:,.2f} USD",
        )
        for s in speeds
    ]
    head = ("requests at once", "TTFT", "TPOT", "tokens/s", "per million output tokens")
    note = f"Requests of {speeds[0].prompt:,} + {speeds[0].output:,} tokens; {speeds[0].explain[-1]}."
    return _table(head, rows) + f"<p class='soft'>{escape(note)}</p>"


def _curve(speeds: Sequence[Speed]) -> str:
    """Throughput against the speed that one reader sees, a point for each batch."""
    readers, together = [1 / s.tpot for s in speeds], [s.tokens_per_second for s in speeds]
    batches = [f"{s.batch:,}" for s in speeds]
    line = Line("by requests at once", readers, together, dots=True, labels=batches)
    title = "Throughput over the speed of one stream, by requests at once"
    chart = Chart(
        title, "tokens/s of one stream", "tokens/s of all", [line], max(readers) * 1.08,
        height=280, top=max(together) * 1.12,
    )  # fmt: skip
    return chart.html()
