"""Which settings of the modulation serve the demo world best? Asked on prompts that are never reported on.

    python evaluation/tune.py --count 192                     # every line of `VARIANTS` → out/tune.json and a table
    python evaluation/tune.py --set power=1 end=0.6           # the paper's settings with these changed
    python evaluation/tune.py --set isolate_phrases=1         # … with phrases encoded alone, as DenseDiffusion does

Coarse images and regions are made once; each variant then samples all of them again from their own noise, also those
that were right, so that one run tells what a gate costs and saves.
"""

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..attention.equation.settings import ModulationSettings
from ..core.embedded import WEIGHTS
from ..core.errors import RealignError
from ..core.regions import RegionSet
from ..demo.models import SETTINGS, load_models
from ..demo.prompts import two_object_prompts
from ..pipeline.realign import CaptionedImage, Models, RealignSettings, caption_and_score, find_regions, resample
from ..rewards.gate import passes_gate, replaces
from .scores import of_looks

BATCH = 48
Scores = dict[str, np.ndarray]
"""Each column as an array [N], one value a prompt."""
PAPER = replace(SETTINGS, modulation=ModulationSettings(), isolate_phrases=False)
"""The paper's re-weighting; how images are drawn and regions are found is the demo world's in all variants."""
VARIANTS = {"paper": replace(PAPER, isolate_phrases=True), "ours": SETTINGS}
ISOLATE = "isolate_phrases"
SWITCH = {f"{ISOLATE}=1": True, f"{ISOLATE}=0": False}


class Rule(NamedTuple):
    """Which images are left alone: see `RealignSettings`."""

    gate: float | None
    keep_better: bool


RULES = [Rule(None, False), Rule(None, True), Rule(0.9, False), *(Rule(g, True) for g in (0.8, 0.9, 0.95, 0.98))]


class Coarse(NamedTuple):
    """The coarse images of all prompts and what was seen in them."""

    prompts: list[str]
    noise: Tensor
    looks: list[CaptionedImage]
    regions: list[RegionSet]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=WEIGHTS)
    parser.add_argument("--count", type=int, default=192, help="prompts")
    parser.add_argument("--seed", type=int, default=1000, help="prompt i is drawn from the noise of seed + i")
    parser.add_argument("--set", nargs="+", action="append", metavar="NAME=VALUE", help="one variant (may be repeated)")
    parser.add_argument(
        "--below",
        type=float,
        default=np.inf,
        help="sample only images with a lower caption reward again: faster, but tells nothing of higher gates",
    )
    parser.add_argument("--out", type=Path, default=Path("out/tune.json"))
    options = parser.parse_args()
    try:
        told = tune(options)
    except RealignError as error:
        sys.exit(f"tune: {error}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def tune(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Print the table line by line and return it as JSON-ready values."""
    variants = {" ".join(c): settings_of(c) for c in options.set} if options.set else VARIANTS
    prompts = [text for text, _ in two_object_prompts(held_out=False, count=options.count, seed=1)]
    models = load_models(options.models)
    coarse = draw(models, prompts, options.seed)
    before = of_looks(coarse.looks, coarse.prompts)
    print(_header(), _line("base", before, before, RULES[0]), sep="\n")
    told = []
    for name, settings in variants.items():
        after = of_looks(again(models, coarse, settings, options.below), coarse.prompts)
        for rule in rules(options.below):
            print(_line(name, before, after, rule), flush=True)
            told.append({"name": name, **rule._asdict(), **numbers(before, after, rule)})
    return told


def settings_of(changes: Sequence[str]) -> RealignSettings:
    """The paper's modulation with changes such as `end=0.5`; phrases are encoded alone only by `isolate_phrases=1`.

    Raises:
        RealignError: a change is not of that form, or its value is out of range.
    """
    switches = [change for change in changes if change.partition("=")[0] == ISOLATE]
    for change in switches:
        if change not in SWITCH:
            raise RealignError(f"'{change}' is neither on nor off; write {' or '.join(SWITCH)}.")
    modulation = variant([change for change in changes if change not in switches])
    return replace(PAPER, modulation=modulation, isolate_phrases=bool(switches) and SWITCH[switches[-1]])


def variant(changes: Sequence[str]) -> ModulationSettings:
    """The paper's modulation with changes such as `end=0.5` or `gain_limit=none`.

    Raises:
        RealignError: a change is not of that form, or its value is out of range.
    """
    allowed = [field.name for field in fields(ModulationSettings)]
    values: dict[str, float | None] = {}
    for change in changes:
        name, _, value = change.partition("=")
        try:
            values[name] = None if value == "none" and name == "gain_limit" else float(value)
        except ValueError:
            raise RealignError(f"'{change}' sets no number; write e.g. end=0.5, or gain_limit=none.") from None
        if name not in allowed:
            raise RealignError(f"'{name}' is no setting of a variant; choose from {', '.join([*allowed, ISOLATE])}.")
    return replace(PAPER.modulation, **values)


def rules(below: float) -> list[Rule]:
    """Those of `RULES` that are told by sampling the images under a caption reward again: no gate is higher."""
    return [rule for rule in RULES if (np.inf if rule.gate is None else rule.gate) <= below]


def draw(models: Models, prompts: list[str], seed: int) -> Coarse:
    """Coarse images of the prompts, which are no report prompts, with their regions."""
    noise = models.sampler.noise(range(seed, seed + len(prompts)))
    looks, regions = [], []
    for rows in tqdm(torch.arange(len(prompts)).split(BATCH), desc="coarse images"):
        texts = [prompts[i] for i in rows.tolist()]
        images = models.sampler.sample(texts, noise[rows], SETTINGS.sampling)
        looks += caption_and_score(models, images, texts)
        regions += find_regions(models, images, texts, SETTINGS)
    return Coarse(prompts, noise, looks, regions)


def again(models: Models, coarse: Coarse, settings: RealignSettings, below: float) -> list[CaptionedImage]:
    """The images with an active region and a caption reward under `below` once more, with re-weighted attention."""
    out = list(coarse.looks)
    mend = [i for i, seen in enumerate(out) if seen.reward < below and coarse.regions[i].active]
    for start in range(0, len(mend), BATCH):
        part = mend[start : start + BATCH]
        texts, regions = [coarse.prompts[i] for i in part], [coarse.regions[i] for i in part]
        for i, seen in zip(part, resample(models, texts, coarse.noise[part], regions, settings), strict=True):
            out[i] = seen
    return out


def numbers(before: Scores, after: Scores, rule: Rule) -> dict[str, float]:
    """Means over the prompts when the images that the rule protects are left alone."""
    gated = passes_gate(before["caption_reward"], rule.gate)
    replaced = ~gated & replaces(before["caption_reward"], after["caption_reward"], rule.keep_better)
    mixed = {name: np.where(replaced, after[name], before[name]) for name in before}
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
