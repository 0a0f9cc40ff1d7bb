"""Train all demo models from scratch.

    python demo/train/all.py --out out/demo-models                 # everything; a GPU is used where there is one
    python demo/train/all.py --out out/demo-models --only tagger   # one model; those that it starts from must exist
    python demo/train/all.py --out out/smoke --steps 20 --scenes 1000    # does every script still run?

`make demo-models` runs the first line, then `demo/train/pack.py`, which writes the shipped fp16 weights.
"""

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "standalone.py"))["package_of"](__file__)

import argparse
import importlib
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import torch

from . import data, vae

SCENES = 40_000
MODELS = ("vae", "text_to_image", "captioner", "text_tower", "tagger", "grounding", "segmenter", "clip", "matching")
LAST = ("clip", "matching")
"""Models that start from the captioner's ViT; `matching` completes the model of `text_tower`."""


def train_one(name: str, out: Path, device: str, steps: int | None, count: int) -> None:
    """Train the model `name` and save it under `out`.

    All but the VAE and the segmenter need the VAE in `out`; those in `LAST` also the captioner; `matching` the text
    tower.
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // (1 if name == "vae" else len(MODELS))))
    module = importlib.import_module(f".{name}", __package__)
    masked = name == "segmenter"
    scenes = data.draw_scenes(min(count, 8_000), seed=2, masks=True) if masked else load_scenes(out, count)
    if name not in ("vae", "text_to_image", "segmenter"):
        scenes = vae.with_reconstructions(out, scenes, min(count, 8_000), device)
    module.train(scenes, out, device, replace(module.RECIPE, steps=steps) if steps else module.RECIPE)


def load_scenes(out: Path, count: int) -> data.Scenes:
    """The training scenes, rendered once and kept beside the models."""
    kept = out / f"scenes-{count}.pt"
    if not kept.exists():
        out.mkdir(parents=True, exist_ok=True)
        scenes = data.draw_scenes(count, seed=1)
        things = [[(t.color, t.shape, t.x, t.y, t.r) for t in scene] for scene in scenes.things]
        torch.save((scenes.images, things), kept)
    images, things = torch.load(kept, weights_only=True)
    return data.Scenes(images, [tuple(data.world.Thing(*t) for t in scene) for scene in things])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained models")
    parser.add_argument("--only", choices=MODELS, action="append", help="train only this model (repeatable)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--steps", type=int, help="training steps of every model, in place of its recipe's")
    parser.add_argument("--scenes", type=int, default=SCENES, help=f"number of training scenes ({SCENES})")
    options = parser.parse_args()
    wanted = [name for name in MODELS if not options.only or name in options.only]
    jobs = [(name, options.out, options.device, options.steps, options.scenes) for name in wanted]
    if "vae" in wanted:
        train_one(*jobs.pop(0))
    workers = len(MODELS) if options.device != "cpu" else os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        for last in (False, True):
            pool.starmap(train_one, [job for job in jobs if (job[0] in LAST) == last], chunksize=1)


if __name__ == "__main__":
    main()
