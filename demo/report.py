"""The result for one prompt of the demo world, as JSON: `pipeline.realign.report` and the judge's verdict."""

from __future__ import annotations

from typing import Any

from ..core.images import to_uint8
from ..pipeline.realign import CaptionedImage, RealignResult, RealignSettings, report
from .judge import detect, judge
from .world import parse


def judged_report(result: RealignResult, settings: RealignSettings) -> dict[str, Any]:
    """`pipeline.realign.report`, with `judge` and `judge_sees` added to `before` and `after`.

    `judge` is None for a prompt that names no coloured shape: there is nothing to compare the image with.
    """
    pairs = parse(result.prompt)
    out = report(result, settings)
    out["before"] |= _judge(result.before, pairs)
    out["after"] |= _judge(result.after, pairs)
    return out


def _judge(image: CaptionedImage, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    pixels = to_uint8(image.image[None])[0]
    return {
        "judge": judge(pixels, pairs)._asdict() if pairs else None,
        "judge_sees": [" ".join(pair) for pair in detect(pixels)],
    }
