"""Which metrics a run computes, and with which models."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..cli import models
from ..cli.hardware import device_and_dtype
from ..cli.models import option_name
from ..core.embedded import DEMO, FOLDERS, model_path
from ..core.errors import RealignError
from ..core.pictures import find_pictures
from ..demo.judge import Verdict
from ..demo.world import parse as pairs_of
from ..demo.world import scene_of
from ..rewards.loading import load_rewards
from ..rewards.registry import REWARDS, all_models
from . import frechet
from .images import image_file, missing_images, write_image
from .prompt_sets import Numbered
from .scores import Item, Metric, Scorer, item_of, judge_pictures, read_scores

FID, KID, JUDGE, FEATURES = "fid", "kid", "judge", "features"


def metric_names() -> tuple[str, ...]:
    """The metrics that a run may ask for."""
    return (FID, KID, *REWARDS, JUDGE)


def reward_models() -> dict[str, str]:
    """The models that only rewards use, and what each is."""
    return {name: what for name, what in all_models().items() if name not in models.MODELS}


def chosen_metrics(options: argparse.Namespace, prompts: Sequence[Numbered]) -> list[Metric]:
    """The metrics of single images: those of `--metric`, else all whose models are given."""
    given = {name: path for name in (*models.MODELS, *reward_models()) if (path := getattr(options, name)) is not None}
    offline = options.llm is None
    wanted = options.metric or [
        *(name for name in REWARDS if all(model in given for model in REWARDS[name].needed(offline=offline))),
        *([JUDGE] if options.model == DEMO and any(pairs_of(p.text) for p in prompts) else []),
    ]
    chosen = [reward_metric(name, given, options) for name in REWARDS if name in wanted]
    return chosen + [Metric(JUDGE, Verdict._fields, {}, lambda: judge_pictures)] * (JUDGE in wanted)


def reward_metric(name: str, given: Mapping[str, str | Path], options: argparse.Namespace) -> Metric:
    """A reward with the given models."""
    needed = list(REWARDS[name].needed(offline=options.llm is None))
    for model in needed:
        if model not in given or (given[model] == DEMO and model not in FOLDERS):
            raise RealignError(f"The metric {name} needs {option_name(model)} PATH.")
    needed += [model for model in REWARDS[name].optional_models if model in given]
    paths = {model: given[model] for model in needed}
    files = {model: model_path(path, model) for model, path in paths.items()}
    stamps = {**models.stamps(files), **models.hardware_stamp(options)}
    if REWARDS[name].asks_language_model:
        stamps |= models.llm_stamp(options)

    def load() -> Scorer:
        asks = REWARDS[name].asks_language_model and options.llm is not None
        language_model = models.chosen_language_model(options) if asks else None
        reward = load_rewards([name], paths, *device_and_dtype(options), language_model=language_model)[name]

        def score(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
            images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).float() / 255
            with torch.inference_mode():
                return reward(images, prompts).float().cpu().numpy()[:, None]

        return score

    return Metric(name, (name,), stamps, load)


def features(options: argparse.Namespace) -> Metric:
    """An image's features for FID and KID, as a metric without columns."""
    path = model_path(options.fid_features, "clip")
    stamps = {"fid_features": models.stamp(path, "fid_features"), "device": models.hardware_stamp(options)["device"]}
    device, _ = device_and_dtype(options)
    return Metric(FEATURES, (), stamps, partial(frechet.load_features, path, device))


def reference_images(options: argparse.Namespace, prompts: Sequence[Numbered], notes: list[str]) -> list[Item]:
    """The real images for FID and KID; empty if neither is wanted. Files that are left out are added to the notes."""
    asked = {FID, KID} & set(options.metric or ())
    given = options.reference is not None and options.fid_features is not None
    if not asked and (options.metric or not given):
        return []
    if not given:
        raise RealignError("fid and kid need --reference FOLDER of real images and --fid-features PATH.")
    if find_spec("torchmetrics") is None:
        raise RealignError(
            "fid and kid need torchmetrics: pip install torchmetrics, or name the metrics with --metric."
        )
    features(options)  # raises if the network is missing
    if options.reference == DEMO:
        return render_reference(options, prompts, asked)
    folder = Path(str(options.reference))
    files, left_out = find_pictures(folder)
    if left_out:
        notes.append(left_out)
    if not files:
        raise RealignError(f"There are no images in '{folder}': give --reference the folder of the real images.")
    return [item_of(file) for file in files]


def render_reference(options: argparse.Namespace, prompts: Sequence[Numbered], asked: Collection[str]) -> list[Item]:
    """A scene of each prompt, rendered by the demo world."""
    if not all(1 <= len(pairs_of(prompt.text)) <= 3 for prompt in prompts):
        if asked:
            raise RealignError("Not every prompt names one to three coloured shapes: give --reference FOLDER.")
        return []
    folder = options.out / "reference"
    for prompt in missing_images(folder, prompts, options.seed):
        seed = options.seed + prompt.index
        scene = scene_of(pairs_of(prompt.text), Random(seed))
        write_image(image_file(folder, prompt.index), torch.from_numpy(scene.image) / 255, prompt.text, seed)
    return [item_of(image_file(folder, prompt.index)) for prompt in prompts]


def distances(
    options: argparse.Namespace, items: Mapping[str, Sequence[Item]], real: Sequence[Item], notes: list[str]
) -> dict[str, dict[str, Any]]:
    """FID and KID of each method. The reason why one is left out is added to the notes."""
    if not real:
        return {}
    wanted = [column for column in (FID, KID) if not options.metric or column in options.metric]
    values = read_scores(features(options), {"": real, **items}, options.out / "scores")
    _, truth = next(values)
    return {name: {column: distance(column, truth, drawn, notes) for column in wanted} for name, drawn in values}


def distance(column: str, real: np.ndarray, drawn: np.ndarray, notes: list[str]) -> dict[str, Any]:
    """FID or KID of features [N, D], [M, D], as a cell of the tables."""
    try:
        if column == FID:
            return {"value": frechet.fid(real, drawn), "n": len(drawn)}
        mean, deviation = frechet.kid(real, drawn)
    except RealignError as error:
        if str(error) not in notes:
            notes.append(str(error))
        return {"value": None, "n": len(drawn)}
    return {"value": mean, "std": deviation, "n": len(drawn)}
