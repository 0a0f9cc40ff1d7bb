"""What fine-tuning did to images of prompts that no setting was chosen on: the same noise before and after.

    make refl-demo
    python evaluation/coarse.py out/refl-demo/best.safetensors …

Give the files of several training seeds to have their mean. Differences come with 95 % confidence intervals (paired
bootstrap over the prompts, of the mean over the files); `caption_reward` is the true R_cap of freely generated
captions, the other columns are the judge's, which has no trained parts. Written to `coarse.json` too.
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
from tqdm import tqdm

from ..cli.models import load_sampler
from ..core.embedded import DEMO, embedded
from ..core.errors import RealignError
from ..demo.models import SETTINGS, load_models
from ..pipeline.realign import Models, caption_and_score
from .bootstrap import paired_difference
from .methods import BASE
from .prompt_sets import prompt_set
from .scores import of_looks

COLUMNS = ("caption_reward", "both_right", "bind", "exact")
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="what training runs wrote")
    parser.add_argument("--count", type=int, help="held-out prompts (all 448 by default)")
    parser.add_argument("--seed", type=int, default=0, help="prompt i is drawn from the noise of seed + i")
    parser.add_argument("--out", type=Path, default=Path("out/coarse"), help="folder for coarse.json")
    options = parser.parse_args()
    try:
        prompts = [prompt.text for prompt in prompt_set(DEMO, count=options.count)[0]]
        models = load_models()
        trained = {str(file): with_weights(models, file) for file in options.files}
        told = compare({BASE: models, **trained}, prompts, options.seed)
    except RealignError as error:
        sys.exit(f"coarse: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "coarse.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(as_text(told))


def with_weights(models: Models, file: Path) -> Models:
    """The demo models, but for the UNet, which has the weights that a training run wrote to `file`."""
    return replace(models, sampler=load_sampler(embedded("model"), weights=file))


def compare(ways: dict[str, Models], prompts: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Means of each way, and the difference of the trained ones' mean to the first way, as JSON-ready values."""
    scores = {name: plain(models, prompts, seed) for name, models in ways.items()}
    base, *trained = scores.values()
    mean = {column: np.mean([own[column] for own in trained], axis=0) for column in COLUMNS}
    return {
        "n": len(prompts),
        "rows": [{"name": name, **{c: float(own[c].mean()) for c in COLUMNS}} for name, own in scores.items()],
        "differences": [
            {"column": column, "delta": delta, "ci": [low, high]}
            for column in COLUMNS
            for delta, low, high in [paired_difference(base[column], mean[column])]
        ],
    }


def plain(models: Models, prompts: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Draw each prompt once, without re-alignment, and judge."""
    looks = []
    for start in tqdm(range(0, len(prompts), BATCH), desc="prompts", unit=f"{BATCH} prompts"):
        texts = prompts[start : start + BATCH]
        noise = models.sampler.noise([seed + start + i for i in range(len(texts))])
        looks += caption_and_score(models, models.sampler.sample(texts, noise, SETTINGS.sampling), texts)
    return of_looks(looks, prompts)


def as_text(told: dict[str, Any]) -> str:
    """The comparison for reading."""
    width = max(len(row["name"]) for row in told["rows"]) + 2
    lines = [f"{told['n']} held-out prompts", "", " " * width + "".join(f"{column:>16}" for column in COLUMNS)]
    lines += [f"{row['name']:<{width}}" + "".join(f"{row[c]:>16.3f}" for c in COLUMNS) for row in told["rows"]]
    lines += ["", f"{_of(told['rows'][1:])} less {BASE}, with 95 % confidence intervals"]
    for d in told["differences"]:
        lines.append(f"{d['column']:<{width}}{d['delta']:+.3f}  [{d['ci'][0]:+.3f}, {d['ci'][1]:+.3f}]")
    return "\n".join(lines)


def _of(rows: Sequence[dict[str, Any]]) -> str:
    return rows[0]["name"] if len(rows) == 1 else f"mean of {len(rows)} files"


if __name__ == "__main__":
    main()
