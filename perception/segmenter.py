"""SAM: boxes in, masks out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoImageProcessor, SamModel

from .images import to_pil
from .loading import from_folder


class Segmenter:
    """A `SamModel` with its image processor."""

    def __init__(self, model: SamModel, processor) -> None:
        self.model, self.processor = model.eval(), processor

    @classmethod
    def load(
        cls, folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Segmenter:
        """Read a Hugging Face folder of SAM, e.g. `sam-vit-base`."""
        model = from_folder(SamModel, folder, dtype=dtype).to(device)
        return cls(model, from_folder(AutoImageProcessor, folder))

    @torch.inference_mode()
    def masks(self, images: Tensor, boxes: Sequence[Tensor]) -> list[Tensor]:
        """images [B, H, W, 3] in [0, 1], boxes [n_i, 4] as fractions → each image's masks [n_i, H, W], 0 or 1.

        The images are encoded together; the mask of a box is decoded from its image's encoding.
        """
        height, width = images.shape[1:3]
        wanted = [i for i, own in enumerate(boxes) if len(own)]
        out = [torch.zeros(0, height, width) for _ in boxes]
        if not wanted:
            return out
        pictures = to_pil(images)
        inputs = self.processor(images=[pictures[i] for i in wanted], return_tensors="pt")
        scaled_height, scaled_width = inputs["reshaped_input_sizes"][0].tolist()
        pixels = inputs["pixel_values"].to(self.model.device, self.model.dtype)
        encoded = self.model.get_image_embeddings(pixels)
        scale = torch.tensor([scaled_width, scaled_height] * 2)
        for row, i in enumerate(wanted):
            prompt = (boxes[i] * scale)[None].to(self.model.device, self.model.dtype)  # [1, n, 4]
            logits = self.model(
                image_embeddings=encoded[row : row + 1], input_boxes=prompt, multimask_output=False
            ).pred_masks[0, :, :1]  # [n, 1, h, w]
            padded = F.interpolate(logits.float(), pixels.shape[-2:], mode="bilinear")
            real = padded[..., :scaled_height, :scaled_width]
            out[i] = (F.interpolate(real, (height, width), mode="bilinear")[:, 0] > 0).float().cpu()
        return out
