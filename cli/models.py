"""The models that a script draws and looks with: their options, where they lie, what they are, how they are read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.embedded import model_path
from ..core.errors import RealignError
from ..core.fingerprint import READ_BESIDE
from .hardware import chosen

if TYPE_CHECKING:
    import torch

    from ..language.model import LanguageModel
    from ..pipeline.realign import Models
    from ..sampling.sampler import DiffusersSampler

MODELS = {
    "model": "Stable Diffusion 1, 2 or XL, in diffusers' layout",
    "captioner": "a captioning BLIP-2",
    "text_encoder": "a retrieval BLIP-2, of which the text half is read",
    "tagger": "RAM or RAM++",
    "detector": "GroundingDINO",
    "segmenter": "SAM or SAM 2",
}
"""The models' options: what they are."""


def option(name: str) -> str:
    """`text_encoder` → `--text-encoder`."""
    return f"--{name.replace('_', '-')}"


def add_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup, *, required: bool) -> None:
    """An option a model, and those of the language model."""
    for name, what in MODELS.items():
        parser.add_argument(option(name), required=required, metavar="PATH", help=what)
    parser.add_argument(
        "--llm",
        help="address of an OpenAI-compatible server, or a Hugging Face folder of a language "
        "model; the offline scorer without. A key comes from the environment: see docs/comfyui.md",
    )
    parser.add_argument("--llm-model", default="", help="the model's name on the server")


def places(options: argparse.Namespace) -> dict[str, Path]:
    """Where the models lie that the options name."""
    given = {name: getattr(options, name) for name in MODELS}
    return {name: model_path(path, name) for name, path in given.items() if path is not None}


def stamps(files: Mapping[str, Path]) -> dict[str, str]:
    """The `stamp` of each model.

    Raises:
        RealignError: one is not there.
    """
    return {name: stamp(path, name) for name, path in files.items()}


def stamp(model: Path, name: str) -> str:
    """A model's path, and 8 hexadecimal digits that change when the size or the time of one of its files does. The
    lists of words beside a single file belong to it.

    Raises:
        RealignError: there is nothing at this path.
    """
    if not model.exists():
        raise RealignError(f"There is no '{model}': check the path at {option(name)}.")
    files = model.rglob("*") if model.is_dir() else [model, *(model.with_name(name) for name in READ_BESIDE)]
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files) if file.is_file()]
    return f"{model.resolve()} ({short_hash(repr(states))})"


def short_hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def hardware_stamp(options: argparse.Namespace) -> dict[str, str]:
    """The device's kind and the number format, which change an image a little.

    Raises:
        RealignError: there is no such device.
    """
    device, dtype = chosen(options)
    return {"device": device.type, "precision": str(dtype).removeprefix("torch.")}


def llm_stamp(options: argparse.Namespace) -> dict[str, str]:
    """What the language model is; nothing where it is the offline scorer.

    Raises:
        RealignError: there is none at the path, or a server's model has no name.
    """
    if not options.llm:
        return {}
    from ..language.loading import is_server

    if not is_server(options.llm):
        return stamps({"llm": Path(options.llm)})
    language_model(options, *chosen(options))  # tells what is wrong with the address and the name
    return {"llm": options.llm, "llm_model": options.llm_model}


def load_sampler(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, weights: Path | None = None
) -> DiffusersSampler:
    """What draws, by default in fp32; with the LoRA or the UNet that a training run wrote to `weights`.

    Raises:
        RealignError: it cannot be read, or the weights are of another model.
    """
    import torch

    from ..lora_files.loading import load_into_unet
    from ..sampling.sampler import DiffusersSampler

    sampler = DiffusersSampler.load(folder, device, dtype or torch.float32)
    if weights is not None:
        load_into_unet(sampler.unet, weights)
    return sampler


def load(options: argparse.Namespace, sampler: DiffusersSampler) -> Models:
    """All models around what draws. What looks for boxes and reads is in fp32: half precision changes its scores.

    Raises:
        RealignError: one cannot be read.
    """
    from ..language.offline_scorer import OfflineScorer
    from ..perception.captioner import Captioner
    from ..perception.grounded_sam import GroundedSam
    from ..perception.tagger import Tagger
    from ..perception.text_encoder import TextEncoder
    from ..pipeline.realign import Models
    from ..rewards.caption import CaptionReward

    device, dtype = chosen(options)
    place = places(options)
    text_encoder = TextEncoder.load(place["text_encoder"], device)
    return Models(
        sampler=sampler,
        reward=CaptionReward(Captioner.load(place["captioner"], device, dtype), text_encoder),
        tagger=Tagger.load(place["tagger"], device),
        language_model=language_model(options, device, dtype) or OfflineScorer(text_encoder),
        grounded_sam=GroundedSam.load(place["detector"], place["segmenter"], device),
    )


def language_model(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> LanguageModel | None:
    """The server or the local model of `--llm`, None without; a server's answers are kept beside the images."""
    from ..language.loading import load_language_model

    return load_language_model(options.llm, options.llm_model, options.out / "answers", device, dtype)
