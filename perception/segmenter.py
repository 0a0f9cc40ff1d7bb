"""SAM and SAM 2: images and boxes → masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor
from transformers import SamModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from transformers.image_utils import IMAGENET_DEFAULT_STD as IMAGENET_STD

from ..checkpoints.files import weights_file
from ..checkpoints.folder_checks import check_folder
from ..checkpoints.folders import existing_folder, from_folder, pillow_processor
from ..checkpoints.sam import load_sam
from ..core.errors import RealignError
from ..core.images import to_pil

BOXES_AT_ONCE = 32  # masks decoded together; more would only need more memory

ImageProcessor = pillow_processor("SamImageProcessor")


class Segmenter:
    """A `SamModel` with its image processor; `Sam2Segmenter` for a `Sam2Model`."""

    def __init__(self, model: SamModel, processor: Any = None) -> None:
        self.model, self.processor = model.eval(), processor

    @classmethod
    def load(
        cls, path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Segmenter:
        """Read a SAM or a SAM 2.

        path: a Hugging Face folder, e.g. `sam2.1-hiera-large`; a file such as `sam_vit_h_4b8939.pth`, or its folder.
        """
        file = weights_file(path)
        if file is None:
            if str(check_folder(existing_folder(path)).get("model_type")).startswith("sam2"):
                if not hasattr(transformers, "Sam2Model"):
                    raise RealignError(
                        f"'{path}' holds a SAM 2, for which transformers {transformers.__version__} is too old (4.56 "
                        "is enough): update it, or choose a SAM."
                    )
                return Sam2Segmenter(from_folder(transformers.Sam2Model, path, dtype=dtype).to(device))
            model = from_folder(SamModel, path, dtype=dtype).to(device)
            return cls(model, from_folder(ImageProcessor, path))
        model = load_sam(file, dtype).to(device)
        side = model.config.vision_config.image_size
        return cls(model, ImageProcessor(size={"longest_edge": side}, pad_size={"height": side, "width": side}))

    def segment(self, images: Tensor, boxes: Sequence[Tensor]) -> list[Tensor]:
        """images [B, H, W, 3] in [0, 1], boxes [n_i, 4] as fractions → each image's masks [n_i, H, W], 0 or 1."""
        return [(logits > 0).float() for logits in self.logits(images, boxes)]

    @torch.inference_mode()
    def logits(self, images: Tensor, boxes: Sequence[Tensor]) -> list[Tensor]:
        """As `segment`, but logits: a pixel is the object's where its logit is above 0."""
        height, width = images.shape[1:3]
        wanted = [i for i, rows in enumerate(boxes) if len(rows)]
        out = [torch.zeros(0, height, width) for _ in boxes]
        if not wanted:
            return out
        pictures = to_pil(images)
        pixels, inside = self._pixels([pictures[i] for i in wanted])
        encoded = self.model.get_image_embeddings(pixels)
        scale = torch.tensor([inside[1], inside[0]] * 2)
        for row, i in enumerate(wanted):
            parts = []
            of_image = encoded[row, None] if isinstance(encoded, Tensor) else [level[row, None] for level in encoded]
            for chunk in (boxes[i] * scale).split(BOXES_AT_ONCE):
                coarse = self.model(
                    image_embeddings=of_image,
                    input_boxes=chunk[None].to(pixels),  # [1, n, 4]
                    multimask_output=False,
                ).pred_masks[0, :, :1]  # [n, 1, h, w]
                parts.append(self._upscale(coarse.float(), pixels.shape[-2:], inside, (height, width))[:, 0].cpu())
            out[i] = torch.cat(parts)
        return out

    def _pixels(self, pictures: list[Image.Image]) -> tuple[Tensor, tuple[int, int]]:
        """Pixels [B, 3, S, S] for the model, and the height and width of the image inside them, without padding."""
        inputs = self.processor(images=pictures, return_tensors="pt")
        height, width = inputs["reshaped_input_sizes"][0].tolist()
        return inputs["pixel_values"].to(self.model.device, self.model.dtype), (height, width)

    def _upscale(self, coarse: Tensor, padded: torch.Size, inside: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Logits [n, 1, h, w] of the padded square → [n, 1, H, W] of the image."""
        square = F.interpolate(coarse, padded, mode="bilinear")
        return F.interpolate(square[..., : inside[0], : inside[1]], size, mode="bilinear")


class Sam2Segmenter(Segmenter):
    """A `Sam2Model`; the image is stretched to a square, without transformers' processor, which needs torchvision."""

    def _pixels(self, pictures: list[Image.Image]) -> tuple[Tensor, tuple[int, int]]:
        side = self.model.config.prompt_encoder_config.image_size
        pixels = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])  # [B, H, W, 3]
        pixels = pixels.to(self.model.device).permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return ((pixels - mean) / std).to(self.model.dtype), (side, side)

    def _upscale(self, coarse: Tensor, padded: torch.Size, inside: tuple[int, int], size: tuple[int, int]) -> Tensor:
        return F.interpolate(coarse, size, mode="bilinear")
