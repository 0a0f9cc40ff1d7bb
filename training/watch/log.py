"""log.csv: a row per step, written during a run and read again for its report."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("step", "reward", "loss", "prior_loss", "held_out_reward", "bad_batches", "seconds", "images_per_second")
"""`reward` is that of the step's batch; `held_out_reward` is empty where it was not measured; `bad_batches` counts
non-finite steps in a row; `seconds` are those of the step, without samples and evaluation."""
Row = dict[str, float]  # the numbers of a row by column; empty cells are left out


def append(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to the file, with its columns; a new file gets COLUMNS.

    If a killed process left a half-written line, it is ended first, so that it damages no other.

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
    """The rows by ascending step, and a sentence for each fault of the file.

    A resumed run writes some steps twice: the later row counts, and discards all rows of later steps before it.
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
        row = _numbers(columns, line.split(","))  # numbers only: nothing is quoted
        if row is None:
            broken += 1
            continue
        while rows and rows[-1]["step"] >= row["step"]:
            rows.pop()
        rows.append(row)
    return rows, [f"Lines of log.csv that are broken and left out: {broken}."] if broken else []


def _numbers(columns: Sequence[str], cells: Sequence[str]) -> Row | None:
    """The row; None if a cell is no number or the number of cells is wrong."""
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
