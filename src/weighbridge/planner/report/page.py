"""A plan as one self-contained HTML page: the memory of a GPU as a picture, speed by batch, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weighbridge.pages import html
from weighbridge.pages.charts import Chart, Series
from weighbridge.pages.html import Html, items, joined, table, tag
from weighbridge.planner.memory.memory import GIB, MemoryPlan
from weighbridge.planner.report.report import figures, price_of
from weighbridge.planner.search.fit import Change
from weighbridge.planner.search.search import Recommendation
from weighbridge.planner.search.speed import Speed

_WIDTH, _BAR, _LEFT = 960, 64, 8
_COLORS = {
    "weights": "#3b6fb6", "activations": "#c8893a", "framework": "#8a8f98", "CUDA graphs": "#a35d9c",
    "cache": "#3d9970", "not used": "var(--line)",
}  # fmt: skip
_STYLE = "svg .on{fill:#fff}table{width:100%}"


def page(plan: MemoryPlan, speeds: Sequence[Speed], changes: Sequence[Change], command: str) -> str:
    """Return the whole page; `speeds` by rising batch (empty without a device)."""
    return html.page(f"{plan.model.name}: plan", *_body(plan, speeds, changes, command), style=_STYLE)


def recommendation_page(
    choices: Sequence[Recommendation], speeds: Sequence[Speed], command: str, config: str
) -> str:
    """Return the page of `--recommend`: the choices side by side, then the first one's plan as `page` shows it."""
    first = choices[0].candidate.plan
    return html.page(
        f"{first.model.name}: recommendation",
        tag("h1", "Recommendation"),
        tag(
            "p",
            f"Cheapest first, for {first.model.name}. Why the first: {choices[0].forecast.why}",
            cls="soft",
        ),
        _choices(choices),
        _money_and_speed(choices),
        tag("h2", "weighbridge.yaml"),
        tag("pre", tag("code", config)),
        *_body(first, speeds, [], command),
        style=_STYLE + "pre{overflow-x:auto}",
    )


def _choices(choices: Sequence[Recommendation]) -> Html:
    head = ("", "devices", "weights", "cache", "USD per hour", "TTFT", "TPOT", "requests at once", "price")
    rows = []
    for number, choice in enumerate(choices, 1):
        candidate, told, price = choice.candidate, choice.forecast, price_of(choice)
        row = (f"{number}", _layout(choice), candidate.plan.stored.format, candidate.plan.deployment.kv_dtype)
        figures = (
            f"{candidate.usd_per_hour:,.2f}",
            f"{told.ttft * 1e3:,.0f} ms",
            f"{told.tpot * 1e3:,.1f} ms",
        )
        rows.append(
            (*row, *figures, f"{told.batch:,.1f}", f"{price[0]:,.2f} USD per device-hour, {price[1]}")
        )
    return table(head, rows)


def _layout(choice: Recommendation) -> str:
    candidate, tp = choice.candidate, choice.candidate.plan.deployment.tp
    return f"{candidate.replicas}{f' × (tp {tp})' if tp > 1 else ''} × {candidate.device.name}"


def _money_and_speed(choices: Sequence[Recommendation]) -> Html:
    """What each choice costs and how quick it is, a point for each; numbers are those of the table."""
    usd = [choice.candidate.usd_per_hour for choice in choices]
    lines = [
        Series(name, [one for one, _ in points], [ms for _, ms in points], dots=True, labels=labels)
        for name, points, labels in (
            ("TTFT", *_points(usd, [choice.forecast.ttft for choice in choices])),
            ("TPOT", *_points(usd, [choice.forecast.tpot for choice in choices])),
        )
    ]
    chart = Chart(
        "Time over money", "USD per hour", "ms", lines, max(usd) * 1.1 or 1.0, height=260, logarithmic=True
    )
    return chart.html()


def _points(usd: Sequence[float], seconds: Sequence[float]) -> tuple[list[tuple[float, float]], list[str]]:
    """Points by rising price, in milliseconds, with the numbers of their choices."""
    order = sorted(range(len(usd)), key=lambda index: usd[index])
    return [(usd[index], seconds[index] * 1e3) for index in order], [str(index + 1) for index in order]


