"""Settings of older versions that no longer exist: files that still hold them are read if nothing changes by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ...core.embedded import model_path
from ...core.errors import RealignError

Fits = Callable[[Any, Mapping[str, Any]], bool]
"""Whether a value asks for what is done now, given the other settings."""


def _native_size(value: Any, settings: Mapping[str, Any]) -> bool:
    """Whether the model was trained at this size; true where the model's folder does not say."""
    folder = model_path(settings["model"], "model")
    try:
        unet, vae = (json.loads((folder / part / "config.json").read_bytes()) for part in ("unet", "vae"))
        return value == unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return True


OF_WEIGHTS: dict[str, tuple[Fits, str]] = {
    "alpha": (lambda value, settings: value == settings["rank"], "the alpha of a LoRA is its rank"),
    "last_gradient_step": (
        lambda value, settings: value == settings["rollout_steps"] - 1,
        "gradient enters from first_gradient_step to the last step",
    ),
    "max_grad_norm": (lambda value, settings: value == 1, "the gradient's norm is clipped to 1"),
    "frozen_precision": (
        lambda value, settings: value in ("same", settings["precision"]),
        "all models compute in precision",
    ),
}
"""Each removed setting that weights depend on, whether a value fits, and what is done now."""
REMOVED: dict[str, tuple[Fits, str]] = {
    **OF_WEIGHTS,
    "resolution": (_native_size, "images have the size that the model was trained at"),
    "strict": (lambda value, settings: not value, "broken prompts are reported and skipped"),
    "sample_prompts": (lambda value, settings: not value, "samples show the first four held-out prompts"),
    "max_bad_batches": (lambda value, settings: value == 10, "more than 10 non-finite steps in a row end a run"),
    "dry_run": (lambda value, settings: not value, "give --dry-run on the command line"),
    **dict.fromkeys(("tagger", "detector", "segmenter", "llm", "llm_model"), (lambda *_: True, "never used here")),
}
"""All of them."""


def check(settings: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """That removed settings ask for what is done now.

    Raises:
        RealignError: one does not.
    """
    for name, value in old.items():
        fits, now = REMOVED[name]
        if not fits(value, settings):
            raise RealignError(f"{name} is {value!r}, but this is no longer a setting: {now}; leave it out.")


def other_weights(before: Mapping[str, Any]) -> str:
    """What a run did by a setting that was removed, if its weights follow from it; otherwise nothing."""
    for name, (fits, now) in OF_WEIGHTS.items():
        if name in before and not fits(before[name], before):
            return f"whose {name} was {before[name]}, and now {now}"
    return ""
