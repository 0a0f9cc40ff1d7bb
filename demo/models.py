"""The shipped demo models, read by the same loaders that read real ones."""

from __future__ import annotations

from pathlib import Path

import torch

from ..attention.equation.settings import ModulationSettings
from ..core.embedded import FOLDERS, WEIGHTS
from ..language.offline_scorer import OfflineScorer
from ..perception.captioner import Captioner
from ..perception.grounded_sam import GroundedSam
from ..perception.tagger import Tagger
from ..perception.text_encoder import TextEncoder
from ..pipeline.realign import Models, RealignSettings
from ..rewards.caption import CaptionReward
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
    folder = Path(folder)
    text_encoder = TextEncoder.load(folder / FOLDERS["text_encoder"], device)
    return Models(
        sampler=DiffusersSampler.load(folder / FOLDERS["model"], device),
        reward=CaptionReward(Captioner.load(folder / FOLDERS["captioner"], device), text_encoder),
        tagger=Tagger.load(folder / FOLDERS["tagger"], device),
        language_model=OfflineScorer(text_encoder),
        grounded_sam=GroundedSam.load(folder / FOLDERS["detector"], folder / FOLDERS["segmenter"], device),
    )
