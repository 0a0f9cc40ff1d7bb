"""BLIP-2 as a captioner: images in, what they show in words out (t_g of eq. 4)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, Blip2ForConditionalGeneration

from .images import to_pil
from .loading import from_folder

MAX_TOKENS = 32


class Captioner:
    """A `Blip2ForConditionalGeneration` with its tokenizer and image processor."""

    def __init__(self, model: Blip2ForConditionalGeneration, tokenizer, processor) -> None:
        self.model, self.tokenizer, self.processor = model.eval(), tokenizer, processor

    @classmethod
    def load(
        cls, folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Captioner:
        """Read a Hugging Face folder of BLIP-2, e.g. `blip2-opt-2.7b`."""
        model = from_folder(Blip2ForConditionalGeneration, folder, dtype=dtype).to(device)
        return cls(model, from_folder(AutoTokenizer, folder), from_folder(AutoImageProcessor, folder))

    @torch.inference_mode()
    def caption(self, images: Tensor, *, max_tokens: int = MAX_TOKENS) -> list[str]:
        """images [B, H, W, 3] in [0, 1] → one caption an image, by greedy search."""
        pixels = self.processor(images=to_pil(images), return_tensors="pt").pixel_values
        out = self.model.generate(
            pixel_values=pixels.to(self.model.device, self.model.dtype), max_new_tokens=max_tokens, do_sample=False
        )
        image_token = self.model.config.image_token_index
        rows = [[token for token in row if token != image_token] for row in out.tolist()]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]
