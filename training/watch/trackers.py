"""TensorBoard, Weights & Biases or trackio, beside log.csv: `log_with` says which."""

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

PROJECT = "realigndiff"
"""What the runs are filed under in the tracker."""


def check(name: str) -> None:
    """That the tracker can be used, before hours are spent; "csv" is none.

    Raises:
        RealignError: its package, or an accelerate that knows it, is missing.
    """
    if name == "csv":
        return
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:  # a folder `wandb` in the working folder is not the package
        raise RealignError(
            f"log_with is {name}, but the package {name} is not installed: pip install {name}, or set log_with to csv."
        )
    if name not in LoggerType.list():
        raise RealignError(f"log_with is {name}, which this accelerate is too old for: pip install -U accelerate.")


def start(accelerator: Accelerator, folder: Path, settings: Mapping[str, Any]) -> None:
    """Begin a run with these settings in the tracker that `accelerator` has, if it has one.

    folder: of the run, which is called the same; what W&B and TensorBoard write lies in it.

    Raises:
        RealignError: the tracker refuses, say because nobody is logged in.
    """
    if not accelerator.log_with:
        return
    about = {"name": folder.name, "config": dict(settings)}
    own = {"wandb": {**about, "dir": str(folder)}, "trackio": {**about, "resume": "allow"}}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        accelerator.init_trackers(PROJECT, init_kwargs=own)
        if accelerator.trackers and accelerator.trackers[0].name == "tensorboard":
            rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
            accelerator.log({"settings": f"| setting | value |\n|---|---|\n{rows}"}, step=0)
    except Exception as error:  # each tracker has its own kinds
        name = str(accelerator.log_with[0])
        raise RealignError(
            f"{name} could not be started ({type(error).__name__}: {error}): mend that, or set log_with to csv."
        ) from error


def log_picture(accelerator: Accelerator, picture: Image.Image, step: int) -> None:
    """Send one picture under the name `samples`; each tracker takes it its own way."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": np.asarray(picture)[None]}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({"samples": [picture]}, step=step)
        else:
            import trackio  # pyright: ignore[reportMissingImports]

            tracker.log({"samples": trackio.Image(picture)}, step=step)
