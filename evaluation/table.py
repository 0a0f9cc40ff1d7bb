"""What the method does to prompts that no setting was chosen on: the same noise for every row.

    make table
    python evaluation/table.py --coarse out/refl-demo/best.safetensors

Prints the table and writes it to `table.json`; every number comes from the judge, which has no trained parts, but for
the caption reward. Differences come with 95 % confidence intervals (paired bootstrap over the prompts). The rows:

    base                       the images of the model as it came
    + coarse                   those of the model that was fine-tuned with the caption reward (training/refl_train.py)
    + fine                     re-aligned, with the demo's gate; the better of the two by caption reward (keep_better)
    both                       the fine-tuned model's images, re-aligned in the same way
    + fine, every image kept   re-aligned, with the same gate; no choice by reward
    + redraw                   drawn again from other noise instead of re-aligned; the same gate and choice

The last two are controls: they tell what the choice does without the method, and the method without the choice.
"""

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..core.errors import RealignError
from ..demo.judge import judge_all
from ..demo.models import COARSE_WEIGHTS, FOLDER, SETTINGS, load_models
from ..demo.prompts import Pair, two_object_prompts
from ..perception.images import to_uint8
from ..pipeline.realign import Look, Models, RealignResult, RealignSettings, look, realign_batch
from ..pipeline.sampler import DiffusersSampler
from ..training.load_back import load_back
from .bootstrap import paired_difference

COLUMNS = ("bind", "both_right", "exact", "caption_reward", "stayed_right")
BASE, COARSE, FINE, BOTH = "base", "+ coarse", "+ fine", "both"
EVERY, REDRAW = "+ fine, every image kept", "+ redraw"
COMPARED = (
    *((row, BASE) for row in (COARSE, FINE, BOTH, EVERY, REDRAW)),
    (BOTH, COARSE),
    (BOTH, FINE),
    (FINE, REDRAW),
)
"""Which row's differences to which other are told."""
OTHER_NOISE = 10_000
"""Added to a prompt's seed for its redraw: no other prompt's noise."""
BATCH = 32
Prompts = Sequence[tuple[str, list[Pair]]]
Scores = dict[str, np.ndarray]
"""Each column but the last as an array [N], one value a prompt."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="held-out prompts (all 448 by default)")
    parser.add_argument("--seed", type=int, default=0, help="prompt i is drawn from the noise of seed + i")
    parser.add_argument("--coarse", type=Path, default=COARSE_WEIGHTS, help="what a run wrote (the shipped LoRA)")
    parser.add_argument("--out", type=Path, default=Path("out/table"), help="folder for table.json")
    options = parser.parse_args()
    try:
        prompts = two_object_prompts(held_out=True, count=options.count)
        models = load_models()
        told = table(rows(models, prompts, SETTINGS, options.seed, with_weights(models, options.coarse)))
    except RealignError as error:
        sys.exit(f"table: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(as_text(told))


def with_weights(models: Models, file: Path) -> Models:
    """The same models, but for the UNet, which has the weights that a training run wrote to `file`."""
    sampler = DiffusersSampler.load(FOLDER / "stable_diffusion")
    load_back(sampler.unet, file)
    return replace(models, sampler=sampler)


def rows(
    models: Models, prompts: Prompts, settings: RealignSettings, seed: int = 0, coarse: Models | None = None
) -> dict[str, Scores]:
    """The scores of all rows; `settings.keep_better` is each row's own. Without `coarse` its two rows are left out."""
    results = run(models, prompts, replace(settings, keep_better=False), seed)
    before, after = [result.before for result in results], [result.after for result in results]
    again = redraw(models, prompts, before, settings, seed)
    looks = {BASE: before, FINE: better(before, after)}
    if coarse is not None:
        results = run(coarse, prompts, replace(settings, keep_better=False), seed)
        trained = [result.before for result in results]
        both = better(trained, [result.after for result in results])
        looks = {BASE: before, COARSE: trained, FINE: looks[FINE], BOTH: both}
    looks |= {EVERY: after, REDRAW: better(before, again)}
    return {name: score(own, prompts) for name, own in looks.items()}


