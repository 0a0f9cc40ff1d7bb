"""The demo detector: `GroundingDinoForObjectDetection`, words to boxes.

The loss replaces that of transformers 5.23, which adds a wrong offset to the labels of every image of a batch but the
first two, so that phrases are learnt at random. Each word is a target of its own: a blue circle matches the `blue` of
`blue square` but not its `square`. Half a match then scores half, as needed to assign mixed-up boxes to phrases.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    SwinConfig,
)

from ..world import COLORS, SHAPES, SIZE, Thing
from .data import Scenes, imagenet, roughen
from .fit import Recipe, fit, save
from .vocabulary import bert_tokenizer

RECIPE = Recipe(steps=2400, batch=32, lr=1e-3, weight_decay=1e-4, clip=0.5, bf16=False)
PHRASES = 4
FOCAL_GAMMA, BOX_WEIGHT, GIOU_WEIGHT = 2.0, 5.0, 2.0


def build() -> GroundingDinoForObjectDetection:
    """A small GroundingDINO with random weights."""
    swin = SwinConfig(
        image_size=SIZE,
        patch_size=4,
        embed_dim=24,
        depths=[2, 2, 1],
        num_heads=[2, 2, 4],
        window_size=4,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3"],
    )
    text = BertConfig(
        vocab_size=1030,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config=text,
        d_model=64,
        num_queries=12,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_feature_levels=3,
        max_text_len=48,
        dropout=0.0,
        auxiliary_loss=True,
        disable_custom_kernels=True,
    )
    return GroundingDinoForObjectDetection(config)


def train(scenes: Scenes, out: Path, device: str, recipe: Recipe) -> None:
    """Boxes and words, matched one-to-one at every decoder layer. Saves to `out/grounding_dino`."""
    folder = out / "grounding_dino"
    tokenizer = bert_tokenizer(folder)
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    model = build().to(device).train()
    model.loss_function = detection_loss

    def loss_of(index: Tensor) -> Tensor:
        things = [scenes.things[i] for i in index.tolist()]
        tokens = tokenizer([_query(t, rng) for t in things], padding=True, return_tensors="pt").to(device)
        labels = _labels(things, tokens.input_ids, tokenizer, model.config.max_text_len)
        pixels = roughen(imagenet(scenes.pixels(index, device)))
        return model(pixel_values=pixels, labels=labels, **tokens).loss

    fit(recipe, [model], scenes, loss_of, "grounding")
    images = GroundingDinoImageProcessor(size={"height": SIZE, "width": SIZE}, do_pad=False)
    save(folder, model, tokenizer, images)


def _query(things: tuple[Thing, ...], rng: random.Random) -> str:
    """A query for the things, some by shape or colour alone, among things that are not in the image."""
    asked = [f"{t.color} {t.shape}" for t in things]
    while len(asked) < PHRASES:
        asked.append(f"{rng.choice(list(COLORS))} {rng.choice(SHAPES)}")
    rng.shuffle(asked)
    queried = [words if (u := rng.random()) < 0.7 else words.split()[u > 0.85] for words in asked]
    return " . ".join(queried[: rng.randint(2, PHRASES)]) + " ."


def _labels(things: list[tuple[Thing, ...]], ids: Tensor, tokenizer: BertTokenizer, length: int) -> list[dict]:
    """For each image its boxes [n, 4] (cx, cy, w, h) and which tokens name each thing [n, length]."""
    words = {word: tokenizer.convert_tokens_to_ids(word) for word in (*COLORS, *SHAPES)}
    out = []
    for scene, row in zip(things, ids, strict=True):
        boxes = torch.tensor([[t.x, t.y, 2 * t.r, 2 * t.r] for t in scene], device=ids.device) / SIZE
        named = torch.stack([(row == words[t.color]) | (row == words[t.shape]) for t in scene]).float()
        out.append({"boxes": boxes, "tokens": F.pad(named, (0, length - named.shape[1]))})
    return out


def detection_loss(
    logits: Tensor, labels: list[dict], device, pred_boxes: Tensor, config, label_maps, text_mask: Tensor, **stages
) -> tuple[Tensor | int, dict, None]:
    """The loss of every decoder layer and of the encoder's proposals, in the signature the library calls.

    logits: [B, Q, L], one per token of the text; pred_boxes: [B, Q, 4]; text_mask: [B, Q, L], True at real tokens.
    """
    outputs = list(zip(stages["outputs_class"], stages["outputs_coord"], strict=True))
    outputs.append((stages["encoder_logits"], stages["encoder_pred_boxes"]))
    real = text_mask[:, :1]
    total = sum(_stage_loss(cls, box, labels, real) for cls, box in outputs)
    return total, {}, None


def _stage_loss(logits: Tensor, boxes: Tensor, labels: list[dict], real: Tensor) -> Tensor:
    """Focal loss on words and L1 + GIoU on matched boxes, per thing; logits [B, Q, L], real [B, 1, L]."""
    logits = logits.masked_fill(~real, -20.0).float()
    rows, queries, things = _match(logits, boxes, labels)
    wanted = torch.zeros_like(logits)
    wanted[rows, queries] = torch.cat([label["tokens"][i] for label, i in zip(labels, things, strict=True)])
    truth = torch.cat([label["boxes"][i] for label, i in zip(labels, things, strict=True)])
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    focal = cross_entropy * (1 - torch.exp(-cross_entropy)) ** FOCAL_GAMMA
    found = boxes[rows, queries].float()
    box = BOX_WEIGHT * (found - truth).abs().sum(-1) + GIOU_WEIGHT * (1 - _giou(found, truth))
    return (focal.masked_select(real.expand_as(focal)).sum() + box.sum()) / len(truth)


@torch.no_grad()
def _match(logits: Tensor, boxes: Tensor, labels: list[dict]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The cheapest one-to-one matching of queries with things: (batch rows, queries) and things of each image."""
    count = max(len(label["boxes"]) for label in labels)
    tokens = torch.stack([F.pad(label["tokens"], (0, 0, 0, count - len(label["tokens"]))) for label in labels])
    truth = torch.stack([F.pad(label["boxes"], (0, 0, 0, count - len(label["boxes"])), value=0.5) for label in labels])
    probability = logits.sigmoid()
    named = torch.einsum("bql,bnl->bqn", probability, tokens) / tokens.sum(-1).clamp(min=1)[:, None]
    cost = BOX_WEIGHT * torch.cdist(boxes.float(), truth, p=1) - 2 * named
    cost -= GIOU_WEIGHT * _giou(boxes.float()[:, :, None], truth[:, None])
    rows, queries, things = [], [], []
    for i, (matrix, label) in enumerate(zip(cost.cpu(), labels, strict=True)):
        q, n = (torch.from_numpy(v).to(logits.device) for v in linear_sum_assignment(matrix[:, : len(label["boxes"])]))
        rows.append(torch.full_like(q, i))
        queries.append(q)
        things.append(n)
    return torch.cat(rows), torch.cat(queries), things


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of broadcastable boxes [..., 4] as (cx, cy, w, h)."""
    a0, a1 = a[..., :2] - a[..., 2:] / 2, a[..., :2] + a[..., 2:] / 2
    b0, b1 = b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2
    both = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp(min=0).prod(-1)
    union = (a1 - a0).prod(-1) + (b1 - b0).prod(-1) - both
    hull = (torch.maximum(a1, b1) - torch.minimum(a0, b0)).prod(-1).clamp(min=1e-6)
    return both / union.clamp(min=1e-6) - (hull - union) / hull
