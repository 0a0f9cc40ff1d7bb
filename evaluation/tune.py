"""Which settings of re-weighting serve the demo world best? Measured on prompts that are never reported on.

    python evaluation/tune.py --count 192                     # all `VARIANTS` → out/tune.json and a table
    python evaluation/tune.py --set power=1 end=0.6           # the paper's settings with these changed
    python evaluation/tune.py --set isolate_phrases=1         # … with phrases encoded alone, as DenseDiffusion does

Coarse images and regions are made once. Each variant then samples all images again from their own noise, the right
ones too, so that one run shows what each gate would cost and save.
"""

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..attention.equation.settings import ModulationSettings
from ..core.embedded import WEIGHTS
from ..core.errors import RealignError, exit_on_error
from ..core.files import write_whole
from ..demo.models import SETTINGS, load_models
from ..demo.prompts import two_object_prompts
from ..pipeline.realign import CaptionedImage, Models, RealignSettings, resample
from ..rewards.gate import passes_gate, replaces
from .coarse_images import BATCH, CoarseImages, sample_coarse
from .scores import score_images

Scores = dict[str, np.ndarray]
"""Columns [N], one value per prompt."""
PAPER = replace(SETTINGS, modulation=ModulationSettings(), isolate_phrases=False)
"""The paper's re-weighting; sampling and regions are the demo world's in all variants."""
VARIANTS = {"paper": replace(PAPER, isolate_phrases=True), "ours": SETTINGS}
ISOLATE = "isolate_phrases"
COLUMNS = ("bind", "both_right", "exact", "caption_reward", "stayed_right", "mended", "sampled_again")


class Rule(NamedTuple):
    """Which images are left alone: see `RealignSettings`."""

    gate: float | None
    keep_better: bool


RULES = [Rule(None, False), Rule(None, True), Rule(0.9, False), *(Rule(g, True) for g in (0.8, 0.9, 0.95, 0.98))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=WEIGHTS, help="folder of the demo models")
    parser.add_argument("--count", type=int, default=192, help="how many prompts (192)")
    parser.add_argument("--seed", type=int, default=1000, help="prompt i is sampled from the noise of seed + i (1000)")
    parser.add_argument("--set", nargs="+", action="append", metavar="NAME=VALUE", help="one variant (repeatable)")
    below = "sample only images with a lower caption reward again: faster, but higher gates are then not evaluated"
    parser.add_argument("--below", type=float, default=np.inf, help=below)
    parser.add_argument("--out", type=Path, default=Path("out/tune.json"), help="file for the numbers (out/tune.json)")
    options = parser.parse_args()
    with exit_on_error("tune"):
        results = tune(options)
        write_whole(options.out, json.dumps(results, indent=1) + "\n")


def tune(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Print the table line by line. Returns it, JSON-ready."""
    variants = {" ".join(c): parse_settings(c) for c in options.set} if options.set else VARIANTS
    prompts = [text for text, _ in two_object_prompts(held_out=False, count=options.count, seed=1)]
    models = load_models(options.models)
    coarse = sample_coarse(models, prompts, options.seed, SETTINGS)
    before = score_images(coarse.images, prompts)
    print(f"{'':<40}{'gate':>6}{'better':>8}" + "".join(f"{name:>15}" for name in COLUMNS))
    print(_line("base", RULES[0], summarize(before, before, RULES[0])))
    results = []
    for name, settings in variants.items():
        after = score_images(resample_images(models, coarse, settings, options.below), prompts)
        for rule in evaluable_rules(options.below):
            means = summarize(before, after, rule)
            print(_line(name, rule, means), flush=True)
            results.append({"name": name, **rule._asdict(), **means})
    return results


def parse_settings(changes: Sequence[str]) -> RealignSettings:
    """The paper's settings with changes such as `end=0.5`, `gain_limit=none` or `isolate_phrases=1`, by default off."""
    allowed = [field.name for field in fields(ModulationSettings)]
    values: dict[str, float | None] = {}
    isolate = False
    for change in changes:
        name, _, value = change.partition("=")
        if name == ISOLATE:
            if value not in ("0", "1"):
                raise RealignError(f"'{change}' is neither on nor off; write {ISOLATE}=1 or {ISOLATE}=0.")
            isolate = value == "1"
            continue
        try:
            values[name] = None if value == "none" and name == "gain_limit" else float(value)
        except ValueError:
            raise RealignError(f"'{change}' sets no number; write e.g. end=0.5, or gain_limit=none.") from None
        if name not in allowed:
            raise RealignError(f"'{name}' is no setting of a variant; choose from {', '.join([*allowed, ISOLATE])}.")
    return replace(PAPER, modulation=replace(PAPER.modulation, **values), isolate_phrases=isolate)


def evaluable_rules(below: float) -> list[Rule]:
    """The `RULES` that can be evaluated if only images with a reward below `below` were sampled again."""
    return [rule for rule in RULES if (np.inf if rule.gate is None else rule.gate) <= below]


def resample_images(
    models: Models, coarse: CoarseImages, settings: RealignSettings, below: float
) -> list[CaptionedImage]:
    """The coarse images; those with an active region and a reward below `below` are replaced by new samples."""
    out = list(coarse.images)
    chosen = [i for i, image in enumerate(out) if image.reward < below and coarse.regions[i].active]
    for start in range(0, len(chosen), BATCH):
        batch = chosen[start : start + BATCH]
        texts, regions = [coarse.prompts[i] for i in batch], [coarse.regions[i] for i in batch]
        images = resample(models, texts, coarse.noise[batch], regions, settings)
        for i, image in zip(batch, images, strict=True):
            out[i] = image
    return out


def summarize(before: Scores, after: Scores, rule: Rule) -> dict[str, float]:
    """Means over the prompts if the images that the rule protects are left alone."""
    passed = passes_gate(before["caption_reward"], rule.gate)
    replaced = ~passed & replaces(before["caption_reward"], after["caption_reward"], rule.keep_better)
    final = {name: np.where(replaced, after[name], before[name]) for name in before}
    right = before["both_right"] == 1
    return {
        **{name: float(values.mean()) for name, values in final.items()},
        "stayed_right": float(final["both_right"][right].mean()),
        "mended": float(final["both_right"][~right].mean()),
        "sampled_again": float(1 - passed.mean()),
    }


def _line(name: str, rule: Rule, means: dict[str, float]) -> str:
    cells = "".join(f"{means[column]:>15.3f}" for column in COLUMNS)
    return f"{name:<40}{rule.gate or '-':>6}{'yes' if rule.keep_better else '-':>8}{cells}"


if __name__ == "__main__":
    main()
