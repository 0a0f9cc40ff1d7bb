"""The average ranks of the human study, from the files that raters saved on its page (evaluation/page.py).

    python evaluation/ranks.py results-1.json results-2.json …

Rank 1 is the best image of a prompt; tied images share the mean of their ranks. A prompt's ranks are averaged over its
raters first, so that the 95 % confidence intervals (percentile bootstrap) are over prompts. Answers in which an image
has no rank are left out, and counted. Also written to `ranks.md`, `ranks.csv` and `ranks.json`.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from ..core.errors import RealignError, exit_on_error
from ..core.files import reason, write_whole
from .bootstrap import Interval, paired_difference

COLUMNS = ("method", "mean_rank", "low", "high", "first_places", "difference", "difference_low", "difference_high")


class Results(NamedTuple):
    """One rater's answers."""

    file: Path
    study: str
    title: str
    rater: str
    methods: list[str]
    answers: dict[int, dict[str, float]]
    """The number of a prompt → a method → its rank, where it has one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="files that raters saved")
    parser.add_argument("--out", type=Path, default=Path("out/ranks"), help="folder for ranks.md, .csv and .json")
    options = parser.parse_args()
    with exit_on_error("ranks"):
        summary = summarize([read_results(file) for file in options.files])
        write_whole(options.out / "ranks.json", json.dumps(summary, indent=2) + "\n")
        write_whole(options.out / "ranks.csv", as_csv(summary))
        write_whole(options.out / "ranks.md", as_markdown(summary))
    print(as_markdown(summary), end="")


def read_results(file: Path) -> Results:
    """Read a file that the page saved."""
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RealignError(f"'{file}' cannot be read ({reason(error)}): give what the page saved.") from error
    except (ValueError, RecursionError) as error:
        raise RealignError(f"'{file}' is not JSON: it is damaged, or not what the page saved.") from error
    try:
        return _parse(file, saved)
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise RealignError(f"'{file}' is not what the page saved: let the rater save it again.") from error


def _parse(file: Path, saved: Any) -> Results:
    """The results; an error about a type or a key if the page did not save this."""
    answers = {answer["prompt"]: dict(answer["ranks"].items()) for answer in saved["answers"]}
    results = Results(file, saved["study"], saved["page"], saved["rater"], saved["methods"], answers)
    methods, ranks = set(results.methods), [rank for answer in answers.values() for rank in answer.values()]
    valid = (
        isinstance(results.methods, list)
        and all(isinstance(text, str) for text in (*results[1:4], *methods))
        and len(methods) == len(results.methods) > 1
        and len(answers) == len(saved["answers"])
        and all(type(prompt) is int and prompt >= 0 for prompt in answers)
        and all(set(answer) <= methods for answer in answers.values())
        and all(type(rank) in (int, float) and math.isfinite(rank) for rank in ranks)
    )
    if not valid:
        raise TypeError(saved)
    return results


def check_same_study(results: Sequence[Results]) -> None:
    """Check that results belong to one study and different raters."""
    first, raters = results[0], {}
    for file, study, _, rater, methods, _ in results:
        if (study, methods) != (first.study, first.methods):
            raise RealignError(
                f"'{first.file}' and '{file}' are of different studies: give the results of one page at a time."
            )
        if rater in raters:
            raise RealignError(f"'{raters[rater]}' and '{file}' are both of the rater '{rater}': give the later one.")
        if rater:
            raters[rater] = file


def summarize(results: Sequence[Results]) -> dict[str, Any]:
    """Mean ranks, shares of first places and differences to the first method, JSON-ready."""
    check_same_study(results)
    methods = results[0].methods
    complete, answers, incomplete = defaultdict(list), 0, 0
    for result in results:
        for prompt, ranks in result.answers.items():
            if len(ranks) == len(methods):
                complete[prompt].append(rankdata([float(ranks[name]) for name in methods]))
                answers += 1
            else:
                incomplete += 1
    if len(complete) < 2:
        raise RealignError(
            f"{len(complete)} of the prompts have an answer with all images ranked: rank those of at least two."
        )
    prompts = sorted(complete)
    ranks = np.array([np.mean(complete[prompt], axis=0) for prompt in prompts])
    firsts = np.array([np.mean([first_places(answer) for answer in complete[prompt]], axis=0) for prompt in prompts])
    most = len(methods)
    rows = []
    for i, name in enumerate(methods):
        row: dict[str, Any] = {"method": name}
        row["mean_rank"], *row["ci"] = mean_within(ranks[:, i], 1, most)
        row["first_places"] = float(firsts[:, i].mean())
        if i:
            row["difference"], *row["difference_ci"] = mean_within(ranks[:, i] - ranks[:, 0], 1 - most, most - 1)
        rows.append(row)
    return {
        "study": results[0].study,
        "page": results[0].title,
        "raters": len(results),
        "prompts": len(prompts),
        "answers": answers,
        "incomplete": incomplete,
        "rows": rows,
    }


def first_places(ranks: np.ndarray) -> np.ndarray:
    """Ranks [M] of one answer → [M]: 1 for the best image; tied best images share it."""
    best = ranks == ranks.min()
    return best / best.sum()


def mean_within(values: np.ndarray, lowest: float, highest: float) -> Interval:
    """The mean of values [N] between lowest and highest, and its 95 % interval over the prompts."""
    span = highest - lowest
    # The differences to the first value: if all are equal, `paired_difference` gives the interval a width.
    interval = paired_difference(np.full(len(values), values[0] / span), values / span)
    delta, low, high = (values[0] + span * number for number in interval)
    return float(delta), float(max(low, lowest)), float(min(high, highest))


def as_markdown(summary: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    first = _cell(summary["rows"][0]["method"])
    answers, raters, prompts, incomplete = (summary[key] for key in ("answers", "raters", "prompts", "incomplete"))
    left_out = f"; {incomplete} in which not every image has a rank are left out" if incomplete else ""
    lines = [
        f"{answers} answers of {raters} rater{'s' * (raters > 1)} to {prompts} prompts{left_out}. "
        "Rank 1 is the best; in brackets 95 % confidence intervals.",
        "",
        f"| method | mean rank | first places | less {first} |",
        "|---|---|---|---|",
    ]
    for row in summary["rows"]:
        rank = _with_interval(row["mean_rank"], row["ci"], ".2f")
        difference = _with_interval(row["difference"], row["difference_ci"], "+.2f") if "difference" in row else ""
        lines.append(f"| {_cell(row['method'])} | {rank} | {row['first_places']:.1%} | {difference} |")
    return "\n".join(lines) + "\n"


def _with_interval(mean: float, interval: Sequence[float], form: str) -> str:
    low, high = interval
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def as_csv(summary: Mapping[str, Any]) -> str:
    """The table as CSV; the first method has no difference."""
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in summary["rows"]:
        difference = [row["difference"], *row["difference_ci"]] if "difference" in row else [""] * 3
        table.writerow([row["method"], row["mean_rank"], *row["ci"], row["first_places"], *difference])
    return written.getvalue()


if __name__ == "__main__":
    main()
