"""The demo models that come with the pack, and the word `demo` that stands for one in place of a path."""

from __future__ import annotations

from pathlib import Path

DEMO = "demo"
"""In place of a model's path it means the demo model; in place of a file of prompts, the demo world's prompts."""
WEIGHTS = Path(__file__).parents[1] / "demo" / "weights"
FOLDERS = {
    "model": "stable_diffusion",
    "captioner": "blip2_captioner",
    "text_encoder": "blip2_itm",
    "clip": "clip",
    "blip": "blip2_itm",
    "tagger": "ram",
    "detector": "grounding_dino",
    "segmenter": "sam",
}
"""The demo models by their names in settings and options, and their folders in `WEIGHTS`."""
COARSE_LORA = WEIGHTS / "loras" / "realigndiff_demo_refl.safetensors"
"""The LoRA of the demo model's coarse stage: trained by `make refl-demo`, halved by `training/publish.py`."""


def embedded(kind: str) -> Path:
    """The folder of a demo model, by its name in `FOLDERS`."""
    return WEIGHTS / FOLDERS[kind]


def model_path(path: str | Path, kind: str) -> Path:
    """A model's path; `demo` means the demo model of this kind."""
    return embedded(kind) if str(path) == DEMO and kind in FOLDERS else Path(path)
