"""Inputs and outputs of the nodes, and checks of input values."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from comfy_api.latest import io

from ...core.errors import RealignError
from ...core.words import strip_weights
from .sockets import BoundingBox, GroundedSam, Regions, Tagger


def check_choice(what: str, value: str, options: Collection[str]) -> str:
    """The value of a Combo, if it is an option: older ComfyUIs do not check prompts that come through the API."""
    if value not in options:
        raise RealignError(f"'{value}' is no {what}: choose one of {', '.join(options)}.")
    return value


def output(kind: Any, name: str, tooltip: str) -> Any:
    return kind.Output(display_name=name, tooltip=tooltip)


def list_output(kind: Any, name: str, tooltip: str) -> Any:
    return kind.Output(display_name=name, tooltip=tooltip, is_output_list=True)


def combo_input(id: str, options: Iterable[str], tooltip: str, *, optional: bool = False) -> Any:
    """The first option is the default."""
    default, *others = options
    return io.Combo.Input(id, options=[default, *others], default=default, tooltip=tooltip, optional=optional)


def int_input(id: str, default: int, limits: tuple[int, int], tooltip: str, *, optional: bool = False) -> Any:
    low, high = limits
    return io.Int.Input(id, default=default, min=low, max=high, tooltip=tooltip, optional=optional)


def tagger_input() -> Any:
    return Tagger.Input("tagger", tooltip="From Load RAM or Load Demo Models.")


def grounded_sam_input() -> Any:
    return GroundedSam.Input("grounded_sam", tooltip="From Load Grounded-SAM or Load Demo Models.")


def batch_input(tooltip: str = "One image or a batch.") -> Any:
    return io.Image.Input("image", tooltip=tooltip)


def prompt_input(tooltip: str = "What the images should show, without quality tags. Weights are ignored.") -> Any:
    return io.String.Input("prompt", multiline=True, default="", tooltip=tooltip)


def checked_prompt(prompt: str, missing: str = "write what the images should show") -> str:
    """The prompt without its weights; a RealignError if it is empty."""
    if not prompt.strip():
        raise RealignError(f"The prompt is empty: {missing}.")
    return strip_weights(prompt)


def fraction_input(id: str, default: float, tooltip: str, *, step: float = 0.01, optional: bool = False) -> Any:
    return io.Float.Input(id, default=default, min=0.0, max=1.0, step=step, tooltip=tooltip, optional=optional)


def regions_input(tooltip: str, *, optional: bool = False) -> Any:
    """A socket that also takes masks, bounding boxes and JSON text: see `core.interchange.region_sets`."""
    kinds = [Regions, io.Mask, BoundingBox, io.String]
    others = "Also takes a MASK batch (one mask per object in the text, in order), BOUNDING_BOX or JSON text."
    return io.MultiType.Input("regions", kinds, optional=optional, tooltip=f"{tooltip} {others}")


def text_input(tooltip: str = "The prompt. Needed only for regions without one: masks, boxes, some JSON.") -> Any:
    return io.String.Input("text", optional=True, force_input=True, tooltip=tooltip)


def box_image_input() -> Any:
    tooltip = "The image that the boxes were drawn on; needed only for boxes in pixels. Only its size is used."
    return io.Image.Input("image", optional=True, tooltip=tooltip)


def image_size(image: Any) -> tuple[int, int] | None:
    """(H, W) of an optional IMAGE [B, H, W, 3]."""
    return None if image is None else tuple(image.shape[1:3])
