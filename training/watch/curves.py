"""Curves as inline SVG, coloured by the CSS of the page around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Literal, NamedTuple

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 10, 28  # the margins of the plot, in units of the drawing
LARGEST = 1e30  # larger values are left out: they would flatten the rest of the curve
MOST_POINTS = 300  # a longer curve is drawn as the means of about this many pieces
Point = tuple[float, float]


class Curve(NamedTuple):
    """One line of a chart."""

    name: str
    points: Sequence[Point]  # (step, value); NaN and values beyond LARGEST are left out
    color: str  # a CSS class of the page
    style: Literal["line", "faint", "dots"] = "line"


def chart(title: str, curves: Sequence[Curve]) -> str:
    """A `<figure>` with a title, a legend and the curves over the steps; without a point it says so."""
    curves = [c._replace(points=thin([p for p in c.points if abs(p[1]) < LARGEST])) for c in curves]
    curves = [curve for curve in curves if curve.points]
    keys = (f'<span class="key {curve.style} {curve.color}">{escape(curve.name)}</span>' for curve in curves)
    legend = f'<span class="legend">{"".join(keys)}</span>' if len(curves) > 1 else ""
    head = f"<figcaption>{escape(title)}{legend}</figcaption>"
    if not curves:
        return f'<figure class="chart">{head}<p class="quiet">Nothing was measured yet.</p></figure>'
    steps = [step for curve in curves for step, _ in curve.points]
    values = [value for curve in curves for _, value in curve.points]
    across, up = ticks(min(steps), max(steps), 6), ticks(min(values), max(values), 5)
    low, high = min(up[0], *values), max(up[-1], *values)
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def place(point: Point) -> Point:
        x = LEFT + (point[0] - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - (point[1] - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in up:
        y = place((first, tick))[1]
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in across:
        if first <= tick <= last and abs(tick - round(tick)) < 1e-9:
            x = place((tick, low))[0]
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{tick:.6g}</text>')
    parts += [_draw(curve, [place(point) for point in curve.points]) for curve in curves]
    label = f"{title}, steps {first:g} to {max(steps):g}"
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    return f'<figure class="chart">{head}{svg}</figure>'


def thin(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS points: the means of pieces of equal length, and the last point itself."""
    size = -(-len(points) // (MOST_POINTS - 1))
    if size <= 1:
        return list(points)
    pieces = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(math.fsum(x for x, _ in p) / len(p), math.fsum(y for _, y in p) / len(p)) for p in pieces]
    return [*means, points[-1]]


def smooth(points: Sequence[Point]) -> list[Point]:
    """The running mean over a tenth of the points, half of it to each side."""
    points = [point for point in points if abs(point[1]) < LARGEST]
    reach = len(points) // 20
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    out = []
    for i, (step, _) in enumerate(points):
        start, end = max(0, i - reach), min(len(points), i + reach + 1)
        out.append((step, (sums[end] - sums[start]) / (end - start)))
    return out


def _draw(curve: Curve, points: Sequence[Point]) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    line = f'<path class="curve {curve.style} {curve.color}" d="{path}"/>'
    if curve.style != "dots" and len(points) > 1:
        return line
    dots = (
        f'<circle class="{curve.color}" cx="{x:.1f}" cy="{y:.1f}" r="4">'
        f"<title>step {step:g}: {value:.4g}</title></circle>"
        for (x, y), (step, value) in zip(points, curve.points, strict=True)
    )
    return line + "".join(dots)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers that enclose low...high, at most `most` + 1."""
    span = high - low or abs(high) or 1.0
    unit = 10 ** math.floor(math.log10(span / most))
    step = next(unit * factor for factor in (1, 2, 5, 10, 20) if span / (unit * factor) <= most - 1)
    first = math.floor(low / step)
    count = math.ceil(high / step) - first
    return [(first + i) * step for i in range(max(count, 1) + 1)]
