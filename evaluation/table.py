"""What the method does to prompts that no setting was chosen on: the same noise for every row.

    make table
    python evaluation/table.py --count 448 --out out/table

Prints the table and writes it to `table.json`; every number comes from the judge, which has no trained parts, but for
the caption reward. Differences are to `base`, with 95 % confidence intervals (paired bootstrap over the prompts).
"""

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..demo.judge import judge_all
from ..demo.models import SETTINGS, load_models
from ..demo.prompts import Pair, two_object_prompts
from ..perception.images import to_uint8
from ..pipeline.realign import Look, Models, RealignResult, RealignSettings, realign_batch
from .bootstrap import paired_difference

COLUMNS = ("bind", "both_right", "exact", "caption_reward", "stayed_right")
BATCH = 32
Scores = dict[str, np.ndarray]
"""Each column but the last as an array [N], one value a prompt."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="held-out prompts (all 448 by default)")
    parser.add_argument("--seed", type=int, default=0, help="prompt i is drawn from the noise of seed + i")
    parser.add_argument("--out", type=Path, default=Path("out/table"), help="folder for table.json")
    options = parser.parse_args()
    prompts = two_object_prompts(held_out=True, count=options.count)
    results = run(load_models(), prompts, SETTINGS, options.seed)
    told = table(
        {
            "base": score([r.before for r in results], prompts),
            "+ fine": score([r.after for r in results], prompts),
        }
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(as_text(told))


def run(
    models: Models, prompts: Sequence[tuple[str, list[Pair]]], settings: RealignSettings, seed: int = 0
) -> list[RealignResult]:
    """Realign all prompts, each from the noise of its own seed."""
    out = []
    for rows in tqdm(torch.arange(len(prompts)).split(BATCH), desc="prompts", unit=f"{BATCH} prompts"):
        texts = [prompts[i][0] for i in rows.tolist()]
        out += realign_batch(models, texts, [seed + i for i in rows.tolist()], settings)
    return out


def score(looks: Sequence[Look], prompts: Sequence[tuple[str, list[Pair]]]) -> Scores:
    """Hold each image against its prompt."""
    images = to_uint8(torch.stack([look.image for look in looks]))
    judged = judge_all(images, [pairs for _, pairs in prompts])
    return {**judged, "caption_reward": np.array([look.reward for look in looks])}


def table(rows: dict[str, Scores]) -> dict[str, Any]:
    """The rows' means and their differences to the first row, as JSON-ready values."""
    base = next(iter(rows.values()))
    right = base["both_right"] == 1
    means, differences = [], []
    for name, scores in rows.items():
        pairs = {column: (base[column], scores[column]) for column in COLUMNS[:-1]}
        pairs["stayed_right"] = (base["both_right"][right], scores["both_right"][right])
        means.append({"name": name, **{column: _mean(after) for column, (_, after) in pairs.items()}})
        for column, (before, after) in pairs.items() if scores is not base else ():
            if len(before) > 1:
                delta, low, high = paired_difference(before, after)
                differences.append({"row": name, "column": column, "delta": delta, "ci": [low, high]})
    return {"n": len(base["bind"]), "rows": means, "differences": differences}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def as_text(told: dict[str, Any]) -> str:
    """The table for reading."""
    lines = [f"{told['n']} held-out prompts, the same noise for every row", ""]
    lines.append(f"{'':<10}" + "".join(f"{column:>16}" for column in COLUMNS))
    for row in told["rows"]:
        cells = ("-" if row[column] is None else f"{row[column]:.3f}" for column in COLUMNS)
        lines.append(f"{row['name']:<10}" + "".join(f"{cell:>16}" for cell in cells))
    lines += ["", "differences to base, with 95 % confidence intervals"]
    for d in told["differences"]:
        lines.append(f"{d['row']:<10}{d['column']:<16}{d['delta']:+.3f}  [{d['ci'][0]:+.3f}, {d['ci'][1]:+.3f}]")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
