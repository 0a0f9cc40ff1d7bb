"""The demo CLIP: `CLIPModel`, a ViT and a causal text transformer with one embedding each.

As NegCLIP it is also trained on captions with a colour or shape changed or two swapped: without them, a CLIP scores
bags of words. The ViT starts as the captioner's, which knows shapes; a contrastive loss alone learns them late or
never. Both embeddings also predict which coloured shapes they stand for.
"""

from __future__ import annotations

import itertools
import math
import random
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2VisionModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from ..world import COLORS, SHAPES, SIZE, parse
from .captioner import VISION
from .data import PatchLabels, Scenes, roughen
from .fit import Recipe, fit, save
from .text_to_image import text_config
from .text_tower import draw_captions
from .vocabulary import clip_tokenizer

RECIPE = Recipe(steps=1200, batch=64, lr=1e-3, bf16=False)
MAX_LOGIT_SCALE = math.log(100)
PAIRS: dict[tuple[str, str], int] = {pair: i for i, pair in enumerate(itertools.product(COLORS, SHAPES))}


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A small CLIP with random weights; its ViT has the captioner's sizes."""
    text = text_config(tokenizer)
    vision = CLIPVisionConfig(
        **{name: getattr(VISION, name) for name in ("hidden_size", "intermediate_size", "image_size", "patch_size")},
        **{name: getattr(VISION, name) for name in ("num_hidden_layers", "num_attention_heads", "layer_norm_eps")},
        hidden_act=VISION.hidden_act,
        projection_dim=text.projection_dim,
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=text.projection_dim)
    )


@torch.no_grad()
def start_from(blip: Blip2VisionModel, vision: Any, pixels: Tensor) -> None:
    """Give CLIP's ViT the weights of a BLIP-2's.

    CLIP's patch embedding has no bias; it is added to the position embeddings. CLIP has one more norm, in front: its
    weight is the standard deviation at that place of BLIP-2's ViT on `pixels` [B, 3, H, W], which keeps the scale.
    """
    source, target = blip.embeddings, vision.embeddings
    target.class_embedding.copy_(source.class_embedding[0, 0])
    target.patch_embedding.weight.copy_(source.patch_embedding.weight)
    target.position_embedding.weight.copy_(source.position_embedding[0])
    target.position_embedding.weight[1:] += source.patch_embedding.bias
    vision.pre_layrnorm.weight.fill_(source(pixels).std(dim=-1).mean())
    for theirs, ours in zip(blip.encoder.layers, vision.encoder.layers, strict=True):
        state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("self_attn")}
        for kind in ("weight", "bias"):
            thirds = getattr(theirs.self_attn.qkv, kind).chunk(3)
            state |= {f"self_attn.{part}_proj.{kind}": third for part, third in zip("qkv", thirds, strict=True)}
            state[f"self_attn.out_proj.{kind}"] = getattr(theirs.self_attn.projection, kind)
        ours.load_state_dict(state)
    vision.post_layernorm.load_state_dict(blip.post_layernorm.state_dict())


def train(scenes: Scenes, out: Path, device: str, recipe: Recipe) -> None:
    """Contrastive loss with hard negatives, starting from the captioner's ViT. Saves to `out/clip`."""
    tokenizer = clip_tokenizer(out / "clip")
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    model = build(tokenizer)
    vit = Blip2ForConditionalGeneration.from_pretrained(out / "blip2_captioner").float().vision_model
    start_from(vit, model.vision_model, scenes.pixels(torch.arange(250), "cpu"))
    model.to(device).train()
    patches = PatchLabels(scenes, device, VISION.hidden_size)
    pair_head = nn.Linear(model.config.projection_dim, len(PAIRS)).to(device)

    def loss_of(index: Tensor) -> Tensor:
        right, _, wrong = draw_captions([scenes.things[i] for i in index.tolist()], rng)
        vision = model.vision_model(roughen(scenes.pixels(index, device)))
        words = tokenizer(right + wrong, padding=True, return_tensors="pt").to(device)
        image = model.visual_projection(vision.pooler_output).float()
        text = model.text_projection(model.text_model(**words).pooler_output).float()
        truth, batch = pair_labels(right + wrong).to(device), len(index)
        pair_loss = partial(F.binary_cross_entropy_with_logits, reduction="sum")  # over the pairs: an image has few
        pairs = pair_loss(pair_head(image).float(), truth[:batch]) / batch
        pairs = pairs + pair_loss(pair_head(text).float(), truth) / len(truth)
        scale = model.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        contrast = _contrast(scale, image, text[:batch], text[batch:], truth[:batch])
        return contrast + pairs + patches.loss(vision.last_hidden_state, index)

    fit(recipe, [model, patches.head, pair_head], scenes, loss_of, "clip")
    half, square = [0.5, 0.5, 0.5], {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=square, image_mean=half, image_std=half)
    save(out / "clip", model, images)


def pair_labels(captions: list[str]) -> Tensor:
    """Which (color, shape) pairs each of N captions names: [N, 42] of 0 and 1."""
    labels = torch.zeros(len(captions), len(PAIRS))
    for row, text in zip(labels, captions, strict=True):
        row[[PAIRS[pair] for pair in parse(text)]] = 1
    return labels


def _contrast(scale: Tensor, image: Tensor, right: Tensor, wrong: Tensor, truth: Tensor) -> Tensor:
    """Images [B, E] against all captions [B, E] and their own wrong ones [B x n, E]; captions against all images.

    truth: [B, 42]; scenes with the same pairs are not negatives of each other.
    """
    same = (truth @ truth.T == truth.sum(1)) & (truth.sum(1)[:, None] == truth.sum(1))
    same.fill_diagonal_(False)
    plain = (scale * image @ right.T).masked_fill(same, -torch.inf)
    hard = scale * torch.einsum("be,bne->bn", image, wrong.unflatten(0, (len(image), -1)))
    label = torch.arange(len(image), device=image.device)
    return F.cross_entropy(torch.cat([plain, hard], dim=1), label) + F.cross_entropy(plain.T, label)
