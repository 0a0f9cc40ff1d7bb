"""The demo models that come with the pack: where they are, and the word that stands for one in place of a path."""

from __future__ import annotations

from pathlib import Path

DEMO = "demo"
"""In place of a model's path: the demo model of its kind. In place of a file of prompts: the demo world's prompts."""
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
"""The kinds of models that the demo world has, as settings and options name them, and the folders in `WEIGHTS`."""
COARSE_LORA = WEIGHTS / "loras" / "realigndiff_demo_refl.safetensors"
"""The coarse stage of the demo model: what `make refl-demo` trained, halved by `training/publish.py`."""


def embedded(kind: str) -> Path:
    """The folder of the demo model of a kind in `FOLDERS`."""
    return WEIGHTS / FOLDERS[kind]


def model_path(path: str | Path, kind: str) -> Path:
    """The path of a model of a kind, where the word `demo` stands for the demo model."""
    return embedded(kind) if str(path) == DEMO and kind in FOLDERS else Path(path)
