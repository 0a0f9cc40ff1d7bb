"""Settings of older versions that no longer exist: files that still hold them are read if nothing changes by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...core.embedded import model_path
from ...core.errors import RealignError


class Removed(NamedTuple):
    """A setting that was removed."""

    fits: Callable[[Any, Mapping[str, Any]], bool]
    """Whether a value asks for what is done now, given the other settings."""
    now: str
    """What is done now."""
    changes_weights: bool = False
    """Whether a run that was begun with another value must not go on."""


def _always(fixed: Any) -> Callable[[Any, Mapping[str, Any]], bool]:
    return lambda value, settings: value == fixed


def _native_size(value: Any, settings: Mapping[str, Any]) -> bool:
    """Whether the model was trained at this size; true where the model's folder does not say."""
    folder = model_path(settings["model"], "model")
    try:
        unet, vae = (json.loads((folder / part / "config.json").read_bytes()) for part in ("unet", "vae"))
        return value == unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return True


_NEVER_ACTED = Removed(lambda value, settings: True, "only arl_train.py has it, for the reward sam")
REMOVED = {
    "alpha": Removed(
        lambda value, settings: value == settings["rank"], "the alpha of a LoRA is its rank", changes_weights=True
    ),
    "last_gradient_step": Removed(
        lambda value, settings: value == settings["rollout_steps"] - 1,
        "gradient enters from first_gradient_step to the last step",
        changes_weights=True,
    ),
    "max_grad_norm": Removed(_always(1), "the gradient's norm is clipped to 1", changes_weights=True),
    "frozen_precision": Removed(
        lambda value, settings: value in ("same", settings["precision"]),
        "all models compute in precision",
        changes_weights=True,
    ),
    "resolution": Removed(_native_size, "images have the size that the model was trained at"),
    "strict": Removed(_always(False), "broken prompts are reported and skipped"),
    "sample_prompts": Removed(lambda value, settings: not value, "samples show the first four held-out prompts"),
    "max_bad_batches": Removed(_always(10), "a run ends after more than 10 non-finite steps in a row"),
    "dry_run": Removed(_always(False), "give --dry-run on the command line"),
    **dict.fromkeys(("tagger", "detector", "segmenter", "llm", "llm_model"), _NEVER_ACTED),
}


def check(settings: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """That removed settings ask for what is done now.

    Raises:
        RealignError: one does not.
    """
    for name, value in old.items():
        if not REMOVED[name].fits(value, settings):
            raise RealignError(
                f"{name} is {value!r}, but this is no longer a setting: {REMOVED[name].now}; leave it out."
            )


def other_weights(before: Mapping[str, Any]) -> str:
    """What a run did by a setting that was removed, if its weights follow from it; otherwise nothing."""
    for name, setting in REMOVED.items():
        if setting.changes_weights and name in before and not setting.fits(before[name], before):
            return f"whose {name} was {before[name]}, and now {setting.now}"
    return ""
