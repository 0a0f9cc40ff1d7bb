"""The paper's tables from the numbers of each image: Markdown for reading, CSV for plots, JSON with everything.

Table 1 has all methods, Table 2 what each half of RealignDiff does alone and together, Table 3 the re-aligned images
beside those of other systems and of the controls. One renderer makes all; they differ in their rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .bootstrap import Difference, mean_interval, paired_difference
from .methods import FINE, FINE_ALL, PLAIN, REDRAW, Method

STAYED, RIGHT = "stayed_right", "both_right"
LOWER_IS_BETTER = ("fid", "kid")
MEANS, INTERVALS = "±: half of the 95 % interval over the prompts", "of KID, the standard deviation over its subsets"
RESAMPLED = 20_000_000
"""Values drawn for one interval, at most: of many prompts fewer resamples do."""


def numbers(
    methods: Sequence[Method], scores: Mapping[str, Mapping[str, np.ndarray]], whole: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Means, differences and their intervals, as JSON-ready values.

    scores: of each method's name its columns [N], one value a prompt, NaN where there is none. whole: of each method
        the columns that are of all its images together: {"value": …, "std": …}.
    """
    first = methods[0].name
    rows = [
        {"name": m.name, "columns": {**whole.get(m.name, {}), **_means(scores[m.name], m.name == first)}}
        for m in methods
    ]
    differences = [
        {"row": row, "to": to, "column": column, "n": int(both.sum()), "delta": delta, "ci": [low, high]}
        for row, to in _compared(methods)
        for column, after in scores[row].items()
        for both in [~np.isnan(after) & ~np.isnan(scores[to][column])]
        if both.sum() > 1
        for delta, low, high in [_difference(scores[to][column][both], after[both])]
    ]
    out: dict[str, Any] = {"rows": rows, "differences": differences}
    if STAYED in scores[first]:
        out["right"] = int(np.nansum(scores[first][RIGHT] == 1))
    return out


def _means(columns: Mapping[str, np.ndarray], is_first: bool) -> dict[str, dict[str, Any]]:
    out = {}
    for name, values in columns.items():
        there = values[~np.isnan(values)]
        if not len(there):
            out[name] = {"value": None, "n": 0}
        elif len(there) == 1 or (is_first and name == STAYED):  # which is 1 by its meaning
            out[name] = {"value": float(there.mean()), "n": len(there)}
        else:
            mean, low, high = mean_interval(there, resamples=_resamples(len(there)))
            out[name] = {"value": mean, "ci": [low, high], "n": len(there)}
    return out


def _difference(before: np.ndarray, after: np.ndarray) -> Difference:
    return paired_difference(before, after, resamples=_resamples(len(before)))


