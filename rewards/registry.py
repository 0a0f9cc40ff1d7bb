"""The rewards by name. Every list of rewards, and of the models that they need, is made from this one.

To add a reward, write a subclass of `Reward` in a file of its own, with a function that loads it, and add an entry to
`REWARDS`. The file is imported only when the reward is loaded, so importing this list is fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..core.errors import RealignError

_TEXT_ENCODER = {"text_encoder": "a retrieval BLIP-2; only its text half is read"}
_BLIP = {"blip": "a retrieval BLIP or BLIP-2, whole"}


@dataclass(frozen=True)
class RewardEntry:
    """What is known of a reward before it is loaded."""

    title: str
    """What it measures, in a few words."""
    models: Mapping[str, str]
    """The models that it needs: their names in settings and options, and what each is."""
    loader: str
    """`module:function`; a module that begins with a dot is in this package. See `loading.RewardModels`."""
    offline_models: Mapping[str, str] = field(default_factory=dict)
    """For a reward that asks a language model: what it needs as well where none is given."""
    optional_models: tuple[str, ...] = ()
    """Models that it uses where they are given, e.g. for their tokenizer."""

    @property
    def asks_language_model(self) -> bool:
        """Whether a language model can answer for this reward."""
        return bool(self.offline_models)

    def needed(self, *, offline: bool) -> tuple[str, ...]:
        """The names of the models that it needs. offline: without a language model."""
        return (*self.models, *(self.offline_models if offline else ()))


REWARDS: dict[str, RewardEntry] = {
    "caption": RewardEntry(
        "similarity of the image's caption to the prompt",
        {"captioner": "a captioning BLIP-2", **_TEXT_ENCODER},
        ".caption:load",
    ),
    "sam": RewardEntry(
        "whether the things in the image belong in the prompted scene",
        {"tagger": "RAM or RAM++", "detector": "GroundingDINO", "segmenter": "SAM or SAM 2"},
        ".sam:load",
        offline_models=_TEXT_ENCODER,
    ),
    "clip": RewardEntry("CLIP similarity", {"clip": "CLIP"}, ".clip:load_clip"),
    "negclip": RewardEntry(
        "similarity by a CLIP that minds the order of words",
        {"negclip": "NegCLIP"},
        ".clip:load_negclip",
        optional_models=("clip",),
    ),
    "blip-itm": RewardEntry("probability that image and prompt match, by BLIP", _BLIP, ".blip:load_itm"),
    "blip-itc": RewardEntry("BLIP similarity", _BLIP, ".blip:load_itc"),
    "image-reward": RewardEntry(
        "human preference, by ImageReward", {"image_reward": "ImageReward"}, ".image_reward:load"
    ),
}


def reward_entry(name: str) -> RewardEntry:
    """The entry of a reward; a RealignError for an unknown name."""
    if name not in REWARDS:
        raise RealignError(f"There is no reward '{name}': choose among {', '.join(REWARDS)}.")
    return REWARDS[name]


def models_of(names: Iterable[str], *, offline: bool = False) -> tuple[str, ...]:
    """The names of the models that these rewards need, each once. offline: without a language model."""
    return tuple(dict.fromkeys(model for name in names for model in reward_entry(name).needed(offline=offline)))


def all_models() -> dict[str, str]:
    """Every model that a reward needs, and what it is."""
    needed = [models for entry in REWARDS.values() for models in (entry.models, entry.offline_models)]
    return {model: what for models in needed for model, what in models.items()}
