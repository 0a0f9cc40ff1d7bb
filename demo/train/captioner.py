"""The demo captioner: `Blip2ForConditionalGeneration`, a ViT, a Q-Former and an OPT.

Captions name the things from left to right, so that there is one right answer. With the caption loss alone, colours
are learnt at once and shapes never; so each patch of the ViT also predicts the shape that it belongs to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    OPTConfig,
    PreTrainedTokenizerBase,
)

from .. import world
from .data import PATCH, PatchLabels, Scenes, roughen
from .fit import Recipe, fit, save
from .vocabulary import word_tokenizer

RECIPE = Recipe(steps=4000, batch=64, lr=1e-3)
WIDTH, QUERIES = 64, 8
VISION = Blip2VisionConfig(
    hidden_size=96,
    intermediate_size=192,
    num_hidden_layers=3,
    num_attention_heads=3,
    image_size=world.SIZE,
    patch_size=PATCH,
)


def build(tokenizer: PreTrainedTokenizerBase) -> Blip2ForConditionalGeneration:
    """A small BLIP-2 with random weights."""
    text = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dropout=0.0,
    )
    config = Blip2Config(
        vision_config=VISION.to_dict(),
        qformer_config=qformer(WIDTH, 2, len(tokenizer)).to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return Blip2ForConditionalGeneration(config)


def qformer(width: int, depth: int, words: int, **options: Any) -> Blip2QFormerConfig:
    """A Q-Former that reads the ViT, with as many heads as layers."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "vocab_size": words}
    layers = {"num_hidden_layers": depth, "num_attention_heads": depth, "cross_attention_frequency": 1}
    return Blip2QFormerConfig(encoder_hidden_size=VISION.hidden_size, **sizes, **layers, **options)


def train(scenes: Scenes, out: Path, device: str, recipe: Recipe) -> None:
    """Caption loss and patch labels. Saves to `out/blip2_captioner`."""
    folder = out / "blip2_captioner"
    tokenizer = word_tokenizer(folder)
    torch.manual_seed(recipe.seed)
    model = build(tokenizer).to(device).train()
    patches = PatchLabels(scenes, device, VISION.hidden_size)
    ids, targets = (x.to(device) for x in _caption_ids(scenes, tokenizer, model.config.image_token_index))

    def loss_of(index: Tensor) -> Tensor:
        x = roughen(scenes.pixels(index, device))
        words = ids[index.to(device)]
        out = model(pixel_values=x, input_ids=words, attention_mask=(words != tokenizer.pad_token_id).long())
        logits = out.logits[:, QUERIES:-1].float()
        caption_loss = F.cross_entropy(logits.flatten(0, 1), targets[index.to(device), 1:].flatten(), ignore_index=-100)
        return caption_loss + patches.loss(out.vision_outputs.last_hidden_state, index)

    fit(recipe, [model, patches.head], scenes, loss_of, "captioner")
    save(folder, model, tokenizer, image_processor())


def image_processor() -> BlipImageProcessor:
    """64 x 64, [-1, 1]."""
    half = [0.5, 0.5, 0.5]
    return BlipImageProcessor(size={"height": world.SIZE, "width": world.SIZE}, image_mean=half, image_std=half)


def _caption_ids(scenes: Scenes, tokenizer: PreTrainedTokenizerBase, image_token: int) -> tuple[Tensor, Tensor]:
    """Input ids [N, QUERIES + L] (image places, then `</s> caption </s>`) and targets [N, L] (-100 at padding)."""
    captions = (world.caption([t.pair for t in sorted(things, key=lambda t: t.x)]) for things in scenes.things)
    texts = [f"</s> {caption} </s>" for caption in captions]
    encoded = tokenizer(texts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt")
    words, targets = encoded.input_ids, encoded.input_ids.masked_fill(encoded.attention_mask == 0, -100)
    return torch.cat([torch.full((len(words), QUERIES), image_token), words], dim=1), targets
