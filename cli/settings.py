"""Options for the settings of re-alignment (`RealignSettings`)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..pipeline.realign import RealignSettings


def _number_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)


SAMPLING = {
    "steps": (int, "DDIM steps (the paper: 50)"),
    "cfg": (float, "classifier-free guidance (the paper: 7.5)"),
}
LOOP = {
    "isolate_phrases": (
        bool,
        "encode the regions' phrases alone, as DenseDiffusion's code does (yes; with the demo model no)",
    ),
    "gate": (_number_or_none, "leave images with at least this caption reward alone; none: no image"),
    "keep_better": (bool, "keep the coarse image unless the re-aligned one has a higher reward"),
    "tag_threshold": (_number_or_none, "least confidence of a tag; none: each tag's own threshold (none)"),
    "box_threshold": (float, "least grounding score of a box"),
    "boxes": (("one", "all"), "how many boxes a phrase may take"),
    "nms": (float, "IoU from which two boxes count as the same object"),
    "min_area": (float, "least fraction of the image that a mask must cover"),
}
MODULATION = {
    "cross_strength": (float, "strength of re-weighting in cross-attention (1.0)"),
    "self_strength": (float, "strength of re-weighting in self-attention (0.3)"),
    "power": (float, "exponent of the strength's decay over the steps (5)"),
    "start": (float, "fraction of the steps at which re-weighting starts (0)"),
    "end": (float, "fraction of the steps at which re-weighting ends (0.3; with the demo model 0.5)"),
    "outside": (float, "weight of tokens that belong to no phrase (1)"),
}


def add_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options. One that is not given leaves no attribute, so that `settings_of` keeps the default."""
    for name, (kind, meaning) in {**SAMPLING, **LOOP, **MODULATION}.items():
        key = "choices" if isinstance(kind, tuple) else "type"
        argument: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if kind is bool else {key: kind}
        parser.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=meaning, **argument)


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
