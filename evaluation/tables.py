"""The paper's tables from the scores of each image: Markdown to read, CSV to plot, JSON with everything.

Table 1 has all methods; Table 2 the two stages of RealignDiff, alone and together; Table 3 the re-aligned images beside
other systems and controls. They differ only in their rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .bootstrap import mean_interval, paired_difference
from .methods import FINE, FINE_ALL, PLAIN, REDRAW, Method

STAYED, RIGHT = "stayed_right", "both_right"
LOWER_IS_BETTER = ("fid", "kid")


def summarize(
    methods: Sequence[Method], scores: Mapping[str, Mapping[str, np.ndarray]], overall: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Means, differences and their intervals, JSON-ready.

    scores: each method's columns [N], one value per prompt, NaN where there is none. overall: each method's cells that
        belong to all its images together, such as FID: {"value": …, "std": …}.
    """
    first = methods[0].name
    rows = [
        {"name": m.name, "columns": {**overall.get(m.name, {}), **_means(scores[m.name], m.name == first)}}
        for m in methods
    ]
    differences = [
        {"row": row, "to": to, "column": column, "n": int(both.sum()), "delta": delta, "ci": [low, high]}
        for row, to in _compared(methods)
        for column, after in scores[row].items()
        for both in [~np.isnan(after) & ~np.isnan(scores[to][column])]
        if both.sum() > 1
        for delta, low, high in [paired_difference(scores[to][column][both], after[both])]
    ]
    out: dict[str, Any] = {"rows": rows, "differences": differences}
    if STAYED in scores[first]:
        out["right"] = int(np.nansum(scores[first][RIGHT] == 1))
    return out


def _means(columns: Mapping[str, np.ndarray], is_first: bool) -> dict[str, dict[str, Any]]:
    out = {}
    for name, values in columns.items():
        known = values[~np.isnan(values)]
        if not len(known):
            out[name] = {"value": None, "n": 0}
        elif len(known) == 1 or (is_first and name == STAYED):  # the first method's is 1 by definition
            out[name] = {"value": float(known.mean()), "n": len(known)}
        else:
            mean, low, high = mean_interval(known)
            out[name] = {"value": mean, "ci": [low, high], "n": len(known)}
    return out


def _compared(methods: Sequence[Method]) -> list[tuple[str, str]]:
    """Pairs of rows to compare: each with the first; both stages together with each alone; re-aligned images with the
    redraw of the same model and with other systems."""
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


def tables(methods: Sequence[Method], results: Mapping[str, Any]) -> list[tuple[int, str, list[dict[str, Any]]]]:
    """Each table's number, title and rows; Table 2 is left out where it would have the rows of Table 1."""
    rows = {row["name"]: row for row in results["rows"]}
    ours = [m for m in methods if m.images is None]
    stages = [m.name for m in ours if m.way in (PLAIN, FINE)]
    others = [m.name for m in methods if m.images is not None or m.way in (FINE_ALL, REDRAW)]
    both = len(stages) > 1 and len(stages) == len(rows)
    first = "image quality and alignment with the prompt"
    title = f"Tables 1 and 2: {first}; the coarse and the fine stage" if both else f"Table 1: {first}"
    out = [(1, title, list(rows))]
    if 1 < len(stages) < len(rows):
        out.append((2, "Table 2: the coarse and the fine stage", stages))
    if others and len(rows) > 1:
        compared = [methods[0].name, *(m.name for m in ours if m.way == FINE), *others]
        out.append((3, "Table 3: other systems and controls", list(dict.fromkeys(compared))))
    return [(number, title, [rows[name] for name in names]) for number, title, names in out]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table; ± is half of the confidence interval."""
    columns = list(dict.fromkeys(name for row in rows for name in row["columns"]))
    arrows = [f"{name} {'↓' if name in LOWER_IS_BETTER else '↑'}" for name in columns]
    return _grid(
        ["", *arrows], [[row["name"], *(_cell(name, row["columns"].get(name)) for name in columns)] for row in rows]
    )


def _cell(name: str, cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell["value"] is None:
        return "–"
    form = {"fid": "#.4g", "kid": ".4f"}.get(name, ".3f")
    low, high = cell.get("ci", (None, None))
    spread = cell.get("std") if low is None else (high - low) / 2
    return f"{cell['value']:{form}}" + ("" if spread is None else f" ± {spread:{form}}")


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, so that it can be read in a terminal too."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        f"| {row[0]:<{widths[0]}} | " + " | ".join(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as plain numbers: each column's value, the ends of its interval or its deviation, and its count."""
    out = io.StringIO()
    flat = []
    for row in rows:
        cells = {"method": row["name"]}
        for name, cell in row["columns"].items():
            low, high = cell.get("ci", (None, None))
            parts = {"": cell["value"], "_low": low, "_high": high, "_std": cell.get("std"), "_n": cell.get("n")}
            cells |= {f"{name}{end}": value for end, value in parts.items() if value is not None}
        flat.append(cells)
    writer = csv.DictWriter(out, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def as_text(methods: Sequence[Method], results: Mapping[str, Any]) -> str:
    """All tables and notes as Markdown."""
    prompts, differences = results["prompts"], results["differences"]
    key = "±: half of the 95 % interval over the prompts; for KID, the standard deviation over its subsets"
    parts = [f"{prompts['n']} prompts of {prompts['source']}; {key}"]
    for _, title, rows in tables(methods, results):
        parts += [f"**{title}**", markdown(rows)]
    for to in dict.fromkeys(d["to"] for d in differences):
        cells = [
            [d["row"], d["column"], f"{d['delta']:+.3f}", f"[{d['ci'][0]:+.3f}, {d['ci'][1]:+.3f}]"]
            for d in differences
            if d["to"] == to
        ]
        parts += [f"**Differences to {to}**, with 95 % confidence intervals", _grid(["", "", "", ""], cells)]
    if "right" in results:
        parts.append(_losses(results))
    return "\n\n".join([*parts, *results["notes"]])


def _losses(results: Mapping[str, Any]) -> str:
    """How many right images each row lost; if none, how many it may lose by the rule of three, 3/n."""
    n = results["right"]
    if not n:
        return "No image of the first row is right, so none could be lost."
    lost = {row["name"]: round(n * (1 - row["columns"][STAYED]["value"])) for row in results["rows"][1:]}
    cells = [[name, str(count), "" if count else f"below {3 / n:.3f}"] for name, count in lost.items()]
    title = f"**Right images lost**, of {n} (with none lost, the share that may be lost is below 3/n at 95 %)"
    return f"{title}\n\n{_grid(['', '', ''], cells)}" if cells else f"{n} images are right."
