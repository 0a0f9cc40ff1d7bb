"""The demo segmenter: `SamModel`, a box in, a mask out.

With the library's default scale of the random positional features (half the hidden size) a model of this size does not
learn from scratch; 1 works.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    SamConfig,
    SamImageProcessor,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from ..world import SIZE
from .data import Scenes, imagenet, roughen
from .fit import Recipe, fit, save

RECIPE = Recipe(steps=1500, batch=32, lr=1.5e-3, weight_decay=1e-4, bf16=False)
WIDTH, PATCH, JITTER = 32, 4, 2.5


def build() -> SamModel:
    """A small SAM with random weights."""
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=48,
            output_channels=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=3,
            image_size=SIZE,
            patch_size=PATCH,
            window_size=8,
            global_attn_indexes=[1, 2],
            mlp_dim=96,
            num_pos_feats=WIDTH // 2,
        ).to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=WIDTH, image_size=SIZE, patch_size=PATCH, mask_input_channels=4
        ).to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=WIDTH, mlp_dim=64, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=32
        ).to_dict(),
    )
    model = SamModel(config)
    with torch.no_grad():
        spread = torch.randn_like(model.shared_image_embedding.positional_embedding)
        model.shared_image_embedding.positional_embedding.copy_(spread)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(spread)
    return model


def train(scenes: Scenes, out: Path, device: str, recipe: Recipe) -> None:
    """Cross-entropy and dice on the mask of a jittered box, and the quality head. Saves to `out/sam`.

    scenes: with masks.
    """
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    model = build().to(device).train()

    def loss_of(index: Tensor) -> Tensor:
        boxes, truth = _boxes_and_masks(scenes, index.tolist(), rng)
        pixels = roughen(imagenet(scenes.pixels(index, device)))
        out = model(pixel_values=pixels, input_boxes=boxes.to(device), multimask_output=False)
        return _mask_loss(out.pred_masks[:, 0, 0], out.iou_scores[:, 0, 0], truth.to(device))

    fit(recipe, [model], scenes, loss_of, "segmenter")
    edge, square, low = (
        {"longest_edge": SIZE},
        {"height": SIZE, "width": SIZE},
        {"height": SIZE // 4, "width": SIZE // 4},
    )
    images = SamImageProcessor(size=edge, pad_size=square, mask_size=edge, mask_pad_size=low)
    save(out / "sam", model, images)


def _boxes_and_masks(scenes: Scenes, index: list[int], rng: random.Random) -> tuple[Tensor, Tensor]:
    """One thing per image: its jittered box [B, 1, 4] in pixels and its mask [B, 64, 64]."""
    assert scenes.masks is not None
    boxes, masks = [], []
    for i in index:
        k = rng.randrange(len(scenes.things[i]))
        boxes.append([v * SIZE + rng.uniform(-JITTER, JITTER) for v in scenes.things[i][k].box])
        masks.append(scenes.masks[i][k])
    return torch.tensor(boxes)[:, None], torch.from_numpy(np.stack(masks))


def _mask_loss(logits: Tensor, quality: Tensor, truth: Tensor) -> Tensor:
    """logits and truth [B, H, W], quality [B]: the predicted IoU."""
    probability = logits.sigmoid()
    overlap, total = (probability * truth).sum((1, 2)), (probability + truth).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    hard, real = logits > 0, truth > 0.5
    iou = (hard & real).sum((1, 2)) / (hard | real).sum((1, 2)).clamp(min=1)
    return 5 * F.binary_cross_entropy_with_logits(logits, truth) + dice.mean() + F.mse_loss(quality, iou.float())
