"""The caption reward (eq. 4 of the paper): does a captioner say what the prompt says?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ..perception.captioner import Captioner
from ..perception.text_encoder import TextEncoder
from .reward import check_pairs


class CaptionRewards(NamedTuple):
    """The reward of each image and the caption it rests on."""

    scores: Tensor
    """[B] in [-1, 1]."""
    captions: list[str]


class CaptionReward:
    """R_cap = cos(f_enc(t_g), f_enc(t_p)), t_g the caption BLIP-2 gives the image and t_p the prompt: [−1, 1].

    Eq. 4. A caption is discrete text, so there is no gradient; `caption_gradient` estimates one.
    """

    name, differentiable = "caption", False

    def __init__(self, captioner: Captioner, text_encoder: TextEncoder) -> None:
        self.captioner, self.text_encoder = captioner, text_encoder

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """images [B, H, W, 3] in [0, 1] and a prompt each → [B] in [-1, 1]."""
        return self.with_captions(images, prompts).scores

    def with_captions(self, images: Tensor, prompts: Sequence[str]) -> CaptionRewards:
        """The same with the captions."""
        check_pairs(images, prompts)
        captions = self.captioner.caption(images)
        return CaptionRewards(self.similarity(captions, prompts), captions)

    def similarity(self, captions: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """cos(f_enc(t_g), f_enc(t_p)) of eq. 4 for each pair of texts: [B] in [-1, 1]."""
        embedded = self.text_encoder.embed([*captions, *prompts])
        caption, prompt = embedded.chunk(2)
        return (caption * prompt).sum(-1)  # eq. 4

    def networks(self) -> tuple[nn.Module, ...]:
        """Captioner and f_enc."""
        return self.captioner.model, self.text_encoder.model
