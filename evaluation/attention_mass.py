"""Does re-weighting move attention? The share of a phrase's attention that lies on its own region, before and after.

    python evaluation/attention_mass.py --count 448

Of held-out two-object prompts, the images that the gate does not protect are sampled twice from their own noise,
plainly and re-weighted. A prompt's share is the mean over its regions, whose masks were found in the coarse image;
differences come with 95 % confidence intervals (paired bootstrap over the prompts). Spread evenly, attention would lie
on a region by the share of the image that its mask covers. Written to `attention_mass.json` too.
"""

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..core.errors import RealignError
from ..demo.models import SETTINGS, load_models
from ..demo.prompts import two_object_prompts
from ..pipeline.phrase_attention import modulated_steps, phrase_attention, record_attention
from ..pipeline.realign import Models
from ..rewards.gate import passes_gate
from .bootstrap import paired_difference
from .tune import Coarse, draw

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="held-out prompts (all 448 by default)")
    parser.add_argument("--seed", type=int, default=0, help="prompt i is drawn from the noise of seed + i")
    parser.add_argument("--out", type=Path, default=Path("out/attention_mass"), help="folder for attention_mass.json")
    options = parser.parse_args()
    try:
        models = load_models()
        told = measure(models, draw(models, two_object_prompts(held_out=True, count=options.count), options.seed))
    except RealignError as error:
        sys.exit(f"attention_mass: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "attention_mass.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(as_text(told))


def measure(models: Models, coarse: Coarse) -> dict[str, Any]:
    """The means and their differences, as JSON-ready values.

    Raises:
        RealignError: the gate leaves fewer than two images to compare.
    """
    failed = [i for i, image in enumerate(coarse.looks) if not passes_gate(image.reward, SETTINGS.gate)]
    mend = [i for i in failed if coarse.regions[i].active]
    if len(mend) < 2:
        raise RealignError(f"Only {len(mend)} of {len(coarse.looks)} images are re-aligned: give a larger count.")
    steps = SETTINGS.sampling.steps
    periods = {"re-weighted steps": modulated_steps(SETTINGS.modulation, steps), "all steps": list(range(steps))}
    masses: dict[str, list[np.ndarray]] = {name: [] for name in periods}
    for start in tqdm(range(0, len(mend), BATCH), desc="sampled twice", unit=f"{BATCH} prompts"):
        part = mend[start : start + BATCH]
        sets = [coarse.regions[i] for i in part]
        recorded = record_attention(models.sampler, coarse.noise[part], sets, SETTINGS)
        for name, own in periods.items():
            for phrases in phrase_attention(recorded, sets, models.sampler.latent_shape[1:], own):
                masses[name].append(np.mean([phrase.mass for phrase in phrases], axis=0))
    return {
        "prompts": len(coarse.prompts),
        "n": len(mend),
        "area": float(np.mean([np.mean([r.area for r in coarse.regions[i].active]) for i in mend])),
        "rows": [_row(name, len(periods[name]), np.array(own)) for name, own in masses.items()],
    }


def _row(name: str, steps: int, mass: np.ndarray) -> dict[str, Any]:
    """mass: [N, 2], each prompt's share before and after."""
    before, after = mass.T
    delta, low, high = paired_difference(before, after)
    rose = float((after > before).mean())
    means = {"before": float(before.mean()), "after": float(after.mean())}
    return {"name": name, "steps": steps, **means, "delta": delta, "ci": [low, high], "rose": rose}


def as_text(told: dict[str, Any]) -> str:
    """The comparison for reading."""
    lines = [
        f"{told['n']} images of {told['prompts']} held-out prompts are re-aligned; a region covers {told['area']:.1%}",
        "share of a phrase's attention on its own region, with the difference's 95 % confidence interval",
        "",
        f"{'':<26}{'plain':>9}{'re-weighted':>13}{'difference':>12}{'':>20}{'rose in':>10}",
    ]
    for row in told["rows"]:
        name = f"{row['name']} ({row['steps']})"
        interval = f"[{row['ci'][0]:+.3f}, {row['ci'][1]:+.3f}]"
        lines.append(
            f"{name:<26}{row['before']:>9.3f}{row['after']:>13.3f}{row['delta']:>+12.3f}{interval:>20}{row['rose']:>10.0%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
