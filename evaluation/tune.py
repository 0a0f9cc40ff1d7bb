"""Which settings of the modulation serve the demo world best? Asked on prompts that are never reported on.

    python evaluation/tune.py --count 192                     # every line of `VARIANTS` → out/tune.json and a table
    python evaluation/tune.py --set power=1 end=0.6           # the default with these changed

Coarse images and regions are made once; each variant then samples all of them again from their own noise, also those
that were right, so that one run tells what a gate costs and saves.
"""

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..attention.settings import ModulationSettings
from ..core.regions import RegionSet
from ..demo.models import FOLDER, SETTINGS, load_models
from ..demo.prompts import Pair, two_object_prompts
from ..pipeline.realign import Look, Models, find_regions, look, resample
from .table import Scores, score

BATCH = 48
PAPER = ModulationSettings()
OURS = SETTINGS.modulation
VARIANTS = {"paper": PAPER, "ours": OURS}


class Rule(NamedTuple):
    """Which images are left alone: see `RealignSettings`."""

    gate: float | None
    keep_better: bool


RULES = [Rule(None, False), Rule(None, True), Rule(0.9, False), *(Rule(g, True) for g in (0.8, 0.9, 0.95, 0.98))]


class Coarse(NamedTuple):
    """The coarse images of all prompts and what was seen in them."""

    prompts: list[tuple[str, list[Pair]]]
    noise: Tensor
    looks: list[Look]
    regions: list[RegionSet]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=FOLDER)
    parser.add_argument("--count", type=int, default=192, help="prompts")
    parser.add_argument("--seed", type=int, default=1000, help="prompt i is drawn from the noise of seed + i")
    parser.add_argument("--set", nargs="+", action="append", metavar="NAME=VALUE", help="one variant (may be repeated)")
    parser.add_argument(
        "--below", type=float, default=np.inf, help="sample only images with a lower caption reward again: faster"
    )
    parser.add_argument("--out", type=Path, default=Path("out/tune.json"))
    options = parser.parse_args()
    models = load_models(options.models)
    coarse = draw(models, options.count, options.seed)
    variants = {" ".join(c): replace(OURS, **_values(c)) for c in options.set} if options.set else VARIANTS
    before = score(coarse.looks, coarse.prompts)
    print(_header(), _line("base", before, before, RULES[0]), sep="\n")
    told = []
    for name, settings in variants.items():
        after = score(again(models, coarse, settings, options.below), coarse.prompts)
        for rule in RULES:
            print(_line(name, before, after, rule), flush=True)
            told.append({"name": name, **rule._asdict(), **numbers(before, after, rule)})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _values(changes: list[str]) -> dict[str, float | None]:
    pairs = (change.split("=", 1) for change in changes)
    return {name: None if value == "none" else float(value) for name, value in pairs}


def draw(models: Models, count: int, seed: int) -> Coarse:
    """Coarse images of `count` prompts that are no report prompts, with their regions."""
    prompts = two_object_prompts(held_out=False, count=count, seed=1)
    noise = models.sampler.noise(range(seed, seed + count))
    looks, regions = [], []
    for rows in tqdm(torch.arange(count).split(BATCH), desc="coarse images"):
        texts = [prompts[i][0] for i in rows.tolist()]
        images = models.sampler.sample(texts, noise[rows], SETTINGS.sampling)
        looks += look(models, images, texts)
        regions += find_regions(models, images, texts, SETTINGS)
    return Coarse(prompts, noise, looks, regions)


def again(models: Models, coarse: Coarse, modulation: ModulationSettings, below: float) -> list[Look]:
    """The images with an active region and a caption reward under `below` once more, with re-weighted attention."""
    settings = replace(SETTINGS, modulation=modulation)
    out = list(coarse.looks)
    mend = [i for i, seen in enumerate(out) if seen.reward < below and coarse.regions[i].active]
    for start in range(0, len(mend), BATCH):
        part = mend[start : start + BATCH]
        texts, regions = [coarse.prompts[i][0] for i in part], [coarse.regions[i] for i in part]
        for i, seen in zip(part, resample(models, texts, coarse.noise[part], regions, settings), strict=True):
            out[i] = seen
    return out


def numbers(before: Scores, after: Scores, rule: Rule) -> dict[str, float]:
    """Means over the prompts when the images that the rule protects are left alone."""
    gated = before["caption_reward"] >= (np.inf if rule.gate is None else rule.gate)
    left = gated | (rule.keep_better & (after["caption_reward"] <= before["caption_reward"]))
    mixed = {name: np.where(left, before[name], after[name]) for name in before}
    right = before["both_right"] == 1
    return {
        **{name: float(values.mean()) for name, values in mixed.items()},
        "stayed_right": float(mixed["both_right"][right].mean()),
        "mended": float(mixed["both_right"][~right].mean()),
        "sampled_again": float(1 - gated.mean()),
    }


COLUMNS = ("bind", "both_right", "exact", "caption_reward", "stayed_right", "mended", "sampled_again")


def _header() -> str:
    return f"{'':<40}{'gate':>6}{'better':>8}" + "".join(f"{name:>15}" for name in COLUMNS)


def _line(name: str, before: Scores, after: Scores, rule: Rule) -> str:
    told = numbers(before, after, rule)
    cells = "".join(f"{told[column]:>15.3f}" for column in COLUMNS)
    return f"{name:<40}{rule.gate or '-':>6}{'yes' if rule.keep_better else '-':>8}{cells}"


if __name__ == "__main__":
    main()
