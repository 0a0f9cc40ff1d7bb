"""The model families whose attention can be modulated: each one's network, its attention and its text encoders.

A new family is one entry of FAMILIES. The lists that people read are made from it; this file imports neither torch nor
ComfyUI, so that documentation can be.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ...core.errors import RealignError


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of a CONDITIONING that stand for the prompt."""

    label: str
    """What people call the text encoder."""
    encoders: tuple[str, ...]
    """ComfyUI's names of the text encoders that fill these tokens, as patterns such as `qwen*`. Several stand side by
    side in the channels and read alike, so that the first one that is loaded is asked where a word is."""
    clip: bool = False
    """Tokens are CLIP's, in windows of 77."""
    from_end: bool = False
    """Positions count from the end of the conditioning, as negative indices: before the prompt may be more or fewer
    tokens than in the encoding of the prompt alone, as of a chat template, a system prompt or another encoder."""


@dataclass(frozen=True)
class TextEncoders:
    """The text encoders of a family, and the segments of a CONDITIONING that they fill, in their order."""

    names: tuple[str, ...]
    """What ComfyUI's tokenizer makes tokens for, as patterns."""
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Family:
    """Models of one architecture."""

    models: tuple[str, ...]
    """What people call them."""
    network: str
    """ComfyUI's class, with its module."""
    text: tuple[TextEncoders, ...]
    """The text encoders of its models, each of which may have others."""
    joint: bool = False
    """Text and image tokens are keys of one softmax, the text first; else there is self- and cross-attention."""
    image_alone: bool = True
    """Where image tokens attend to image tokens alone, that is modulated too."""
    references_last: bool = True
    """The tokens of reference images stand after those of the image."""
    note: str = ""
    """What the table of families adds about its attention."""


def _one(label: str, *names: str, **options: bool) -> tuple[TextEncoders, ...]:
    """Text encoders of which the last fills the conditioning."""
    return (TextEncoders(names, (Segment(label, names[-1:], **options),)),)


QWEN = _one("Qwen's chat template", "qwen*", from_end=True)
UNET = Family(
    ("Stable Diffusion 1", "Stable Diffusion 2", "Stable Diffusion XL"),
    "comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel",
    tuple(TextEncoders(names, (Segment("CLIP", names, clip=True),)) for names in (("l",), ("h",), ("l", "g"), ("g",))),
    note="through the UNet's attention patches",
)
FAMILIES = (
    UNET,
    Family(
        ("Stable Diffusion 3",),
        "comfy.ldm.modules.diffusionmodules.mmdit.MMDiT",
        (
            TextEncoders(
                ("l", "g", "t5xxl"), (Segment("CLIP", ("l", "g"), clip=True), Segment("T5", ("t5xxl",), from_end=True))
            ),
        ),
        joint=True,
        note="3.5 medium has self-attention beside it",
    ),
    Family(("Flux",), "comfy.ldm.flux.model.Flux", _one("T5", "l", "t5xxl"), joint=True),
    Family(("Chroma",), "comfy.ldm.chroma.model.Chroma", _one("T5", "t5xxl"), joint=True),
    Family(("Qwen-Image",), "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel", QWEN, joint=True),
    # Its refiners look at noise before any text was read: which tokens share a region is not known there.
    Family(
        ("Lumina 2", "Z-Image"),
        "comfy.ldm.lumina.model.NextDiT",
        (*_one("Gemma", "gemma*", from_end=True), *QWEN),
        joint=True,
        image_alone=False,
        references_last=False,
        note="the refiners before it are left alone",
    ),
    Family(("Wan",), "comfy.ldm.wan.model.WanModel", _one("UMT5", "umt5xxl")),
    Family(("Cosmos-Predict2",), "comfy.ldm.cosmos.predict2.MiniTrainDIT", _one("T5", "t5xxl")),
)


def family_names() -> list[str]:
    """What people call the models whose attention can be modulated."""
    return [model for family in FAMILIES for model in family.models]


def list_families(conjunction: str = "or", families: Sequence[Family] | None = None) -> str:
    """The families in a sentence: "Stable Diffusion 1, 2, XL or 3, Flux or Wan"."""
    names = [model for family in FAMILIES if families is None or family in families for model in family.models]
    parts = []
    for series, group in groupby(names, lambda name: name.rpartition(" ")[0]):
        models = list(group)
        if series and len(models) > 1:
            models = [f"{series} {_join([model.removeprefix(series).strip() for model in models], conjunction)}"]
        parts += models
    return _join(parts, conjunction)


def _join(names: Sequence[str], conjunction: str) -> str:
    return f" {conjunction} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def family_table() -> list[tuple[str, str, str]]:
    """A row per family for documentation: its models, its attention, the text encoders that have a phrase's tokens."""
    return [
        (
            list_families("and", [family]),
            ("one softmax" if family.joint else "cross- and self-attention") + (family.note and f"; {family.note}"),
            ", ".join(dict.fromkeys(segment.label for text in family.text for segment in text.segments)),
        )
        for family in FAMILIES
    ]


def family_of(network: Any) -> Family | None:
    """The family of a ComfyUI network; None if it is not known."""
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(network).__mro__}
    return next((family for family in FAMILIES if family.network in names), None)


def text_encoders_of(names: Iterable[str]) -> TextEncoders:
    """The text encoders that a tokenizer with these names belongs to.

    Raises:
        RealignError: no family has them.
    """
    names = list(names)
    for text in (text for family in FAMILIES for text in family.text):
        if len(names) == len(text.names) and all(fnmatch.filter(names, pattern) for pattern in text.names):
            return text
    raise unknown_text_encoder(names)


def unknown_text_encoder(names: Iterable[str]) -> RealignError:
    """The error where a tokenizer with these names is of no family."""
    return RealignError(
        f"Nothing tells where this text encoder ({', '.join(names) or 'none'}) has a prompt's words; use one of "
        f"{list_families()}."
    )


def check_architecture(model: Any, doing: str, families: Sequence[Family] | None = None) -> None:
    """Refuse a MODEL whose attention is not known.

    Raises:
        RealignError: it belongs to none of the families (default: all).
    """
    network = uncompiled(model.get_model_object("diffusion_model"))
    if family_of(network) not in (FAMILIES if families is None else families):
        raise RealignError(
            f"{doing} does not know the architecture {type(network).__name__}; it works with "
            f"{list_families('and', families)}."
        )


def uncompiled(network: Any) -> Any:
    """The network itself where torch.compile has wrapped it."""
    return getattr(network, "_orig_mod", network)
