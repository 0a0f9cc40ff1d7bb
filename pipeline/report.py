"""The result for one prompt, as JSON."""

from __future__ import annotations

from typing import Any

from .realign import CaptionedImage, RealignResult, RealignSettings


def report(result: RealignResult, settings: RealignSettings) -> dict[str, Any]:
    """Prompt, seed, verdict, captions and rewards before and after, regions with their notes, settings."""
    return {
        "prompt": result.prompt,
        "seed": result.seed,
        "verdict": result.verdict,
        "before": _caption(result.before),
        "after": _caption(result.after),
        **{key: value for key, value in result.regions.to_dict().items() if key != "prompt"},
        "settings": settings.to_dict(),
    }


def _caption(image: CaptionedImage) -> dict[str, Any]:
    return {"caption": image.caption, "caption_reward": round(image.reward, 4)}
