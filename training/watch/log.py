"""log.csv: a row a step, written while a run goes on and read again for its report."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("step", "reward", "loss", "prior_loss", "held_out_reward", "bad_batches", "seconds", "images_per_second")
"""`reward` is of the step's own batch; `held_out_reward` is only there where it was measured; `bad_batches` counts
those in a row; `seconds` are the step's, without samples and evaluation."""
Row = dict[str, float]
"""What a row says, by column; an empty cell is left out."""


def append(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to the end of the file, under the columns that it has; a new file gets ours.

    A line that a killed process left half written is ended first, so that it spoils nothing after it.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", newline="", encoding="utf-8") as opened:
        opened.seek(0)
        columns = next(csv.reader(opened), None)
        opened.seek(0, os.SEEK_END)
        if columns and not _ends_in_newline(file):
            opened.write("\r\n")
        writer = csv.DictWriter(opened, columns or COLUMNS, extrasaction="ignore")
        if not columns:
            writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})


def read(file: Path) -> tuple[list[Row], list[str]]:
    """The steps in their order, and a sentence for each thing that is wrong with the file.

    A run that was killed and went on, or began anew in the same folder, wrote some steps twice: what was written later
    counts, and nothing stays of the steps after it.
    """
    try:
        text = file.read_bytes().decode("utf-8", errors="replace").replace("\0", "")
    except FileNotFoundError:
        return [], ["There is no log.csv yet."]
    except OSError as error:
        return [], [f"log.csv cannot be read ({error})."]
    first, *lines = text.splitlines() or [""]
    columns = first.split(",")
    if "step" not in columns:
        return [], ["log.csv is empty or not a log of a run: its first line names no column step."]
    rows: list[Row] = []
    broken = 0
    for line in lines:
        row = _numbers(columns, line.split(","))  # numbers alone: nothing in it is quoted
        if row is None:
            broken += 1
            continue
        while rows and rows[-1]["step"] >= row["step"]:
            rows.pop()
        rows.append(row)
    return rows, [f"Lines of log.csv that are broken and left out: {broken}."] if broken else []


def _numbers(columns: Sequence[str], cells: Sequence[str]) -> Row | None:
    """The row, or None where a cell holds something else, or too few or too many of them stand there."""
    if len(cells) != len(columns):
        return None
    try:
        row = {name: float(cell) for name, cell in zip(columns, cells, strict=True) if cell}
    except ValueError:
        return None
    step = row.get("step", math.nan)
    return row if 0 <= step < 2**53 and step == int(step) else None


def _ends_in_newline(file: Path) -> bool:
    with file.open("rb") as opened:
        opened.seek(-1, os.SEEK_END)
        return opened.read() == b"\n"
