"""The caption reward (eq. 4 of the paper): does a captioner say what the prompt says?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..core.errors import RealignError
from ..perception.captioner import Captioner
from ..perception.text_encoder import TextEncoder


class CaptionRewards(NamedTuple):
    """The reward of each image and the caption it rests on."""

    scores: Tensor
    """[B] in [-1, 1]."""
    captions: list[str]


class CaptionReward:
    """R_cap = cos(f_enc(t_g), f_enc(t_p)), t_g the caption BLIP-2 gives the image and t_p the prompt."""

    def __init__(self, captioner: Captioner, text_encoder: TextEncoder) -> None:
        self.captioner, self.text_encoder = captioner, text_encoder

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> CaptionRewards:
        """images [B, H, W, 3] in [0, 1] and a prompt each → rewards in [-1, 1] and captions; no gradient."""
        if len(images) != len(prompts):
            raise RealignError(f"There are {len(images)} images and {len(prompts)} prompts; give one prompt an image.")
        captions = self.captioner.caption(images)
        return CaptionRewards(self.similarity(captions, prompts), captions)

    def similarity(self, captions: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """cos(f_enc(t_g), f_enc(t_p)) of eq. 4 for each pair of texts: [B] in [-1, 1]."""
        embedded = self.text_encoder.embed([*captions, *prompts])
        caption, prompt = embedded.chunk(2)
        return (caption * prompt).sum(-1)  # eq. 4
