"""What happened to one prompt of the demo world, as JSON: `pipeline.report` and the judge's verdict."""

from __future__ import annotations

from typing import Any

from ..core.images import to_uint8
from ..pipeline.realign import CaptionedImage, RealignResult, RealignSettings
from ..pipeline.report import report as told
from .judge import detect, judge
from .world import parse


def report(result: RealignResult, settings: RealignSettings) -> dict[str, Any]:
    """`pipeline.report.report`, to whose `before` and `after` the judge adds what it sees.

    `judge` is None for a prompt that names no coloured shape: there is nothing to hold the image against.
    """
    pairs = parse(result.prompt)
    out = told(result, settings)
    out["before"] |= _judged(result.before, pairs)
    out["after"] |= _judged(result.after, pairs)
    return out


def _judged(look: CaptionedImage, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    pixels = to_uint8(look.image[None])[0]
    return {
        "judge": judge(pixels, pairs)._asdict() if pairs else None,
        "judge_sees": [" ".join(pair) for pair in detect(pixels)],
    }
