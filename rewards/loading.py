"""Load rewards by name; a model that several of them need is read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..core.embedded import DEMO, FOLDERS, model_path
from ..core.errors import RealignError
from ..language.model import LanguageModel
from .registry import all_models, models_of, reward_entry
from .reward import Reward


@dataclass
class RewardModels:
    """What a reward's loader gets: where its models are, and `read` to read them."""

    paths: Mapping[str, Path]
    """By the models' names."""
    device: str | torch.device = "cpu"
    dtype: torch.dtype = torch.float32
    language_model: LanguageModel | None = None
    clip_tokenizer: Path | None = None
    """A folder with CLIP's tokenizer, for files of open_clip that come without one."""
    _read: dict[tuple[type, str], Any] = field(default_factory=dict)

    def read(self, kind: type, model: str, **options: Any) -> Any:
        """`kind.load(path, device, dtype, **options)`, read once."""
        if (kind, model) not in self._read:
            options = {"device": self.device, "dtype": self.dtype, **options}
            self._read[kind, model] = kind.load(self.paths[model], **options)
        return self._read[kind, model]

    def load(self, name: str) -> Reward:
        """The reward of a name in the registry."""
        module, _, function = reward_entry(name).loader.partition(":")
        return getattr(import_module(module, __package__), function)(self)


def load_rewards(
    names: Sequence[str],
    places: Mapping[str, str | Path],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    language_model: LanguageModel | None = None,
) -> dict[str, Reward]:
    """The rewards of these names, in their order.

    places: the path of each model that they need (see `registry.REWARDS`), or `demo` for the demo model.
    dtype: of the networks. Tagger, detector, segmenter and f_enc stay in float32: half precision changes their scores.
    language_model: answers for the `sam` reward; by default the offline scorer does.

    Raises:
        RealignError: a name is unknown, a model has no path, or it cannot be read.
    """
    paths = _paths(names, places, offline=language_model is None)
    models = RewardModels(paths, device, dtype, language_model)
    return {name: models.load(name) for name in dict.fromkeys(names)}


def _paths(names: Sequence[str], places: Mapping[str, str | Path], offline: bool) -> dict[str, Path]:
    """The paths of the models; checked before the first model is read, which may take minutes."""
    known, paths = all_models(), {}
    for model, path in places.items():
        if model not in known:
            raise RealignError(f"'{model}' is no model that a reward needs: they need {', '.join(known)}.")
        if str(path) != DEMO or model in FOLDERS:
            paths[model] = model_path(path, model)
    models_of(names)  # all names are known
    for name in names:
        for model in reward_entry(name).needed(offline=offline):
            if model in paths:
                continue
            if model in places:
                raise RealignError(f"The demo world has no {model}: give the path of one, or leave {name} out.")
            embedded = f", or {DEMO} for the embedded one" if model in FOLDERS else ""
            raise RealignError(f"The reward {name} needs to know where {model} is: give its path{embedded}.")
    return paths
