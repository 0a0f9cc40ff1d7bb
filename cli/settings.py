"""Options for the settings of re-alignment (`RealignSettings`)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..pipeline.realign import RealignSettings

SAMPLING = ("steps", "cfg")
LOOP = ("isolate_phrases", "gate", "keep_better", "tag_threshold", "box_threshold", "boxes", "nms", "min_area")
MODULATION = {
    "cross_strength": "strength of re-weighting in cross-attention (1.0)",
    "self_strength": "strength of re-weighting in self-attention (0.3)",
    "power": "exponent of the strength's decay over the steps (5)",
    "start": "fraction of the steps at which re-weighting starts (0)",
    "end": "fraction of the steps at which re-weighting ends (0.3; with the demo model 0.5)",
    "outside": "weight of tokens that belong to no phrase (1)",
}


def add_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options. One that is not given leaves no attribute, so that `settings_of` keeps the default."""

    def add(name: str, help: str, **argument: Any) -> None:
        parser.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=help, **argument)

    add("steps", "DDIM steps (the paper: 50)", type=int)
    add("cfg", "classifier-free guidance (the paper: 7.5)", type=float)
    add(
        "isolate_phrases",
        "encode the regions' phrases alone, as DenseDiffusion's code does (yes; with the demo model no)",
        action=argparse.BooleanOptionalAction,
    )
    add("gate", "leave images with at least this caption reward alone; none: no image", type=_number_or_none)
    add(
        "keep_better",
        "keep the coarse image unless the re-aligned one has a higher reward",
        action=argparse.BooleanOptionalAction,
    )
    add("tag_threshold", "least confidence of a tag; none: each tag's own threshold (none)", type=_number_or_none)
    add("box_threshold", "least grounding score of a box", type=float)
    add("boxes", "how many boxes a phrase may take", choices=("one", "all"))
    add("nms", "IoU from which two boxes count as the same object", type=float)
    add("min_area", "least fraction of the image that a mask must cover", type=float)
    for name, meaning in MODULATION.items():
        add(name, meaning, type=float)


def settings_of(options: argparse.Namespace, defaults: RealignSettings) -> RealignSettings:
    """`defaults`, changed by the options that were given."""

    def given(names: Iterable[str]) -> dict[str, object]:
        return {name: value for name, value in vars(options).items() if name in names}

    return replace(
        defaults,
        sampling=replace(defaults.sampling, **given(SAMPLING)),
        modulation=replace(defaults.modulation, **given(MODULATION)),
        **given(LOOP),
    )


def _number_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)
