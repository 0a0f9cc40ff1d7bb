"""Checkpoints that are whole or not there, and going on from the last of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.errors import RealignError
from .arl_settings import ranked

logger = logging.getLogger(__name__)
PATTERN = "step-*.pt"
SAME = ("model", "train", "rank", "alpha", "targets", "optimizer_8bit", "seed")
"""The settings that a run which goes on must have as before."""


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `state` as the checkpoint of `step`; the newest `keep` stay.

    It is written beside its place and put there when complete, so that a killed process or a full disk costs nothing
    that was saved before.

    Raises:
        RealignError: the disk is full or cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"step-{step:08d}.pt"
    part = file.with_suffix(".part")
    try:
        with part.open("wb") as opened:
            torch.save({"step": step, **state}, opened)
            opened.flush()
            os.fsync(opened.fileno())
        part.replace(file)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise RealignError(
            f"The checkpoint of step {step} could not be written to '{folder}' ({error}): make room there and start "
            "again; the run goes on from the checkpoint before."
        ) from error
    kept = sorted(folder.glob(PATTERN))
    later = kept.index(file) + 1
    for old in (*kept[: max(0, later - keep)], *kept[later:]):  # what is later is of a run that began anew here
        old.unlink()
    return file


def found(resume: str, output: Path) -> list[Path]:
    """The checkpoints that the setting `resume` means, the newest first; none where the run is to begin anew.

    Raises:
        RealignError: it names a place where there is none.
    """
    if resume == "never":
        return []
    if resume == "auto":
        return sorted((output / "checkpoints").glob(PATTERN), reverse=True)
    place = Path(resume)
    if place.is_file():
        return [place]
    files = sorted((*place.glob(PATTERN), *place.glob(f"checkpoints/{PATTERN}")), reverse=True)
    if not files:
        raise RealignError(f"resume is '{resume}', where there is no checkpoint: give a run's folder, auto or never.")
    return files


def load(files: Sequence[Path]) -> tuple[Path, dict[str, Any]]:
    """The first checkpoint that can be read; one that cannot is told and passed over.

    Raises:
        RealignError: none can.
    """
    for file in files:
        try:
            return file, torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch and zip raise many kinds for a file that is cut off
            logger.warning("The checkpoint %s cannot be read (%s); an earlier one is taken.", file.name, error)
    raise RealignError(f"No checkpoint in '{files[0].parent}' can be read: set resume to never to begin anew.")


def check_same(file: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """That a checkpoint's settings are those of this run where its weights and its lots depend on them.

    Raises:
        RealignError: one of `SAME` is not, or the checkpoint is of the other training script.
    """
    if before and ranked(before) != ranked(now):
        script = "arl_train.py" if ranked(before) else "refl_train.py"
        raise RealignError(f"The checkpoint {file} is of {script}: give another output, or set resume to never.")
    for name in SAME:
        if before.get(name, now[name]) != now[name]:
            raise RealignError(
                f"The checkpoint {file} is of a run whose {name} was {before[name]}, and now it is {now[name]}: set it "
                "back, give another output, or set resume to never."
            )
