"""Settings of older versions that no longer exist: files that still hold them are read if nothing changes by it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...core.embedded import model_path
from ...core.errors import RealignError

OF_WEIGHTS = {
    "last_gradient_step": (-1, "gradient enters from first_gradient_step to the last step"),
    "frozen_precision": ("same", "all models compute in precision"),
}
"""Removed settings that weights depend on: the value that asks for what is done now, and what that is."""
REMOVED = {
    **OF_WEIGHTS,
    "resolution": (0, "images have the size that the model was trained at"),
    "strict": (False, "broken prompts are reported and skipped"),
    "sample_prompts": ("", "samples show the first four held-out prompts"),
    "max_bad_batches": (10, "more than 10 non-finite steps in a row end a run"),
    "dry_run": (False, "give --dry-run on the command line"),
    **dict.fromkeys(("tagger", "detector", "segmenter", "llm", "llm_model"), ("", "")),
}
"""All of them. Those of the reward sam were never used by `refl_train.py`, so that any value is fine."""


def check(settings: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """Raise a RealignError where a removed setting asks for something that is not done now."""
    for name, value in old.items():
        if not _fits(name, value, settings):
            now = REMOVED[name][1]
            raise RealignError(f"{name} is {value!r}, but this is no longer a setting: {now}; leave it out.")


def other_weights(before: Mapping[str, Any]) -> str:
    """What a run did by a setting that was removed, if its weights follow from it; otherwise nothing."""
    for name, (_, now) in OF_WEIGHTS.items():
        if name in before and not _fits(name, before[name], before):
            return f"whose {name} was {before[name]}, and now {now}"
    return ""


def _fits(name: str, value: Any, settings: Mapping[str, Any]) -> bool:
    """Whether a removed setting asks for what is done now, given the other settings."""
    if value in (REMOVED[name][0], ()) or not REMOVED[name][1]:
        return True
    if name == "resolution":
        return _trained_size(settings["model"]) in (value, None)
    now = {"last_gradient_step": settings["rollout_steps"] - 1, "frozen_precision": settings["precision"]}
    return name in now and value == now[name]


def _trained_size(model: str) -> int | None:
    """The size of the images that a model was trained on, if its folder says so."""
    folder = model_path(model, "model")
    try:
        unet, vae = (json.loads((folder / part / "config.json").read_bytes()) for part in ("unet", "vae"))
        return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return None
