"""TensorBoard, Weights & Biases or trackio beside log.csv, as the setting `log_with` selects."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import LoggerType
from PIL import Image

from ...core.errors import RealignError

PROJECT = "realigndiff"  # the name of the project in the tracker


def check(name: str) -> None:
    """Check that the tracker can be used; "csv" needs none."""
    if name == "csv":
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # a folder `wandb` in the working folder is not the package
        raise RealignError(
            f"log_with is {name}, but the package {name} is not installed: pip install {name}, or set log_with to csv."
        )
    if name not in LoggerType.list():
        raise RealignError(f"log_with is {name}, which this accelerate is too old for: pip install -U accelerate.")


def start(accelerator: Accelerator, folder: Path, settings: Mapping[str, Any]) -> None:
    """Begin a run in the tracker of `accelerator`, if it has one, and store the settings there.

    folder: the run's output, after which it is named; W&B and TensorBoard write into it.
    """
    if not accelerator.log_with:
        return
    options = {"name": folder.name, "config": dict(settings)}
    per_tracker = {"wandb": {**options, "dir": str(folder)}, "trackio": {**options, "resume": "allow"}}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        accelerator.init_trackers(PROJECT, init_kwargs=per_tracker)
        if accelerator.trackers and accelerator.trackers[0].name == "tensorboard":
            rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
            accelerator.log({"settings": f"| setting | value |\n|---|---|\n{rows}"}, step=0)
    except Exception as error:  # each tracker raises other kinds
        name = str(accelerator.log_with[0])
        raise RealignError(
            f"{name} could not be started ({type(error).__name__}: {error}): mend that, or set log_with to csv."
        ) from error


def log_picture(accelerator: Accelerator, picture: Image.Image, step: int) -> None:
    """Send one picture under the name `samples`."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": np.asarray(picture)[None]}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({"samples": [picture]}, step=step)
        else:
            import trackio  # pyright: ignore[reportMissingImports]

            tracker.log({"samples": trackio.Image(picture)}, step=step)