def run(models: Models, prompts: Prompts, settings: RealignSettings, seed: int = 0) -> list[RealignResult]:
    """Realign all prompts, each from the noise of its own seed."""
    out = []
    for rows in tqdm(torch.arange(len(prompts)).split(BATCH), desc="prompts", unit=f"{BATCH} prompts"):
        texts = [prompts[i][0] for i in rows.tolist()]
        out += realign_batch(models, texts, [seed + i for i in rows.tolist()], settings)
    return out


def redraw(
    models: Models, prompts: Prompts, looks: Sequence[Look], settings: RealignSettings, seed: int = 0
) -> list[Look]:
    """The images that the gate does not protect drawn once more, plainly, each from other noise."""
    out = list(looks)
    wrong = [i for i, seen in enumerate(looks) if settings.gate is None or seen.reward < settings.gate]
    for start in tqdm(range(0, len(wrong), BATCH), desc="redrawn", unit=f"{BATCH} prompts"):
        part = wrong[start : start + BATCH]
        texts = [prompts[i][0] for i in part]
        noise = models.sampler.noise([seed + OTHER_NOISE + i for i in part])
        images = models.sampler.sample(texts, noise, settings.sampling)
        for i, seen in zip(part, look(models, images, texts), strict=True):
            out[i] = seen
    return out


def better(before: Sequence[Look], after: Sequence[Look]) -> list[Look]:
    """Of each two images the one with the higher caption reward; of equals the first, as `keep_better` has it."""
    return [b if b.reward > a.reward else a for a, b in zip(before, after, strict=True)]


def score(looks: Sequence[Look], prompts: Prompts) -> Scores:
    """Hold each image against its prompt."""
    images = to_uint8(torch.stack([look.image for look in looks]))
    judged = judge_all(images, [pairs for _, pairs in prompts])
    return {**judged, "caption_reward": np.array([look.reward for look in looks])}


def table(rows: dict[str, Scores]) -> dict[str, Any]:
    """The rows' means and their differences (`COMPARED`, where both rows are there), as JSON-ready values.

    stayed_right is the share of the base row's right images that are right in this row.
    """
    right = rows[BASE]["both_right"] == 1
    values = {name: {**scores, "stayed_right": scores["both_right"][right]} for name, scores in rows.items()}
    means = [{"name": name, **{column: _mean(own[column]) for column in COLUMNS}} for name, own in values.items()]
    differences = [
        {"row": row, "to": to, "column": column, "delta": delta, "ci": [low, high]}
        for row, to in COMPARED
        if row in values and to in values
        for column in COLUMNS
        if len(values[to][column]) > 1
        for delta, low, high in [paired_difference(values[to][column], values[row][column])]
    ]
    return {"n": len(right), "right": int(right.sum()), "rows": means, "differences": differences}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def as_text(told: dict[str, Any]) -> str:
    """The table for reading."""
    lines = [f"{told['n']} held-out prompts, the same noise for every row but {REDRAW}", ""]
    lines.append(f"{'':<26}" + "".join(f"{column:>16}" for column in COLUMNS))
    for row in told["rows"]:
        cells = ("-" if row[column] is None else f"{row[column]:.3f}" for column in COLUMNS)
        lines.append(f"{row['name']:<26}" + "".join(f"{cell:>16}" for cell in cells))
    to = None
    for d in told["differences"]:
        if d["to"] != to:
            to = d["to"]
            lines += ["", f"differences to {to}, with 95 % confidence intervals"]
        interval = f"[{d['ci'][0]:+.3f}, {d['ci'][1]:+.3f}]"
        lines.append(f"{d['row']:<26}{d['column']:<16}{d['delta']:+.3f}  {interval}")
    return "\n".join([*lines, "", _losses(told)])


def _losses(told: dict[str, Any]) -> str:
    """How many right images each row lost; where none, how many it may lose: 3/n, the rule of three."""
    n = told["right"]
    if not n:
        return "no image of the base row is right, so none could be lost"
    lines = [f"right images lost, of {n} (with none lost, the share that may be lost is below 3/n at 95 %)"]
    for row in told["rows"][1:]:
        lost = round(n * (1 - row["stayed_right"]))
        bound = "" if lost else f"   below {3 / n:.3f}"
        lines.append(f"{row['name']:<26}{lost:>16}{bound}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
