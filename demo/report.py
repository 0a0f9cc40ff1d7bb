"""What happened to one prompt, as JSON."""

from __future__ import annotations

from typing import Any

from ..perception.images import to_uint8
from ..pipeline.realign import Look, RealignResult, RealignSettings
from .judge import detect, judge
from .world import parse


def report(result: RealignResult, settings: RealignSettings) -> dict[str, Any]:
    """Prompt, seed, captions, rewards, regions, settings and the judge's verdict before and after.

    `judge` is None for a prompt that names no coloured shape: there is nothing to hold the image against.
    """
    pairs = parse(result.prompt)
    return {
        "prompt": result.prompt,
        "seed": result.seed,
        "verdict": result.verdict,
        "before": _told(result.before, pairs),
        "after": _told(result.after, pairs),
        **{key: value for key, value in result.regions.to_dict().items() if key != "prompt"},
        "settings": settings.to_dict(),
    }


def _told(look: Look, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    pixels = to_uint8(look.image[None])[0]
    return {
        "caption": look.caption,
        "caption_reward": round(look.reward, 4),
        "judge": judge(pixels, pairs)._asdict() if pairs else None,
        "judge_sees": [" ".join(pair) for pair in detect(pixels)],
    }