def _resamples(count: int) -> int:
    return max(1000, min(10_000, RESAMPLED // count))


def _compared(methods: Sequence[Method]) -> list[tuple[str, str]]:
    """Which row's differences to which other are told: to the first; of both halves together to each alone; of
    re-aligned images to the redraw of the same model and to other systems."""
    first, *later = methods
    pairs = [(m, first) for m in later]
    fine = [m for m in methods if m.images is None and m.way == FINE]
    for m in fine:
        if m.weights is not None:
            pairs += [(m, o) for o in methods if o.images is None and (o.way, o.weights) == (PLAIN, m.weights)]
            pairs += [(m, o) for o in fine if o.weights is None]
    for m in fine:
        pairs += [(m, o) for o in methods if o.images is None and (o.way, o.weights) == (REDRAW, m.weights)]
        pairs += [(m, o) for o in methods if o.images is not None]
    return list(dict.fromkeys((m.name, o.name) for m, o in pairs if m is not o))


class Table(NamedTuple):
    """A table of the paper's."""

    number: int
    title: str
    rows: list[dict[str, Any]]


def tables(methods: Sequence[Method], told: Mapping[str, Any]) -> list[Table]:
    """What each table shows; one that would be the first again is not told twice."""
    of = {row["name"]: row for row in told["rows"]}
    own = [m for m in methods if m.images is None]
    halves = [m.name for m in own if m.way in (PLAIN, FINE)]
    others = [m.name for m in methods if m.images is not None or m.way in (FINE_ALL, REDRAW)]
    both = len(halves) > 1 and len(halves) == len(of)
    first = "image quality and alignment with the prompt"
    rows = [(1, f"Tables 1 and 2: {first}; the coarse and the fine stage" if both else f"Table 1: {first}", list(of))]
    if 1 < len(halves) < len(of):
        rows.append((2, "Table 2: the coarse and the fine stage", halves))
    if others and len(of) > 1:
        compared = [methods[0].name, *(m.name for m in own if m.way == FINE), *others]
        rows.append((3, "Table 3: other systems and controls", list(dict.fromkeys(compared))))
    return [Table(number, title, [of[name] for name in names]) for number, title, names in rows]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table, each number with half of its interval."""
    columns = list(dict.fromkeys(name for row in rows for name in row["columns"]))
    arrows = [f"{name} {'↓' if name in LOWER_IS_BETTER else '↑'}" for name in columns]
    return _grid(
        ["", *arrows], [[row["name"], *(_cell(name, row["columns"].get(name)) for name in columns)] for row in rows]
    )


def _cell(name: str, told: Mapping[str, Any] | None) -> str:
    if told is None or told["value"] is None:
        return "–"
    form = {"fid": "#.4g", "kid": ".4f"}.get(name, ".3f")
    low, high = told.get("ci", (None, None))
    spread = told.get("std") if low is None else (high - low) / 2
    return f"{told['value']:{form}}" + ("" if spread is None else f" ± {spread:{form}}")


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns stand under each other in a terminal too."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        f"| {row[0]:<{widths[0]}} | " + " | ".join(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows with plain numbers: of each column its value, and the ends of its interval or its deviation."""
    out = io.StringIO()
    flat = [
        {"method": row["name"]}
        | {
            f"{name}{end}": value
            for name, told in row["columns"].items()
            for end, value in _parts(told).items()
            if value is not None
        }
        for row in rows
    ]
    writer = csv.DictWriter(out, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _parts(told: Mapping[str, Any]) -> dict[str, float | None]:
    low, high = told.get("ci", (None, None))
    return {"": told["value"], "_low": low, "_high": high, "_std": told.get("std"), "_n": told.get("n")}


def as_text(methods: Sequence[Method], told: Mapping[str, Any]) -> str:
    """Everything for reading."""
    parts = [f"{told['prompts']['n']} prompts of {told['prompts']['source']}; {MEANS}; {INTERVALS}"]
    for table in tables(methods, told):
        parts += [f"**{table.title}**", markdown(table.rows)]
    for to in dict.fromkeys(d["to"] for d in told["differences"]):
        own = [d for d in told["differences"] if d["to"] == to]
        cells = [[d["row"], d["column"], f"{d['delta']:+.3f}", f"[{d['ci'][0]:+.3f}, {d['ci'][1]:+.3f}]"] for d in own]
        parts += [f"**Differences to {to}**, with 95 % confidence intervals", _grid(["", "", "", ""], cells)]
    if "right" in told:
        parts.append(_losses(told))
    return "\n\n".join([*parts, *told["notes"]])


def _losses(told: Mapping[str, Any]) -> str:
    """How many right images each row lost; where none, how many it may lose: 3/n, the rule of three."""
    n = told["right"]
    if not n:
        return "No image of the first row is right, so none could be lost."
    lost = {row["name"]: round(n * (1 - row["columns"][STAYED]["value"])) for row in told["rows"][1:]}
    cells = [[name, str(count), "" if count else f"below {3 / n:.3f}"] for name, count in lost.items()]
    title = f"**Right images lost**, of {n} (with none lost, the share that may be lost is below 3/n at 95 %)"
    return f"{title}\n\n{_grid(['', '', ''], cells)}" if cells else f"{n} images are right."
