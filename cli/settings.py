"""How a script re-aligns: an option for each of the loop's settings that people change."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..pipeline.realign import RealignSettings

SAMPLING = ("steps", "cfg")
LOOP = ("isolate_phrases", "gate", "keep_better", "tag_threshold", "box_threshold", "boxes", "nms", "min_area")
MODULATION = ("cross_strength", "self_strength", "power", "start", "end", "outside")


def add_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The options; one that is not given leaves no attribute, so that `chosen` takes its own value."""

    def add(name: str, help: str | None = None, **how: Any) -> None:
        parser.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=help, **how)

    add("steps", "DDIM steps (the paper: 50)", type=int)
    add("cfg", "classifier-free guidance (the paper: 7.5)", type=float)
    add(
        "isolate_phrases",
        "encode the regions' phrases alone, as DenseDiffusion's code does (yes; for the demo models no)",
        action=argparse.BooleanOptionalAction,
    )
    add("gate", "leave images alone whose caption reward is at least this; none: none is", type=_number_or_none)
    add("keep_better", "keep the image of the two with the higher reward", action=argparse.BooleanOptionalAction)
    add("tag_threshold", "of the tagger (each tag's own)", type=_number_or_none)
    add("box_threshold", type=float)
    add("boxes", "boxes that a phrase may take", choices=("one", "all"))
    add("nms", "IoU from which two boxes are one thing found twice", type=float)
    add("min_area", "fraction of the image that a mask must cover", type=float)
    for name in MODULATION:
        add(name, type=float)


def chosen(options: argparse.Namespace, defaults: RealignSettings) -> RealignSettings:
    """`defaults` with what the options say.

    Raises:
        RealignError: a value is out of its range.
    """
    given = vars(options)

    def of(names: tuple[str, ...]) -> dict[str, object]:
        return {name: given[name] for name in names if name in given}

    return replace(
        defaults,
        sampling=replace(defaults.sampling, **of(SAMPLING)),
        modulation=replace(defaults.modulation, **of(MODULATION)),
        **of(LOOP),
    )


def _number_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)
