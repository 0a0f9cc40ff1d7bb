"""`out/gpu/report.md`: what a run on a GPU found, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from .results import BAD, ERROR, FAIL, MEASURED, PASS, SKIPPED, Result, digits

REFERENCES = ("plain", "batch of 1")
"""The way that the others of a table are divided by."""


def with_ratio(result: Result, others: Iterable[Result]) -> Result:
    """The result over that of the reference, where there is one of the same case and quantity in any precision."""
    if result.status != MEASURED or result.way in REFERENCES or result.value is None:
        return result
    place = result.part, result.case, result.quantity
    for other in others:
        if other.way in REFERENCES and (other.part, other.case, other.quantity) == place and other.value:
            return replace(result, ratio=result.value / other.value)
    return result


def report(environment: Mapping[str, str], titles: Mapping[str, str], results: Sequence[Result]) -> str:
    """The whole file, as Markdown."""
    lines = [f"# What was seen on {environment['device']}", ""]
    lines += [f"- {name}: {value}" for name, value in environment.items()]
    lines += ["", f"**{summary(results)}**"]
    if bad := [f"- {result.line()}" for result in results if result.status in BAD]:
        lines += ["", *bad]
    for part, title in titles.items():
        of_part = [result for result in results if result.part == part]
        lines += ["", f"## {title}", ""]
        lines += [*_parities(of_part), *_measures(of_part), *_left_out(of_part)] or ["Not begun."]
    return "\n".join(lines) + "\n"


def summary(results: Sequence[Result]) -> str:
    """One sentence."""
    passed, failed, wrong, skipped = (
        sum(result.status == status for result in results) for status in (PASS, FAIL, ERROR, SKIPPED)
    )
    return f"{passed} parities hold, {failed} do not; {wrong} cases went wrong, {skipped} were skipped."


def _parities(results: Sequence[Result]) -> list[str]:
    rows = []
    for r in results:
        if r.status in (PASS, FAIL):
            status = r.status if r.status == PASS else f"**{r.status}**"
            ratio = "" if r.ratio is None else f"{r.ratio:.2f} ×"
            value = f"{r.quantity} {digits(r.value)}"
            rows.append([status, r.case, r.dtype, value, digits(r.limit), ratio, r.detail])
    return _table(["", "case", "precision", "found", "at most", "of plain attention's own", ""], rows)


def _measures(results: Sequence[Result]) -> list[str]:
    """A table for each quantity: cases as rows, ways as columns, ratios in its cells."""
    measured = [result for result in results if result.status == MEASURED]
    lines: list[str] = []
    for quantity in dict.fromkeys(result.quantity for result in measured):
        shown = [result for result in measured if result.quantity == quantity]
        ways = list(dict.fromkeys(result.way for result in shown))
        cells = {(r.case, r.dtype, r.way): _cell(r) for r in shown}
        cases = dict.fromkeys((r.case, r.dtype) for r in shown)
        rows = [[" ".join(filter(None, case)), *(cells.get((*case, way), "-") for way in ways)] for case in cases]
        lines += _table([quantity, *ways], rows)
    return lines


def _cell(result: Result) -> str:
    value = f"{digits(result.value)} {result.unit}".strip()
    return value if result.ratio is None else f"{result.ratio:.2f} × ({value})"


def _left_out(results: Sequence[Result]) -> list[str]:
    left = [f"- {result.line()}" for result in results if result.status in (SKIPPED, ERROR)]
    return ["Skipped or gone wrong:", "", *left] if left else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines), ""]
