"""What fine-tuning did to images of held-out prompts: the same noise sampled before and after.

    make refl-demo
    python evaluation/coarse.py out/refl-demo/best.safetensors …

With the files of several training seeds, their mean is compared. Differences come with 95 % confidence intervals
(paired bootstrap over the prompts). `caption_reward` is R_cap of freely generated captions; the other columns are the
judge's, which has no trained parts. Also written to `coarse.json`.
"""

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cli.models import load_sampler
from ..core.embedded import DEMO, embedded
from ..core.errors import exit_on_error
from ..core.files import write_whole
from ..demo.models import SETTINGS, load_models
from ..pipeline.realign import Models
from .bootstrap import paired_difference
from .coarse_images import sample_coarse
from .methods import BASE
from .prompt_sets import prompt_set
from .scores import score_images

COLUMNS = ("caption_reward", "both_right", "bind", "exact")
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="weights that training runs wrote")
    parser.add_argument("--count", type=int, help="how many of the 448 held-out prompts (all)")
    parser.add_argument("--seed", type=int, default=0, help="prompt i is sampled from the noise of seed + i (0)")
    parser.add_argument("--out", type=Path, default=Path("out/coarse"), help="folder for coarse.json")
    options = parser.parse_args()
    with exit_on_error("coarse"):
        prompts = [prompt.text for prompt in prompt_set(DEMO, count=options.count)[0]]
        models = load_models()
        samplers = {str(file): load_sampler(embedded("model"), weights=file) for file in options.files}
        trained = {name: replace(models, sampler=sampler) for name, sampler in samplers.items()}
        results = compare({BASE: models, **trained}, prompts, options.seed)
        write_whole(options.out / "coarse.json", json.dumps(results, indent=2) + "\n")
    print(as_text(results))


def compare(candidates: dict[str, Models], prompts: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """The means of all candidates, and the difference of the later ones' mean to the first one, JSON-ready."""
    scores = {}
    for name, models in candidates.items():
        coarse = sample_coarse(models, prompts, seed, SETTINGS, with_regions=False, batch=BATCH)
        scores[name] = score_images(coarse.images, prompts)
    base, *trained = scores.values()
    mean = {column: np.mean([columns[column] for columns in trained], axis=0) for column in COLUMNS}
    return {
        "n": len(prompts),
        "rows": [{"name": name, **{c: float(columns[c].mean()) for c in COLUMNS}} for name, columns in scores.items()],
        "differences": [
            {"column": column, "delta": delta, "ci": [low, high]}
            for column in COLUMNS
            for delta, low, high in [paired_difference(base[column], mean[column])]
        ],
    }


def as_text(results: dict[str, Any]) -> str:
    """The results as a table for a terminal."""
    rows = results["rows"]
    width = max(len(row["name"]) for row in rows) + 2
    lines = [f"{results['n']} held-out prompts", "", " " * width + "".join(f"{column:>16}" for column in COLUMNS)]
    lines += [f"{row['name']:<{width}}" + "".join(f"{row[c]:>16.3f}" for c in COLUMNS) for row in rows]
    trained = rows[1]["name"] if len(rows) == 2 else f"mean of {len(rows) - 1} files"
    lines += ["", f"{trained} less {BASE}, with 95 % confidence intervals"]
    for d in results["differences"]:
        lines.append(f"{d['column']:<{width}}{d['delta']:+.3f}  [{d['ci'][0]:+.3f}, {d['ci'][1]:+.3f}]")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
