"""Options for the models of re-alignment: their paths, the state of their files, and how they are loaded."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.embedded import model_path
from ..core.errors import RealignError
from ..core.fingerprint import READ_BESIDE
from .hardware import device_and_dtype

if TYPE_CHECKING:
    import torch

    from ..language.model import LanguageModel
    from ..pipeline.realign import Models
    from ..sampling.sampler import DiffusersSampler

MODELS = {
    "model": "Stable Diffusion 1, 2 or XL, in diffusers' layout",
    "captioner": "a captioning BLIP-2",
    "text_encoder": "a retrieval BLIP-2; only its text half is used",
    "tagger": "RAM or RAM++",
    "detector": "GroundingDINO",
    "segmenter": "SAM or SAM 2",
}
"""The models, by the names of their options: what each may be."""


def option_name(name: str) -> str:
    """`text_encoder` → `--text-encoder`."""
    return f"--{name.replace('_', '-')}"


def add_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup, *, required: bool) -> None:
    """Add an option per model, `--llm` and `--llm-model`."""
    for name, what in MODELS.items():
        parser.add_argument(option_name(name), required=required, metavar="PATH", help=what)
    parser.add_argument(
        "--llm",
        help="address of an OpenAI-compatible server, or a Hugging Face folder of a language model; by default the "
        "offline scorer answers. The server's key is read from the environment, see docs/comfyui.md",
    )
    parser.add_argument("--llm-model", default="", help="the model's name on the server")


def model_paths(options: argparse.Namespace) -> dict[str, Path]:
    """The paths of the models that are given."""
    given = {name: getattr(options, name) for name in MODELS}
    return {name: model_path(path, name) for name, path in given.items() if path is not None}


def stamps(files: Mapping[str, Path]) -> dict[str, str]:
    """The `stamp` of each model."""
    return {name: stamp(path, name) for name, path in files.items()}


def stamp(model: Path, name: str) -> str:
    """A model's path and 8 hexadecimal digits, which change when the size or the time of one of its files changes.

    For a single file, the lists of words that are read beside it count too. Unlike `core.fingerprint` no file is read:
    a command over gigabytes of models finds at once that its images are there already.
    """
    if not model.exists():
        raise RealignError(f"There is no '{model}': check the path at {option_name(name)}.")
    files = model.rglob("*") if model.is_dir() else [model, *(model.with_name(name) for name in READ_BESIDE)]
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files) if file.is_file()]
    return f"{model.resolve()} ({short_hash(repr(states))})"


def short_hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def hardware_stamp(options: argparse.Namespace) -> dict[str, str]:
    """The device's kind and the dtype: images differ a little between them."""
    device, dtype = device_and_dtype(options)
    return {"device": device.type, "precision": str(dtype).removeprefix("torch.")}


def llm_stamp(options: argparse.Namespace) -> dict[str, str]:
    """The language model: a server's address and model, or a local model's stamp; empty for the offline scorer."""
    if not options.llm:
        return {}
    from ..language.loading import is_server

    if not is_server(options.llm):
        return stamps({"llm": Path(options.llm)})
    chosen_language_model(options)  # raises if the address or the name is wrong
    return {"llm": options.llm, "llm_model": options.llm_model}


def load_sampler(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, weights: Path | None = None
) -> DiffusersSampler:
    """The text-to-image model, by default in fp32, with the LoRA or the UNet that a training run wrote to `weights`."""
    import torch

    from ..lora_files.loading import load_into_unet
    from ..sampling.sampler import DiffusersSampler

    sampler = DiffusersSampler.load(folder, device, dtype or torch.float32)
    if weights is not None:
        load_into_unet(sampler.unet, weights)
    return sampler


def load_chosen_models(options: argparse.Namespace, sampler: DiffusersSampler) -> Models:
    """Load the other models of the loop."""
    from ..pipeline.realign import Models

    language_model = chosen_language_model(options)
    return Models.load(sampler, model_paths(options), *device_and_dtype(options), language_model)


def chosen_language_model(options: argparse.Namespace) -> LanguageModel | None:
    """The server or the local model of `--llm`, None without it. A server's answers are kept in OUT/answers."""
    from ..language.loading import load_language_model

    return load_language_model(options.llm, options.llm_model, options.out / "answers", *device_and_dtype(options))
