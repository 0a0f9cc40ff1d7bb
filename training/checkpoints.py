"""Checkpoints that are whole or not there, and going on from the last of them."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from ..core.errors import RealignError

logger = logging.getLogger(__name__)
PATTERN = "step-*.pt"


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
    for old in sorted(folder.glob(PATTERN))[:-keep]:
        old.unlink()
    return file


def last(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be read; one that cannot is told and passed over."""
    for file in sorted(folder.glob(PATTERN), reverse=True):
        try:
            return file, torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch and zip raise many kinds for a file that is cut off
            logger.warning("The checkpoint %s cannot be read (%s); an earlier one is taken.", file.name, error)
    return None
