"""The demo CLIP: `CLIPModel`, a ViT and a causal text transformer that meet in one vector each.

Trained as NegCLIP is, each image also against captions with a colour or shape changed or two swapped: without those a
CLIP scores a bag of words. The ViT starts as the captioner's, which knows shapes that a contrast alone learns late or
never; both towers are asked which coloured shapes their vector stands for.
"""

from __future__ import annotations

import itertools
import math
import random
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
from .data import Scenes, roughen
from .fit import Recipe, fit
from .patches import PatchLabels
from .text_to_image import text_config
from .text_tower import draw_captions

RECIPE = Recipe(steps=1200, batch=64, lr=1e-3, bf16=False)
MAX_LOGIT_SCALE = math.log(100)
PAIRS: dict[tuple[str, str], int] = {pair: i for i, pair in enumerate(itertools.product(COLORS, SHAPES))}


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A small CLIP with random weights; its ViT has the captioner's measures."""
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

    CLIP's patches have no bias: it moves into their places. CLIP has one norm more, in front: it gets the spread that
    the ViT has there on `pixels` [B, 3, H, W], so that what follows adds to numbers of the size it knows.
    """
    seen, own = blip.embeddings, vision.embeddings
    own.class_embedding.copy_(seen.class_embedding[0, 0])
    own.patch_embedding.weight.copy_(seen.patch_embedding.weight)
    own.position_embedding.weight.copy_(seen.position_embedding[0])
    own.position_embedding.weight[1:] += seen.patch_embedding.bias
    vision.pre_layrnorm.weight.fill_(seen(pixels).std(dim=-1).mean())
    for theirs, ours in zip(blip.encoder.layers, vision.encoder.layers, strict=True):
        state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("self_attn")}
        for kind in ("weight", "bias"):
            thirds = getattr(theirs.self_attn.qkv, kind).chunk(3)
            state |= {f"self_attn.{part}_proj.{kind}": third for part, third in zip("qkv", thirds, strict=True)}
            state[f"self_attn.out_proj.{kind}"] = getattr(theirs.self_attn.projection, kind)
        ours.load_state_dict(state)
    vision.post_layernorm.load_state_dict(blip.post_layernorm.state_dict())


def train(
    scenes: Scenes, tokenizer: CLIPTokenizer, captioner: Path, folder: Path, device: str, recipe: Recipe = RECIPE
) -> CLIPModel:
    """Contrast with hard negatives, starting from the ViT of the model in `captioner`. Saves to `folder`."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    model = build(tokenizer)
    eyes = Blip2ForConditionalGeneration.from_pretrained(captioner).float().vision_model
    start_from(eyes, model.vision_model, scenes.pixels(torch.arange(250), "cpu"))
    model.to(device).train()
    patches = PatchLabels(scenes, device, VISION.hidden_size)
    named = nn.Linear(model.config.projection_dim, len(PAIRS)).to(device)

    def loss_of(batch: int) -> Tensor:
        index = torch.randint(len(scenes), (batch,))
        right, _, wrong = draw_captions([scenes.things[i] for i in index.tolist()], rng)
        looked = model.vision_model(roughen(scenes.pixels(index, device)))
        words = tokenizer(right + wrong, padding=True, return_tensors="pt").to(device)
        image = model.visual_projection(looked.pooler_output).float()
        text = model.text_projection(model.text_model(**words).pooler_output).float()
        truth = pair_labels(right + wrong).to(device)
        dense = _named(named(image), truth[:batch]) + _named(named(text), truth)
        scale = model.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        contrast = _contrast(scale, image, text[:batch], text[batch:], truth[:batch])
        return contrast + dense + patches.loss(looked.last_hidden_state, index)

    fit(recipe, [model, patches.head, named], loss_of, "clip")
    model.eval().save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return model


def image_processor() -> CLIPImageProcessor:
    """64 x 64, [-1, 1]."""
    half = [0.5, 0.5, 0.5]
    square = {"height": SIZE, "width": SIZE}
    return CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=square, image_mean=half, image_std=half)


def pair_labels(captions: list[str]) -> Tensor:
    """Which (color, shape) pairs each of N captions names: [N, 42] of 0 and 1."""
    labels = torch.zeros(len(captions), len(PAIRS))
    for row, text in zip(labels, captions, strict=True):
        row[[PAIRS[pair] for pair in parse(text)]] = 1
    return labels


def _named(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of the pairs [N, 42], summed over the pairs: few of them are there."""
    return F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="sum") / len(truth)


def _contrast(scale: Tensor, image: Tensor, right: Tensor, wrong: Tensor, truth: Tensor) -> Tensor:
    """Images [B, E] against all captions [B, E] and their own wrong ones [B x n, E]; captions against all images.

    truth: [B, 42], by which scenes that show the same are no negatives of each other.
    """
    same = (truth @ truth.T == truth.sum(1)) & (truth.sum(1)[:, None] == truth.sum(1))
    same.fill_diagonal_(False)
    plain = (scale * image @ right.T).masked_fill(same, -torch.inf)
    own = scale * torch.einsum("be,bne->bn", image, wrong.unflatten(0, (len(image), -1)))
    label = torch.arange(len(image), device=image.device)
    return F.cross_entropy(torch.cat([plain, own], dim=1), label) + F.cross_entropy(plain.T, label)
