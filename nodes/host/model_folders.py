"""Where the models lie: ComfyUI's model folders, the embedded demo models, and what may be downloaded on request.

A model is a folder with a `config.json`, as Hugging Face has them, or for some kinds a single file, as its authors
published it.
"""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...core.embedded import COARSE_LORA, embedded
from ...core.errors import RealignError
from ...core.files import is_weight_file
from .downloads import PARTIAL, fetched

DEMO = "demo (embedded)"
NONE = "none"
KEYS = ("blip", "rams", "grounding-dino", "sams", "LLM", "rewards")
"""Folders under ComfyUI's `models`."""
KNOWN = {
    "captioner": ("Salesforce/blip2-opt-2.7b", "Salesforce/blip2-flan-t5-xl"),
    "text_encoder": ("Salesforce/blip2-itm-vit-g",),
    "detector": ("IDEA-Research/grounding-dino-tiny", "IDEA-Research/grounding-dino-base"),
    "segmenter": ("facebook/sam-vit-base", "facebook/sam-vit-large", "facebook/sam-vit-huge"),
}
"""Hugging Face repositories that a loader's input offers to download."""
SINGLE = ("rams", "grounding-dino", "sams", "rewards")
"""Where single files are models too."""
LABELS = "labels"
"""The folder under `rams` that holds label embeddings, which are no models."""
_DEPTH = 2


def register() -> None:
    """Make the folders known to ComfyUI; those that a user's extra_model_paths.yaml names are kept."""
    for key in KEYS:
        folder_paths.add_model_folder_path(key, os.path.join(folder_paths.models_dir, key))
    folder_paths.add_model_folder_path("loras", str(COARSE_LORA.parent))  # of the demo model, for its example


def choices(key: str, kind: str, *, none: bool = False, demo: bool = True) -> list[str]:
    """What a loader's input `kind` offers: the demo model, the models found, then what could be downloaded.

    A repository stays on offer when it is there: a saved workflow goes on naming it, and newer ComfyUIs refuse what is
    not on offer.
    """
    return [
        *([DEMO] if demo else []),
        *([NONE] if none else []),
        *sorted(_found(key)),
        *KNOWN.get(kind, ()),
    ]


def locate(key: str, name: str, demo: str, *, download: bool = False) -> Path:
    """The folder or file that a choice means, downloaded first where that is wanted.

    Raises:
        RealignError: it is not there, and no download was asked for or it failed.
    """
    if name == DEMO:
        return embedded(demo)
    if (folder := _found(key).get(name)) is not None:
        return folder
    if not any(name in repositories for repositories in KNOWN.values()):
        what = "model" if key in SINGLE else "folder"
        raise RealignError(f"There is no {what} '{name}' under models/{key}: put it there, or choose another.")
    target = Path(folder_paths.get_folder_paths(key)[0]) / name.split("/")[1]
    if (target / "config.json").is_file():
        return target
    if not download:
        raise RealignError(
            f"'{name}' is not on this machine: tick download, or put its files into models/{key}/{target.name}."
        )
    return fetched(name, target)


def stamp(key: str, name: str) -> str:
    """Changes when a file of the chosen model does."""
    found = _found(key)
    model = found.get(name, found.get(name.split("/")[-1]))
    return name if model is None else contents(model)


def contents(model: Path) -> str:
    """What a model's files are: path, time and size of each; for a single file also of the lists and tokenizers that
    its readers look for around it."""
    if model.is_file():
        around = [model.parent.glob("*.txt"), model.parent.glob("*.json")]
        around += [folder.glob("bert-base-uncased/*") for folder in (model.parent, model.parent.parent)]
        files = [model, *sorted(file for found in around for file in found)]
    else:
        files = sorted(model.rglob("*"))
    return repr([(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file()])


def labels() -> dict[str, Path]:
    """The files of label embeddings, by name."""
    roots = [Path(root) / LABELS for root in folder_paths.get_folder_paths("rams")]
    return {file.name: file for root in reversed(roots) for file in sorted(root.glob("*")) if is_weight_file(file)}


def _found(key: str) -> dict[str, Path]:
    """All models under the model folders, by their path below; the first of a name wins. What belongs to a download
    that is not complete is none, nor is a file in a model's folder."""
    out: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(key)):
        folders = {file.parent for depth in range(1, _DEPTH + 1) for file in root.glob("*/" * depth + "config.json")}
        files = {
            file
            for depth in range(_DEPTH + 1)
            for file in (root.glob("*/" * depth + "*") if key in SINGLE else ())
            if is_weight_file(file) and file.is_file() and folders.isdisjoint(file.parents)
            if not (key == "rams" and file.parent.name == LABELS)
        }
        for model in sorted(folders | files):
            below = model.relative_to(root)
            if not any(part.endswith(PARTIAL) for part in below.parts):
                out.setdefault(below.as_posix(), model)
    return out
