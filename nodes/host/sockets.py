"""The sockets that the pack's nodes are joined by, and what may go into a REGIONS socket besides regions."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from comfy_api.latest import io

from ...core.errors import RealignError

Blip2 = io.Custom("REALIGN_BLIP2")
"""`Hosted[Blip2Models]`: a captioner and, if loaded, f_enc."""
Tagger = io.Custom("REALIGN_TAGGER")
"""`Hosted[perception.tagger.Tagger]`."""
GroundedSam = io.Custom("REALIGN_GROUNDED_SAM")
"""`Hosted[perception.grounded_sam.GroundedSam]`."""
Llm = io.Custom("REALIGN_LLM")
"""A `language.model.LanguageModel` with `offline`, a `nodes.llm.HostedScorer` for what it does not answer."""
Reward = io.Custom("REALIGN_REWARD")
"""`Hosted[rewards.reward.Reward]`: a judge of images and prompts."""
Tags = io.Custom("REALIGN_TAGS")
"""For each image of a batch a list of `perception.tagger.Tag`."""
Regions = io.Custom("REALIGN_REGIONS")
"""A tuple of `core.regions.RegionSet`, one an image of a batch, or one for all."""
BoundingBox = io.Custom("BOUNDING_BOX")
"""ComfyUI's own: `{x, y, width, height}` in pixels, one, a list, or a list for each image."""


def regions_input(id: str = "regions", *, optional: bool = False, tooltip: str) -> Any:
    """A socket that also takes masks, bounding boxes and JSON text: see `core.interchange.region_sets`."""
    kinds = [Regions, io.Mask, BoundingBox, io.String]
    also = "Also takes a MASK batch (one mask a thing of the text, in order), BOUNDING_BOX or JSON text."
    return io.MultiType.Input(id, kinds, optional=optional, tooltip=f"{tooltip} {also}")


def chosen(what: str, value: str, options: Collection[str]) -> str:
    """The value of a Combo, which older ComfyUI does not check when it comes from an API prompt.

    Raises:
        RealignError: it is none of the options.
    """
    if value not in options:
        raise RealignError(f"'{value}' is no {what}: choose one of {', '.join(options)}.")
    return value


def text_input(tooltip: str, id: str = "text") -> Any:
    """The prompt, from a text node; needed only where the regions do not bring it."""
    return io.String.Input(id, optional=True, force_input=True, tooltip=tooltip)


def image_input() -> Any:
    """The image whose pixels a BOUNDING_BOX counts; other regions need none."""
    return io.Image.Input("image", optional=True, tooltip="The image that a BOUNDING_BOX was drawn on.")


def image_size(image: Any) -> tuple[int, int] | None:
    """(H, W) of an optional IMAGE [B, H, W, 3]."""
    return None if image is None else tuple(image.shape[1:3])
