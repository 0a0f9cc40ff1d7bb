"""Which model families attention can be modulated in, and where in their attention the words and the pixels are.

UNets have attention patches of their own. Transformers are reached through `optimized_attention_override`, which sees
every attention of the model and only its tensors; whose queries and keys those are, their numbers tell.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ...core.errors import RealignError


@dataclass(frozen=True)
class Family:
    """Models with one layout of attention."""

    name: str
    network: str
    """The class under comfy.ldm."""
    joint: bool = False
    """Words and pixels are keys of one softmax, the words first; else pixels have self- and cross-attention."""
    pixels_alone: bool = True
    """Where pixels attend to pixels alone, that is modulated too."""
    references_behind: bool = True
    """The pixels of reference images stand behind those of the image."""


UNET = Family("Stable Diffusion 1, 2 and XL", "modules.diffusionmodules.openaimodel.UNetModel")
FAMILIES = (
    UNET,
    Family("Stable Diffusion 3", "modules.diffusionmodules.mmdit.MMDiT", joint=True),
    Family("Flux", "flux.model.Flux", joint=True),
    Family("Chroma", "chroma.model.Chroma", joint=True),
    Family("Qwen-Image", "qwen_image.model.QwenImageTransformer2DModel", joint=True),
    # Its refiners look at noise before any word was heard: what shares a region is not known there.
    Family("Lumina 2 and Z-Image", "lumina.model.NextDiT", joint=True, pixels_alone=False, references_behind=False),
    Family("Wan", "wan.model.WanModel"),
    Family("Cosmos-Predict2", "cosmos.predict2.MiniTrainDIT"),
)


class Place(NamedTuple):
    """What of one attention is whose; its pixels' queries are modulated."""

    queries: slice
    """The pixels among the queries."""
    words: slice | None
    """The words among the keys."""
    pixels: slice | None
    """The pixels among the keys."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of one call of a transformer."""

    words: int
    size: tuple[int, int]
    """(h, w) of a frame."""
    frames: int = 1
    multiple: int = 1
    """Words and pixels are each filled up to a multiple of this."""
    references: bool = False
    """There are pixels of reference images too."""

    @property
    def pixels(self) -> int:
        return self.frames * math.prod(self.size)

    def place(self, family: Family, queries: int, keys: int) -> Place | None:
        """Where the words and pixels are in an attention of so many queries and keys; None where it has none."""
        if not family.joint:
            if queries != self.pixels:
                return None
            everything = slice(0, keys)
            places = {
                self.words: Place(slice(0, queries), everything, None),
                self.pixels: Place(slice(0, queries), None, everything),
            }
            return places.get(keys)
        if queries != keys:
            return None
        start = _filled(self.words, self.multiple)
        end = start + _filled(self.pixels, self.multiple)
        behind = self.references and family.references_behind and keys > end
        if keys == end or behind:
            own = slice(start, start + self.pixels)
            return Place(own, slice(0, self.words), own)
        if keys == self.pixels and family.pixels_alone:
            return Place(slice(0, keys), None, slice(0, keys))
        return None

    def known(self, queries: int) -> bool:
        """Whether so many queries are all words or all pixels."""
        return any(queries in (n, _filled(n, self.multiple)) for n in (self.words, self.pixels))


def _filled(n: int, multiple: int) -> int:
    return -multiple * (-n // multiple)


def family_of(network: Any) -> Family | None:
    """The family of a ComfyUI network; None if none of ours."""
    return next((family for family in FAMILIES if isinstance(network, _class(family))), None)


def check_architecture(model: Any, doing: str, families: Sequence[Family] = FAMILIES) -> None:
    """Refuse a MODEL whose attention is not where we look for it.

    Raises:
        RealignError: it is of none of the families.
    """
    network = uncompiled(model.get_model_object("diffusion_model"))
    if family_of(network) not in families:
        names = [family.name for family in families]
        listed = ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
        raise RealignError(f"{doing} does not know the architecture {type(network).__name__}; it works with {listed}.")


def tokens_of(network: Any, x: Tensor, context: Tensor, conds: dict[str, Any]) -> Tokens:
    """The tokens of a transformer called with latents x [B, C, (T,) h, w], encoded words [B, n, *] and other conds."""
    patch = getattr(network, "patch_size", None) or network.patch_spatial
    patch = patch[-1] if isinstance(patch, (tuple, list)) else patch
    return Tokens(
        words=conds.get("num_tokens") or context.shape[1],
        size=(-(-x.shape[-2] // patch), -(-x.shape[-1] // patch)),
        frames=x.shape[2] if x.ndim == 5 else 1,
        multiple=getattr(network, "pad_tokens_multiple", None) or 1,
        references=bool(conds.get("ref_latents")),
    )


def uncompiled(network: Any) -> Any:
    """The network itself where torch.compile has wrapped it."""
    return getattr(network, "_orig_mod", network)


def _class(family: Family) -> type:
    module, name = family.network.rsplit(".", 1)
    return getattr(importlib.import_module(f"comfy.ldm.{module}"), name)
