"""Does re-weighting move attention? The share of a phrase's attention that lies on its own region, before and after.

    python evaluation/attention_mass.py --count 448

Held-out two-object prompts whose coarse image does not pass the gate are sampled twice from the same noise, plainly and
re-weighted. A prompt's share is the mean over its regions, whose masks were found in the coarse image. Differences come
with 95 % confidence intervals (paired bootstrap over the prompts). If attention were spread evenly, the share would be
the fraction of the image that the mask covers. Also written to `attention_mass.json`.
"""

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..core.embedded import DEMO
from ..core.errors import RealignError, exit_on_error
from ..core.files import write_whole
from ..demo.models import SETTINGS, load_models
from ..pipeline.phrase_attention import modulated_steps, phrase_attention, record_attention
from ..pipeline.realign import Models
from ..rewards.gate import passes_gate
from .bootstrap import paired_difference
from .coarse_images import CoarseImages, sample_coarse
from .prompt_sets import prompt_set

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="how many of the 448 held-out prompts (all)")
    parser.add_argument("--seed", type=int, default=0, help="prompt i is sampled from the noise of seed + i (0)")
    parser.add_argument("--out", type=Path, default=Path("out/attention_mass"), help="folder for attention_mass.json")
    options = parser.parse_args()
    with exit_on_error("attention_mass"):
        prompts = [prompt.text for prompt in prompt_set(DEMO, count=options.count)[0]]
        models = load_models()
        results = measure(models, sample_coarse(models, prompts, options.seed, SETTINGS))
        write_whole(options.out / "attention_mass.json", json.dumps(results, indent=2) + "\n")
    print(as_text(results))


def measure(models: Models, coarse: CoarseImages) -> dict[str, Any]:
    """The mean shares and their differences, JSON-ready."""
    chosen = [
        i
        for i, image in enumerate(coarse.images)
        if not passes_gate(image.reward, SETTINGS.gate) and coarse.regions[i].active
    ]
    if len(chosen) < 2:
        raise RealignError(f"Only {len(chosen)} of {len(coarse.images)} images are re-aligned: give a larger count.")
    steps = SETTINGS.sampling.steps
    periods = {"re-weighted steps": modulated_steps(SETTINGS.modulation, steps), "all steps": list(range(steps))}
    shares: dict[str, list[np.ndarray]] = {name: [] for name in periods}
    for start in tqdm(range(0, len(chosen), BATCH), desc="sampled twice", unit=f"{BATCH} prompts"):
        batch = chosen[start : start + BATCH]
        sets = [coarse.regions[i] for i in batch]
        recorded = record_attention(models.sampler, coarse.noise[batch], sets, SETTINGS)
        for name, period in periods.items():
            for phrases in phrase_attention(recorded, sets, models.sampler.latent_shape[1:], period):
                shares[name].append(np.mean([phrase.mass for phrase in phrases], axis=0))
    return {
        "prompts": len(coarse.prompts),
        "n": len(chosen),
        "area": float(np.mean([np.mean([r.area for r in coarse.regions[i].active]) for i in chosen])),
        "rows": [_row(name, len(periods[name]), np.array(values)) for name, values in shares.items()],
    }


def _row(name: str, steps: int, shares: np.ndarray) -> dict[str, Any]:
    """shares: [N, 2], each prompt's share before and after."""
    before, after = shares.T
    delta, low, high = paired_difference(before, after)
    rose = float((after > before).mean())
    means = {"before": float(before.mean()), "after": float(after.mean())}
    return {"name": name, "steps": steps, **means, "delta": delta, "ci": [low, high], "rose": rose}


def as_text(results: dict[str, Any]) -> str:
    """The results as a table for a terminal."""
    lines = [
        f"{results['n']} images of {results['prompts']} held-out prompts are re-aligned; "
        f"a region covers {results['area']:.1%}",
        "share of a phrase's attention on its own region, with the difference's 95 % confidence interval",
        "",
        f"{'':<26}{'plain':>9}{'re-weighted':>13}{'difference':>12}{'':>20}{'rose in':>10}",
    ]
    for row in results["rows"]:
        name = f"{row['name']} ({row['steps']})"
        interval = f"[{row['ci'][0]:+.3f}, {row['ci'][1]:+.3f}]"
        means = f"{row['before']:>9.3f}{row['after']:>13.3f}{row['delta']:>+12.3f}"
        lines.append(f"{name:<26}{means}{interval:>20}{row['rose']:>10.0%}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