def _body(
    plan: MemoryPlan, speeds: Sequence[Speed], changes: Sequence[Change], command: str
) -> Iterator[Html]:
    device = plan.device
    where = f"{plan.deployment.gpus} × {device.name}" if device else "no device given"
    yield tag("h1", plan.model.name)
    yield tag(
        "p",
        f"{plan.rules.engine} on {where}, requests of up to {plan.length:,} tokens, weights in {plan.stored.format}",
        cls="soft",
    )
    if device is not None:
        yield from _verdict(plan, changes)
    if plan.available is not None and device is not None:
        yield tag("h2", "Memory of one GPU, GiB")
        yield _stack(plan)
    yield tag("h2", "Figures")
    yield table(("", "", "between"), figures(plan))
    if speeds:
        yield tag("h2", "Speed and money")
        yield _curve(speeds)
        yield from _speed_table(speeds)
    yield tag("h2", "Why")
    yield items([*plan.explain, *(speeds[-1].explain if speeds else ())])
    if plan.fits or device is None:
        yield tag("h2", "Start it")
        yield tag("p", tag("code", command))


def _verdict(plan: MemoryPlan, changes: Sequence[Change]) -> Iterator[Html]:
    if plan.fits:
        yield tag("p", tag("b", "Fits."), cls="good")
        return
    yield tag("p", tag("b", "Does not fit:"), f" {plan.problem}.", cls="bad")
    if changes:
        yield tag("p", "Any one of these makes it fit:")
        yield items(joined((change.words, " — ", tag("code", change.flags))) for change in changes)


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


def _stack(plan: MemoryPlan) -> Html:
    """One bar, to scale, with the device's end marked when the need passes it."""
    assert plan.device is not None
    segments = _segments(plan)
    total = max(sum(size for _, size in segments), plan.device.memory_gib)
    scale = (_WIDTH - 2 * _LEFT) / total
    drawn: list[Html] = []
    x = float(_LEFT)
    for name, size in segments:
        width = size * scale
        tip = tag("title", f"{name}: {size:.2f} GiB")
        drawn.append(
            tag("rect", tip, x=f"{x:.1f}", y=30, width=f"{width:.1f}", height=_BAR, fill=_COLORS[name])
        )
        if width > 8 * len(name) + 10:
            tone = None if name == "not used" else "on"
            drawn.append(tag("text", name, cls=tone, x=f"{x + 6:.1f}", y=58))
            drawn.append(tag("text", f"{size:.2f}", cls=tone, x=f"{x + 6:.1f}", y=78))
        x += width
    end = _LEFT + plan.device.memory_gib * scale
    drawn.append(
        tag("line", x1=f"{end:.1f}", x2=f"{end:.1f}", y1=20, y2=104, stroke="currentColor", stroke_width=2)
    )
    anchor = "end" if end > _WIDTH / 2 else "start"
    label = f"{plan.device.name} ends at {plan.device.memory_gib:.2f} GiB"
    drawn.append(tag("text", label, x=f"{end:.1f}", y=15, text_anchor=anchor))
    return tag("div", tag("svg", *drawn, *_legend(segments), viewBox=f"0 0 {_WIDTH} 150"), cls="wide")


def _legend(segments: Sequence[tuple[str, float]]) -> Iterator[Html]:
    x = float(_LEFT)
    for name, size in segments:
        text = f"{name} {size:.2f}"
        yield tag("rect", x=f"{x:.0f}", y=122, width=11, height=11, fill=_COLORS[name])
        yield tag("text", text, cls="soft", x=f"{x + 16:.0f}", y=132)
        x += 40 + 7.2 * len(text)


def _speed_table(speeds: Sequence[Speed]) -> Iterator[Html]:
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
    yield table(head, rows)
    note = f"Requests of {speeds[0].prompt:,} + {speeds[0].output:,} tokens; {speeds[0].explain[-1]}."
    yield tag("p", note, cls="soft")


def _curve(speeds: Sequence[Speed]) -> Html:
    """Throughput against the speed that one reader sees, a point for each batch."""
    readers, together = [1 / s.tpot for s in speeds], [s.tokens_per_second for s in speeds]
    batches = [f"{s.batch:,}" for s in speeds]
    line = Series("by requests at once", readers, together, dots=True, labels=batches)
    title = "Throughput over the speed of one stream, by requests at once"
    chart = Chart(
        title, "tokens/s of one stream", "tokens/s of all", [line], max(readers) * 1.08,
        height=280, top=max(together) * 1.12,
    )  # fmt: skip
    return chart.html()
