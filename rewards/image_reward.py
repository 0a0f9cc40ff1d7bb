"""ImageReward: human preference, learnt from people's choices among images of the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..checkpoints.files import weights_file
from ..checkpoints.image_reward import ImageRewardNetworks, load_image_reward
from ..checkpoints.tokenizers import bert_tokenizer
from ..core.errors import RealignError
from .preprocessing import Preprocessing
from .reward import Judgement, Reward, check_pairs

if TYPE_CHECKING:
    from .loading import RewardModels

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Mean and deviation of the head's output on the authors' data, published with the weights."""
TOKENS = 35
"""The length to which prompts are cut and padded."""
MARKS = ("[DEC]", "[ENC]")
"""The tokens that BLIP adds to BERT's vocabulary. No text begins with one: the published code leaves [CLS] first."""


class ImageReward(Reward):
    """How much people prefer the image for its prompt: normalised, about −2.3 to 2.3; 0 is average.

    arXiv 2304.05977. BLIP reads the prompt while it sees the image; a head of linear layers scores the first position.
    Differentiable.
    """

    name, differentiable = "image-reward", True

    def __init__(self, parts: ImageRewardNetworks, tokenizer) -> None:
        self.vision, self.text, self.head = parts
        self.tokenizer = tokenizer
        side = self.vision.config.image_size
        self.preprocessing = Preprocessing(side, (side, side))
        for network in parts:
            network.eval().requires_grad_(False)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        tokenizer: str | Path | None = None,
    ) -> ImageReward:
        """Read `ImageReward.pt`, or the folder that holds it.

        tokenizer: the folder of bert-base-uncased's tokenizer; searched for beside the file where not given.
        """
        file = weights_file(path)
        if file is None:
            raise RealignError(f"There is no ImageReward in '{path}': give the path of its ImageReward.pt.")
        parts = load_image_reward(file, dtype)
        loaded = bert_tokenizer(file, parts.text.config.vocab_size, tokenizer, MARKS)
        return cls(ImageRewardNetworks(*(network.to(device) for network in parts)), loaded)

    def judge(self, images: Tensor, prompts: Sequence[str]) -> Judgement:
        """Scores of about -2.3 to 2.3."""
        check_pairs(images, prompts)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self.vision.device)
        pixels = self.preprocessing(images.to(self.vision.device)).to(self.vision.dtype)
        image_embeds = self.vision(pixel_values=pixels).last_hidden_state
        first = self.text(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=image_embeds,
            encoder_attention_mask=torch.ones(image_embeds.shape[:2], dtype=torch.long, device=image_embeds.device),
        ).last_hidden_state[:, 0]
        return Judgement((self.head(first.float())[:, 0] - MEAN) / STD)

    def networks(self) -> tuple[nn.Module, ...]:
        return self.vision, self.text, self.head


def load(models: RewardModels) -> ImageReward:
    return models.read(ImageReward, "image_reward")
