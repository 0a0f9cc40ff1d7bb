"""The header of an exported file, as kohya's tools and the Model Spec define it, with the training settings."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ..core.fingerprint import fingerprint_of_texts

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL_SIDE = 256  # the largest side of a thumbnail in pixels, as the Model Spec recommends
THUMBNAIL_BYTES = 32 * 1024  # the longest thumbnail, encoded: programs read each header when they list models


def run_metadata(
    title: str,
    *,
    steps: int,
    learning_rate: float,
    config: Mapping[str, Any],
    prompts: Sequence[str],
    description: str = "",
    reward_before: float | None = None,
    reward_after: float | None = None,
    resolution: int | None = None,
    prediction_type: str | None = None,
    thumbnail: Image.Image | None = None,
    date: datetime | None = None,
) -> dict[str, str]:
    """The header entries that describe the training run, for people and for programs that list models.

    title: also the output name in kohya's terms. config: all settings, written as JSON; of a Path only the last part
    (`training/publish.py` removes paths). prompts: the training prompts, of which only the SHA-256 is written.
    resolution: of the images, in pixels. prediction_type: diffusers' name for it. thumbnail: of any size; it is
    shrunk. date: now by default.
    """
    entries = {
        "ss_output_name": title,
        "ss_steps": steps,
        "ss_learning_rate": learning_rate,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.description": description or None,
        "modelspec.date": (date or datetime.now(timezone.utc)).isoformat(timespec="seconds"),
        "modelspec.resolution": resolution and f"{resolution}x{resolution}",
        "modelspec.prediction_type": "v" if prediction_type == "v_prediction" else prediction_type,
        "modelspec.thumbnail": thumbnail and _thumbnail(thumbnail),
        "realigndiff.config": json.dumps(
            dict(config), default=lambda x: x.name if isinstance(x, PurePath) else str(x), sort_keys=True
        ),
        "realigndiff.prompts_sha256": fingerprint_of_texts(prompts),
        "realigndiff.reward_before": reward_before,
        "realigndiff.reward_after": reward_after,
    }
    return {key: str(value) for key, value in entries.items() if value is not None}


def base_model(config: Mapping[str, Any]) -> tuple[str, str]:
    """The base model's names in kohya's tools and in the Model Spec, guessed from the kinds of layers."""
    if config.get("addition_embed_type") == "text_time":
        return "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"
    if config.get("use_linear_projection"):
        large = config.get("sample_size") == 96
        return ("sd_v2_v", "stable-diffusion-v2-768-v") if large else ("sd_v2", "stable-diffusion-v2-512")
    return "sd_v1", "stable-diffusion-v1"


def _thumbnail(image: Image.Image) -> str:
    """The image as a `data:` URL of at most THUMBNAIL_BYTES."""
    small = image.convert("RGB")
    side = THUMBNAIL_SIDE
    while True:
        small.thumbnail((side, side))
        jpeg = io.BytesIO()
        small.save(jpeg, "JPEG", quality=85)
        url = f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
        if len(url) <= THUMBNAIL_BYTES:
            return url
        side = side * 3 // 4
