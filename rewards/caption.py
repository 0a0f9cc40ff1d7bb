"""The caption reward (eq. 4 of the paper): does a captioner say what the prompt says?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..perception.captioner import Captioner
from ..perception.text_encoder import TextEncoder
from .reward import Judgement, Reward, check_pairs

if TYPE_CHECKING:
    from .loading import RewardModels


class CaptionReward(Reward):
    """R_cap = cos(f_enc(t_g), f_enc(t_p)), in [-1, 1] (eq. 4).

    t_g is BLIP-2's caption of the image, t_p the prompt, f_enc the text encoder. A caption is discrete
    text, so there is no gradient; `caption_gradient` estimates one.
    """

    name, differentiable = "caption", False

    def __init__(self, captioner: Captioner, text_encoder: TextEncoder) -> None:
        self.captioner, self.text_encoder = captioner, text_encoder

    def judge(self, images: Tensor, prompts: Sequence[str]) -> Judgement:
        """Scores in [-1, 1], and the captions."""
        check_pairs(images, prompts)
        captions = self.captioner.caption(images)
        return Judgement(self.similarity(captions, prompts), captions=tuple(captions))

    def similarity(self, captions: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """cos(f_enc(t_g), f_enc(t_p)) of eq. 4 for each pair of texts: [B] in [-1, 1]."""
        embedded = self.text_encoder.embed([*captions, *prompts])
        caption, prompt = embedded.chunk(2)
        return (caption * prompt).sum(-1)  # embeddings have norm 1

    def networks(self) -> tuple[nn.Module, ...]:
        return self.captioner.model, self.text_encoder.model


def load(models: RewardModels) -> CaptionReward:
    """Load the reward `caption`; its text encoder stays in float32."""
    text_encoder = models.read(TextEncoder, "text_encoder", dtype=torch.float32)
    return CaptionReward(models.read(Captioner, "captioner"), text_encoder)
