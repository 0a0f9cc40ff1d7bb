"""Where models are found: ComfyUI's model folders, the embedded demo models, and downloads on request.

A model is a Hugging Face folder with a `config.json` or, in some model folders, a single file as its authors published
it.
"""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...core.embedded import COARSE_LORA, embedded
from ...core.errors import RealignError
from ...core.files import is_weight_file
from .downloads import PARTIAL
from .downloads import download as download_repository

DEMO = "demo (embedded)"
NONE = "none"
KEYS = ("blip", "rams", "grounding-dino", "sams", "LLM", "rewards")
"""Model folders under ComfyUI's `models`."""
REPOSITORIES = {
    "captioner": ("Salesforce/blip2-opt-2.7b", "Salesforce/blip2-flan-t5-xl"),
    "text_encoder": ("Salesforce/blip2-itm-vit-g",),
    "detector": ("IDEA-Research/grounding-dino-tiny", "IDEA-Research/grounding-dino-base"),
    "segmenter": ("facebook/sam-vit-base", "facebook/sam-vit-large", "facebook/sam-vit-huge"),
}
"""The Hugging Face repositories that a loader's input offers to download."""
SINGLE_FILE_KEYS = ("rams", "grounding-dino", "sams", "rewards")
"""Model folders in which single files are models too."""
LABELS = "labels"
"""The folder under `rams` for label embeddings, which are not models."""
_MAX_DEPTH = 2


def register() -> None:
    """Register the model folders with ComfyUI, besides those in the user's extra_model_paths.yaml."""
    for key in KEYS:
        folder_paths.add_model_folder_path(key, os.path.join(folder_paths.models_dir, key))
    folder_paths.add_model_folder_path("loras", str(COARSE_LORA.parent))  # for the example workflow of its LoRA


def choices(key: str, kind: str, *, none: bool = False, demo: bool = True) -> list[str]:
    """The options of a loader's input `kind`: the demo model, the models found, then repositories to download.

    A repository remains an option once it is downloaded: saved workflows name it, and newer ComfyUIs refuse values that
    are not an option.
    """
    return [*([DEMO] if demo else []), *([NONE] if none else []), *sorted(_found(key)), *REPOSITORIES.get(kind, ())]


def locate(key: str, name: str, demo: str, *, download: bool = False) -> Path:
    """The folder or file of an option of `choices`, downloaded first if `download` is set; a RealignError if missing.

    demo: the name of the demo model in `core.embedded`.
    """
    if name == DEMO:
        return embedded(demo)
    if (folder := _found(key).get(name)) is not None:
        return folder
    if not any(name in repositories for repositories in REPOSITORIES.values()):
        what = "model" if key in SINGLE_FILE_KEYS else "folder"
        raise RealignError(f"There is no {what} '{name}' under models/{key}: put it there, or choose another.")
    target = Path(folder_paths.get_folder_paths(key)[0]) / name.split("/")[1]
    if (target / "config.json").is_file():
        return target
    if not download:
        raise RealignError(
            f"'{name}' is not on this machine: tick download, or put its files into models/{key}/{target.name}."
        )
    return download_repository(name, target)


def stamp(key: str, name: str) -> str:
    """A text that changes when a file of the chosen model does."""
    found = _found(key)
    model = found.get(name, found.get(name.split("/")[-1]))
    return name if model is None else contents(model)


def contents(model: Path) -> str:
    """Path, time and size of each of a model's files; for a single file also of the tag lists and tokenizers near it
    that its reader may use."""
    if model.is_file():
        around = [model.parent.glob("*.txt"), model.parent.glob("*.json")]
        around += [folder.glob("bert-base-uncased/*") for folder in (model.parent, model.parent.parent)]
        files = [model, *sorted(file for found in around for file in found)]
    else:
        files = sorted(model.rglob("*"))
    return repr([(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file()])


def labels() -> dict[str, Path]:
    """The files with label embeddings, by name."""
    roots = [Path(root) / LABELS for root in folder_paths.get_folder_paths("rams")]
    return {file.name: file for root in reversed(roots) for file in sorted(root.glob("*")) if is_weight_file(file)}


def _found(key: str) -> dict[str, Path]:
    """All models under the model folders, by their relative path; of equal paths the first counts. Incomplete downloads
    and files inside a model's folder are left out."""
    models: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(key)):
        folders = {
            file.parent for depth in range(1, _MAX_DEPTH + 1) for file in root.glob("*/" * depth + "config.json")
        }
        files = {
            file
            for depth in range(_MAX_DEPTH + 1)
            for file in (root.glob("*/" * depth + "*") if key in SINGLE_FILE_KEYS else ())
            if is_weight_file(file) and file.is_file() and folders.isdisjoint(file.parents)
            if not (key == "rams" and file.parent.name == LABELS)
        }
        for model in sorted(folders | files):
            below = model.relative_to(root)
            if not any(part.endswith(PARTIAL) for part in below.parts):
                models.setdefault(below.as_posix(), model)
    return models
