"""The shipped demo models, read by the same loaders that read real ones."""

from __future__ import annotations

from pathlib import Path

import torch

from ..attention.equation.settings import ModulationSettings
from ..core.embedded import FOLDERS, WEIGHTS
from ..pipeline.realign import Models, RealignSettings
from ..sampling.sampler import DiffusersSampler
from ..sampling.settings import SamplingSettings

SETTINGS = RealignSettings(
    sampling=SamplingSettings(steps=20, cfg=3.0),
    modulation=ModulationSettings(end=0.5),
    isolate_phrases=False,  # as in all tables of docs/results.md; docs/tuning.md measures it
    gate=0.9,
    keep_better=True,
)


def load_models(folder: str | Path = WEIGHTS, device: str | torch.device = "cpu") -> Models:
    """All models of the demo world, in full precision."""
    paths = {kind: Path(folder) / name for kind, name in FOLDERS.items()}
    return Models.load(DiffusersSampler.load(paths["model"], device), paths, device)
