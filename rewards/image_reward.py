"""ImageReward: what people prefer, learnt from their choices among images of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoints.files import weights_file
from ..checkpoints.image_reward import ImageRewardNetworks, load_image_reward
from ..checkpoints.tokenizers import bert_tokenizer
from ..core.errors import RealignError
from .preprocessing import Preprocessing
from .reward import check_pairs

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's values on the authors' data; published with the weights."""
TOKENS = 35
"""A prompt is cut and padded to so many."""
MARKS = ("[DEC]", "[ENC]")
"""What BLIP's vocabulary has beside BERT's. No text begins with them: the published code leaves [CLS] first."""


class ImageReward:
    """Preference of people for an image given its prompt: unbounded, normalised, about −2.3 to 2.3; 0 is average.

    arXiv 2304.05977. BLIP reads the prompt while it looks at the image, a head of linear layers judges the first
    position. Differentiable.
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

        Raises:
            RealignError: a file is missing, damaged or another model's.
        """
        file = weights_file(path)
        if file is None:
            raise RealignError(f"There is no ImageReward in '{path}': give the path of its ImageReward.pt.")
        parts = load_image_reward(file, dtype)
        words = bert_tokenizer(file, parts.text.config.vocab_size, tokenizer, MARKS)
        return cls(ImageRewardNetworks(*(network.to(device) for network in parts)), words)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """images [B, H, W, 3] in [0, 1] and a prompt each → [B]."""
        check_pairs(images, prompts)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self.vision.device)
        pixels = self.preprocessing(images.to(self.vision.device)).to(self.vision.dtype)
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        ).last_hidden_state[:, 0]
        return (self.head(read.float())[:, 0] - MEAN) / STD

    def networks(self) -> tuple[nn.Module, ...]:
        """BLIP's two halves and the head."""
        return self.vision, self.text, self.head
