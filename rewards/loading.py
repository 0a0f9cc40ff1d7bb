"""Rewards by name; what several of them need is read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

from ..core.embedded import DEMO, FOLDERS, model_path
from ..core.errors import RealignError
from ..language.likelihood import LanguageModel, OfflineScorer
from ..perception.captioner import Captioner
from ..perception.grounded_sam import GroundedSam
from ..perception.tagger import Tagger
from ..perception.text_encoder import TextEncoder
from .blip import Blip, BlipItcReward, BlipItmReward
from .caption import CaptionReward
from .clip import ClipReward
from .image_reward import ImageReward
from .reward import Reward
from .sam import SamReward

NEEDS = {
    "caption": ("captioner", "text_encoder"),
    "sam": ("tagger", "detector", "segmenter"),  # and text_encoder where no language model is given
    "clip": ("clip",),
    "negclip": ("negclip",),
    "blip-itm": ("blip",),
    "blip-itc": ("blip",),
    "image-reward": ("image_reward",),
}
"""Each reward and the models that it judges with."""
NAMES = tuple(NEEDS)
MODELS = tuple(dict.fromkeys(model for needed in NEEDS.values() for model in needed))


def load_rewards(
    names: Sequence[str],
    places: Mapping[str, str | Path],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    language_model: LanguageModel | None = None,
) -> dict[str, Reward]:
    """The rewards of these names, in their order.

    places: for each model that they need (see `NEEDS`) a path, or `demo` for the embedded one.
    dtype: of the networks, but for what looks for boxes and reads (tagger, detector, segmenter, f_enc): half precision
        changes its scores.
    language_model: answers for the `sam` reward, the offline scorer where it does not; that scorer alone by default.

    Raises:
        RealignError: a name is unknown, a model has no place, or what is there cannot be read.
    """
    asked = tuple(dict.fromkeys(names))
    paths = _paths(asked, places, offline=language_model is None)

    @cache
    def text_encoder() -> TextEncoder:
        return TextEncoder.load(paths["text_encoder"], device)

    @cache
    def blip() -> Blip:
        return Blip.load(paths["blip"], device, dtype)

    def sam() -> SamReward:
        offline = OfflineScorer(text_encoder() if "text_encoder" in paths else None)
        grounded_sam = GroundedSam.load(paths["detector"], paths["segmenter"], device)
        return SamReward(Tagger.load(paths["tagger"], device), grounded_sam, language_model or offline, offline)

    makers: dict[str, Callable[[], Reward]] = {
        "caption": lambda: CaptionReward(Captioner.load(paths["captioner"], device, dtype), text_encoder()),
        "sam": sam,
        "clip": lambda: ClipReward.load(paths["clip"], device, dtype),
        "negclip": lambda: ClipReward.load(
            paths["negclip"], device, dtype, name="negclip", tokenizer=paths.get("clip")
        ),
        "blip-itm": lambda: BlipItmReward(blip()),
        "blip-itc": lambda: BlipItcReward(blip()),
        "image-reward": lambda: ImageReward.load(paths["image_reward"], device, dtype),
    }
    return {name: makers[name]() for name in asked}


def check_names(names: Sequence[str]) -> None:
    """Whether there are rewards of these names.

    Raises:
        RealignError: there is none of one of them.
    """
    for name in names:
        if name not in NEEDS:
            raise RealignError(f"There is no reward '{name}': choose among {', '.join(NAMES)}.")


def _paths(names: Sequence[str], places: Mapping[str, str | Path], offline: bool) -> dict[str, Path]:
    """Where each model lies that has a place; checked before the first is read, which may take minutes."""
    paths = {}
    for model, path in places.items():
        if model not in MODELS:
            raise RealignError(f"'{model}' is no model that a reward needs: they need {', '.join(MODELS)}.")
        if str(path) != DEMO or model in FOLDERS:
            paths[model] = model_path(path, model)
    check_names(names)
    for name in names:
        for model in (*NEEDS[name], *(["text_encoder"] if name == "sam" and offline else [])):
            if model in paths:
                continue
            if model in places:
                raise RealignError(f"The demo world has no {model}: give the path of one, or leave {name} out.")
            embedded = f", or {DEMO} for the embedded one" if model in FOLDERS else ""
            raise RealignError(f"The reward {name} needs to know where {model} is: give its path{embedded}.")
    return paths
