"""Where the models lie: ComfyUI's model folders, the embedded demo models, and what may be downloaded on request."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..core.errors import RealignError
from .downloads import PARTIAL, fetched

DEMO = "demo (embedded)"
DEMO_FOLDER = Path(__file__).parents[1] / "demo" / "weights"
NONE = "none"
KEYS = ("blip", "rams", "grounding-dino", "sams", "LLM")
"""Folders under ComfyUI's `models`."""
KNOWN = {
    "captioner": ("Salesforce/blip2-opt-2.7b", "Salesforce/blip2-flan-t5-xl"),
    "text_encoder": ("Salesforce/blip2-itm-vit-g",),
    "detector": ("IDEA-Research/grounding-dino-tiny", "IDEA-Research/grounding-dino-base"),
    "segmenter": ("facebook/sam-vit-base", "facebook/sam-vit-large", "facebook/sam-vit-huge"),
}
"""Hugging Face repositories that a loader's input offers to download."""
_DEPTH = 2


def register() -> None:
    """Make the folders known to ComfyUI; those that a user's extra_model_paths.yaml names are kept."""
    for key in KEYS:
        folder_paths.add_model_folder_path(key, os.path.join(folder_paths.models_dir, key))
    folder_paths.add_model_folder_path("loras", str(DEMO_FOLDER / "loras"))  # of the demo model, for its example


def choices(key: str, kind: str, *, none: bool = False, demo: bool = True) -> list[str]:
    """What a loader's input `kind` offers: the demo model, the folders found, then what could be downloaded."""
    found = sorted(_found(key))
    absent = [
        repository
        for repository in KNOWN.get(kind, ())
        if repository.split("/")[1] not in {Path(f).name for f in found}
    ]
    return [*([DEMO] if demo else []), *([NONE] if none else []), *found, *absent]


def locate(key: str, name: str, demo: str, *, download: bool = False) -> Path:
    """The folder that a choice means, downloaded first where that is wanted.

    Raises:
        RealignError: it is not there, and no download was asked for or it failed.
    """
    if name == DEMO:
        return DEMO_FOLDER / demo
    if (folder := _found(key).get(name)) is not None:
        return folder
    if not any(name in repositories for repositories in KNOWN.values()):
        raise RealignError(f"There is no folder '{name}' with a config.json under models/{key}: put the model there.")
    target = Path(folder_paths.get_folder_paths(key)[0]) / name.split("/")[1]
    if (target / "config.json").is_file():
        return target
    if not download:
        raise RealignError(
            f"'{name}' is not on this machine: tick download, or put its files into models/{key}/{target.name}."
        )
    return fetched(name, target)


def stamp(key: str, name: str) -> str:
    """Changes when a file of the chosen folder does."""
    folder = _found(key).get(name)
    if folder is None:
        return name
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return repr([(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files])


def _found(key: str) -> dict[str, Path]:
    """All folders with a config.json under the model folders, by their path below; the first of a name wins. Those of
    downloads that are not complete are none."""
    out: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(key)):
        for depth in range(1, _DEPTH + 1):
            for file in root.glob("/".join(["*"] * depth + ["config.json"])):
                below = file.parent.relative_to(root)
                if not any(part.endswith(PARTIAL) for part in below.parts):
                    out.setdefault(below.as_posix(), file.parent)
    return out
