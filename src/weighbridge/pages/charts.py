"""Line charts as SVG for self-contained pages: axes with units, a legend, marks; light and dark by CSS. No scripts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from weighbridge.pages.html import Html, html, tag
from weighbridge.workload.quantiles import Floats

WIDTH, LEFT, RIGHT, ABOVE, BELOW = 960, 64, 16, 12, 40

#: Lines in order; each reads on white and on near-black.
COLOURS = ("#2f74d0", "#c9780a", "#1f9463", "#d0453f", "#8a5bd0", "#5f7688", "#b04a8c", "#7b8c1e")


@dataclass(frozen=True, slots=True)
class Series:
    """A named line of a chart.

    `steps`: a value holds until the next point. `peak`: of each point, the most that it stands for, drawn as a shade
    above the line. `dots`: mark the points, with `notes` shown when somebody points at them, and `labels` always.
    """

    name: str
    x: Sequence[float] | Floats
    y: Sequence[float] | Floats
    steps: bool = False
    peak: Sequence[float] | Floats | None = None
    dots: bool = False
    notes: Sequence[str] = ()
    labels: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over common axes. `right`: end of the horizontal axis, which begins at 0. `down`, `across`: places of
    marked vertical and horizontal lines, each with its words."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Series]
    right: float
    height: int = 170
    logarithmic: bool = False
    top: float | None = None
    down: Sequence[tuple[float, str]] = ()
    across: Sequence[tuple[float, str]] = ()
    _scale: tuple[float, float] = field(init=False, default=(0.0, 1.0))

    def __post_init__(self) -> None:
        object.__setattr__(self, "_scale", self._ends())

    @property
    def _above(self) -> int:
        """The upper end of the plot: words of marked lines stand over it, in up to three rows."""
        return ABOVE + 14 * min(len(self.down), 3)

    @property
    def _tall(self) -> int:
        return self.height + self._above - ABOVE

    def _ends(self) -> tuple[float, float]:
        """Return the smallest and the largest value of the vertical axis."""
        values = [
            float(v) for line in self.lines for v in (*line.y, *(line.peak if line.peak is not None else ()))
        ]
        values = [v for v in (*values, *(at for at, _ in self.across)) if math.isfinite(v)]
        if not self.logarithmic:
            return 0.0, self.top or max(values, default=0.0) * 1.04 or 1.0
        above = [v for v in values if v > 0.0] or [1.0]
        return min(above) / 1.15, max(above) * 1.15

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(value / self.right, 0.0), 1.0)

    def y(self, value: float) -> float:
        low, high = self._scale
        if self.logarithmic:
            share = math.log(max(value, low) / low) / math.log(high / low)
        else:
            share = (value - low) / (high - low)
        return self._above + (self.height - ABOVE - BELOW) * (1.0 - min(max(share, 0.0), 1.0))

    def html(self) -> Html:
        """Return the chart as a figure with its title and legend."""
        parts = [*self._axes(), *self._marks()]
        for number, line in enumerate(self.lines):
            parts += self._drawn(line, COLOURS[number % len(COLOURS)])
        drawn = tag(
            "svg",
            Html("".join(parts)),
            viewBox=f"0 0 {WIDTH} {self._tall}",
            role="img",
            aria_label=f"{self.title}: {self.y_label} over {self.x_label}",
        )
        names = [line.name for line in self.lines]
        return tag(
            "figure",
            tag("figcaption", self.title),
            legend(zip(COLOURS * len(names), names, strict=False)) if len(names) > 1 else "",
            tag("div", drawn, cls="wide"),
        )

    def _axes(self) -> list[str]:
        bottom, edge, parts = self._tall - BELOW, WIDTH - RIGHT, []
        low, high = self._scale
        for tick in (
            decades(low, high) if self.logarithmic else ticks(high, max((bottom - self._above) // 32, 2))
        ):
            y = self.y(tick)
            parts.append(f'<line x1="{LEFT}" x2="{edge}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
            parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
        for tick in ticks(self.right, 8):
            x = self.x(tick)
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" stroke="var(--soft)"/>'
            )
            parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{short(tick)}</text>')
        middle = (self._above + bottom) / 2
        parts.append(f'<line x1="{LEFT}" x2="{edge}" y1="{bottom}" y2="{bottom}" stroke="var(--soft)"/>')
        parts.append(f'<text x="{(LEFT + edge) / 2}" y="{self._tall - 6}" text-anchor="middle">')
        parts.append(f"{html(self.x_label)}</text>")
        parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">')
        parts.append(f"{html(self.y_label)}</text>")
        return parts

    def _marks(self) -> list[str]:
        bottom, parts = self._tall - BELOW, []
        for at, words in self.across:
            y = self.y(at)
            parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"')
            parts.append(' stroke="var(--soft)" stroke-dasharray="2 4"/>')
            parts.append(f'<text x="{LEFT + 6}" y="{y - 5:.1f}">{html(words)}</text>')
        for row, (at, words) in enumerate(self.down):
            x = self.x(at)
            anchor, beside = ("end", x - 6) if x > WIDTH * 0.7 else ("start", x + 6)
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{ABOVE + 14 * (row % 3)}" y2="{bottom}"')
            parts.append(' stroke="var(--ink)" stroke-dasharray="5 4"/>')
            y = ABOVE + 9 + 14 * (row % 3)
            parts.append(
                f'<text class="ink" x="{beside:.1f}" y="{y}" text-anchor="{anchor}">{html(words)}</text>'
            )
        return parts

    def _drawn(self, line: Series, colour: str) -> list[str]:
        xs = [self.x(float(x)) for x in line.x]
        ys = [self.y(float(y)) for y in line.y]
        parts = []
        if line.peak is not None:
            tops = [self.y(float(y)) for y in line.peak]
            down = _path(xs[::-1], ys[::-1], line.steps, back=True).replace("M", "L", 1)
            parts.append(
                f'<path d="{_path(xs, tops, line.steps)}{down}Z" fill="{colour}" fill-opacity=".22"/>'
            )
        parts.append(
            f'<path d="{_path(xs, ys, line.steps)}" fill="none" stroke="{colour}" stroke-width="1.6"'
            ' stroke-linejoin="round"/>'
        )
        if line.dots:
            notes = line.notes or [""] * len(xs)
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"><title>{html(note)}</title></circle>'
                for x, y, note in zip(xs, ys, notes, strict=True)
            ]
        parts += [
            f'<text class="ink" x="{x + 7:.1f}" y="{y - 6:.1f}">{html(label)}</text>'
            for x, y, label in zip(xs, ys, line.labels, strict=False)
        ]
        return parts


def legend(entries: Iterable[tuple[str, str]]) -> Html:
    """Return a legend of colours with their names."""
    marks = (tag("span", tag("i", style=f"background:{colour}"), name) for colour, name in entries)
    return tag("div", *marks, cls="legend")


def _path(xs: Sequence[float], ys: Sequence[float], steps: bool, *, back: bool = False) -> str:
    """Return the path through the points. `back`: they come from the right, and steps still hold to the right."""
    path: list[str] = []
    before = (math.nan, math.nan)
    for x, y in zip(xs, ys, strict=True):
        if steps and path and y != before[1]:
            corner = (before[0], y) if back else (x, before[1])
            path.append(f"L{corner[0]:.1f} {corner[1]:.1f}")
        path.append(f"{'L' if path else 'M'}{x:.1f} {y:.1f}")
        before = (x, y)
    return "".join(path)


def ticks(largest: float, number: int) -> list[float]:
    """Return about `number` round values from 0 to at most `largest`, 1, 2 or 5 times a power of ten apart."""
    rough = largest / max(number, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [power * factor for factor in (1, 2, 5, 10)]
    step = next((size for size in steps if rough * 0.999 <= size <= largest), steps[0])
    return [step * index for index in range(int(largest / step * (1 + 1e-9)) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten between the two; over more than three decades the powers alone."""
    factors = (1, 2, 5) if high / low < 1500 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]


