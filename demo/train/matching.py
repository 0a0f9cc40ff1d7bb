"""The image half of the demo's `Blip2ForImageTextRetrieval`: does a caption match an image (ITM, ITC)?

The text half is f_enc of eq. 4 and stays as it is, bit for bit. As in BLIP-2 the ViT is frozen; it is the captioner's,
which was trained on far more scenes than f_enc's. The queries, their layers and both heads are trained.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

from .data import Scenes, roughen
from .fit import Recipe, fit
from .text_tower import contrast, draw_captions, embed_images, matching, read_texts

RECIPE = Recipe(steps=600, batch=64, lr=1e-3, bf16=False)
IMAGE_HALF = ("query_tokens", "crossattention", "intermediate_query", "output_query", "vision_projection", "itm_head")
"""Parts of the names of the trained weights."""


def train(scenes: Scenes, out: Path, device: str, recipe: Recipe) -> None:
    """Matching and contrastive loss with hard negatives, on the captioner's ViT. Rewrites `out/blip2_itm`."""
    folder = out / "blip2_itm"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    model = Blip2ForImageTextRetrieval.from_pretrained(folder).float()
    vit = Blip2ForConditionalGeneration.from_pretrained(out / "blip2_captioner").float().vision_model
    model.vision_model.load_state_dict(vit.state_dict())
    for name, weight in model.named_parameters():
        weight.requires_grad_(any(part in name for part in IMAGE_HALF))
    model.to(device).train()

    def loss_of(index: Tensor) -> Tensor:
        right, _, wrong = draw_captions([scenes.things[i] for i in index.tolist()], rng)
        with torch.no_grad():
            vision = model.vision_model(roughen(scenes.pixels(index, device))).last_hidden_state
        tokens = tokenizer(right + wrong, padding=True, return_tensors="pt").to(device)
        with torch.no_grad():
            text, _ = read_texts(model, tokens)
        return contrast(embed_images(model, vision), *text.split([len(right), len(wrong)])) + matching(
            model, vision, tokens
        )

    fit(recipe, [model], scenes, loss_of, "matching")
    model.eval().save_pretrained(folder)
