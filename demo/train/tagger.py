"""The demo tagger: our RAM module on 64 x 64 images, with a tag for each shape and colour."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import Tensor

from ...checkpoints.networks.ram import Ram, RamConfig
from ..world import SIZE, TAGS
from .data import PatchLabels, Scenes, imagenet, roughen
from .fit import Recipe, fit

RECIPE = Recipe(steps=1800, batch=64, lr=1e-3)
CONFIG = RamConfig(
    image_size=SIZE,
    num_tags=len(TAGS),
    embed_dim=32,
    depths=(2, 4),
    num_heads=(2, 4),
    window_size=4,
    image_width=64,
    label_width=32,
    head={"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
)


def train(scenes: Scenes, out: Path, device: str, recipe: Recipe) -> None:
    """Multi-label cross-entropy and patch labels. Saves weights, config and RAM's two text files to `out/ram`."""
    torch.manual_seed(recipe.seed)
    model = Ram(CONFIG).to(device).train()
    patches = PatchLabels(scenes, device, CONFIG.image_width)
    targets = torch.tensor(
        [[float(tag in {w for t in things for w in t.pair}) for tag in TAGS] for things in scenes.things],
        device=device,
    )

    def loss_of(index: Tensor) -> Tensor:
        tokens = model.image_tokens(roughen(imagenet(scenes.pixels(index, device))))
        tag_loss = F.binary_cross_entropy_with_logits(model.classify(tokens).float(), targets[index.to(device)])
        return tag_loss + patches.loss(tokens, index)

    fit(recipe, [model, patches.head], scenes, loss_of, "tagger")
    folder = out / "ram"
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=1) + "\n", encoding="utf-8")
    (folder / "ram_tag_list.txt").write_text("\n".join(TAGS) + "\n", encoding="utf-8")
    (folder / "ram_tag_list_threshold.txt").write_text("0.5\n" * len(TAGS), encoding="utf-8")
