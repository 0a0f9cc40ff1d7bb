"""Which metrics a run asks for, and the models that they judge with."""

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

from ..cli import hardware, models
from ..cli.models import option
from ..core.embedded import DEMO, FOLDERS, model_path
from ..core.errors import RealignError
from ..core.pictures import pictures_in
from ..demo.world import parse as pairs_of
from ..demo.world import scene_of
from ..rewards.loading import load_rewards
from ..rewards.registry import REWARDS, all_models
from ..rewards.reward import Reward
from . import frechet
from .images import missing, place, write_image
from .prompt_sets import Numbered
from .scores import Item, Metric, item, measured, of_judge, of_reward

FID, KID, JUDGE, FEATURES = "fid", "kid", "judge", "features"


def metric_names() -> tuple[str, ...]:
    """The metrics that a run may ask for."""
    return (FID, KID, *REWARDS, JUDGE)


def reward_models() -> dict[str, str]:
    """The models that only rewards use, and what each is."""
    return {name: what for name, what in all_models().items() if name not in models.MODELS}


def judge_places(options: argparse.Namespace) -> dict[str, str | Path]:
    """Where the models lie that judge."""
    return {name: path for name in (*models.MODELS, *reward_models()) if (path := getattr(options, name)) is not None}


def needs(metric: str, options: argparse.Namespace) -> list[str]:
    """The models that a reward judges with."""
    return list(REWARDS[metric].needed(offline=options.llm is None))


def metrics_of(options: argparse.Namespace, prompts: Sequence[Numbered]) -> list[Metric]:
    """The metrics of single images: those that are asked for, else all whose models are given.

    Raises:
        RealignError: a model is not there.
    """
    there = judge_places(options)
    wanted = options.metric or [
        *(name for name in REWARDS if all(model in there for model in needs(name, options))),
        *([JUDGE] if options.model == DEMO and any(pairs_of(p.text) for p in prompts) else []),
    ]
    chosen = [reward_metric(name, there, options) for name in REWARDS if name in wanted]
    return [*chosen, *([of_judge()] if JUDGE in wanted else [])]


def reward_metric(name: str, there: Mapping[str, str | Path], options: argparse.Namespace) -> Metric:
    """A reward, with the models that are there."""
    needed = needs(name, options)
    for model in needed:
        if model not in there or (there[model] == DEMO and model not in FOLDERS):
            raise RealignError(f"The metric {name} needs {option(model)} PATH.")
    needed += [model for model in REWARDS[name].optional_models if model in there]
    places = {model: there[model] for model in needed}
    files = {model: model_path(path, model) for model, path in places.items()}
    stamps = {**models.stamps(files), **models.hardware_stamp(options)}
    if REWARDS[name].asks_language_model:
        stamps |= models.llm_stamp(options)

    def load() -> Reward:
        device, dtype = hardware.chosen(options)
        asks = REWARDS[name].asks_language_model and options.llm is not None
        language_model = models.language_model(options, device, dtype) if asks else None
        return load_rewards([name], places, device, dtype, language_model=language_model)[name]

    return of_reward(name, stamps, load)


def features(options: argparse.Namespace) -> Metric:
    """The features of an image as a metric without columns."""
    path = model_path(options.fid_features, "clip")
    stamps = {"fid_features": models.stamp(path, "fid_features"), "device": models.hardware_stamp(options)["device"]}
    device, _ = hardware.chosen(options)
    return Metric(FEATURES, (), stamps, partial(frechet.load_features, path, device))


def reference(options: argparse.Namespace, prompts: Sequence[Numbered], notes: list[str]) -> list[Item]:
    """The real images; none where the distance to them is not asked for. What is left out is added to the notes.

    Raises:
        RealignError: it is asked for, and there are none, or no features.
    """
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
    features(options)  # tells when the network is not there
    if options.reference == DEMO:
        return rendered(options, prompts, asked)
    folder = Path(options.reference)
    files, left_out = pictures_in(folder)
    if left_out:
        notes.append(left_out)
    if not files:
        raise RealignError(f"There are no images in '{folder}': give --reference the folder of the real images.")
    return [item(file) for file in files]


def rendered(options: argparse.Namespace, prompts: Sequence[Numbered], asked: Collection[str]) -> list[Item]:
    """A scene of each prompt, as the demo world renders it.

    Raises:
        RealignError: fid or kid is asked for, and not every prompt has one.
    """
    if not all(1 <= len(pairs_of(prompt.text)) <= 3 for prompt in prompts):
        if asked:
            raise RealignError("Not every prompt names one to three coloured shapes: give --reference FOLDER.")
        return []
    folder = options.out / "reference"
    for prompt in missing(folder, prompts, options.seed):
        seed = options.seed + prompt.index
        scene = scene_of(pairs_of(prompt.text), Random(seed))
        write_image(place(folder, prompt.index), torch.from_numpy(scene.image) / 255, prompt.text, seed)
    return [item(place(folder, prompt.index)) for prompt in prompts]


def distances(
    options: argparse.Namespace, seen: Mapping[str, Sequence[Item]], real: Sequence[Item], notes: list[str]
) -> dict[str, dict[str, Any]]:
    """FID and KID of each method; why one is left out is added to the notes."""
    if not real:
        return {}
    wanted = [column for column in (FID, KID) if not options.metric or column in options.metric]
    found = measured(features(options), {"": real, **seen}, options.out / "scores")
    _, truth = next(found)
    return {name: {column: distance(column, truth, drawn, notes) for column in wanted} for name, drawn in found}


def distance(column: str, real: np.ndarray, drawn: np.ndarray, notes: list[str]) -> dict[str, Any]:
    """FID or KID of features [N, D], [M, D] for the tables."""
    try:
        if column == FID:
            return {"value": frechet.fid(real, drawn), "n": len(drawn)}
        mean, deviation = frechet.kid(real, drawn)
    except RealignError as error:
        if str(error) not in notes:
            notes.append(str(error))
        return {"value": None, "n": len(drawn)}
    return {"value": mean, "std": deviation, "n": len(drawn)}