def short(value: float) -> str:
    """Write a number for an axis: 0.05, 12, 2,500, 1.2M."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.4g}M"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def binned(
    begins: Floats, ends: Floats, values: Floats, right: float, bins: int
) -> tuple[Floats, Floats, Floats]:
    """Return what holds from `begins` to `ends` over `bins` equal parts of 0 to `right`. Spans must not overlap.

    Of each part: where it begins, its mean over time (0 where nothing holds), and the most that held in it.
    """
    width = right / bins
    edges = np.arange(bins + 1) * width
    area = np.concatenate(([0.0], np.cumsum(values * (ends - begins))))
    place = np.searchsorted(begins, edges, "right") - 1  # the last span that has begun by the edge
    inside = np.minimum(np.maximum(place, 0), len(begins) - 1)
    begun = np.clip(edges - begins[inside], 0.0, ends[inside] - begins[inside]) * values[inside]
    until = np.where(place < 0, 0.0, area[inside] + begun)
    peak = np.zeros(bins)
    first = np.clip((begins / width).astype(np.int64), 0, bins - 1)
    last = np.clip(np.ceil(ends / width).astype(np.int64) - 1, first, bins - 1)
    np.maximum.at(peak, first, values)
    for offset in range(1, int((last - first).max(initial=0)) + 1):
        longer = last - first >= offset
        np.maximum.at(peak, first[longer] + offset, values[longer])
    mean: Floats = np.diff(until) / width
    return np.asarray(edges[:-1], np.float64), mean, peak
