"""The shipped demo models, read by the same loaders that read real ones."""

from __future__ import annotations

from pathlib import Path

import torch

from ..attention.settings import ModulationSettings
from ..perception.captioner import Captioner
from ..perception.grounded_sam import GroundedSam
from ..perception.likelihood import OfflineScorer
from ..perception.tagger import Tagger
from ..perception.text_encoder import TextEncoder
from ..pipeline.realign import Models, RealignSettings
from ..pipeline.sampler import DiffusersSampler
from ..pipeline.settings import SamplingSettings
from ..rewards.caption import CaptionReward

FOLDER = Path(__file__).parent / "weights"
COARSE_WEIGHTS = FOLDER / "loras" / "realigndiff_demo_refl.safetensors"
"""The coarse stage of the demo model: what `make refl-demo` trained, halved by `training/publish.py`."""

SETTINGS = RealignSettings(
    sampling=SamplingSettings(steps=20, cfg=3.0),
    modulation=ModulationSettings(end=0.5),
    isolate_phrases=False,  # as in all tables of results; docs/tuning.md has what it would do
    gate=0.9,
    keep_better=True,
)


def load_models(folder: str | Path = FOLDER, device: str | torch.device = "cpu") -> Models:
    """All models of the demo world, in full precision."""
    folder = Path(folder)
    text_encoder = TextEncoder.load(folder / "blip2_itm", device)
    return Models(
        sampler=DiffusersSampler.load(folder / "stable_diffusion", device),
        reward=CaptionReward(Captioner.load(folder / "blip2_captioner", device), text_encoder),
        tagger=Tagger.load(folder / "ram", device),
        language_model=OfflineScorer(text_encoder),
        grounded_sam=GroundedSam.load(folder / "grounding_dino", folder / "sam", device),
    )
