"""The demo f_enc of eq. 4: `Blip2ForImageTextRetrieval`, whose Q-Former text tower embeds captions.

A contrastive loss compares images with captions, also with captions that have one colour or shape changed or two
swapped: without them only bags of words are learnt. A caption in two orders teaches that equal meanings are near.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForImageTextRetrieval, PreTrainedTokenizerBase

from ..world import COLORS, SHAPES, Thing, caption
from .captioner import QUERIES, VISION, image_processor, qformer
from .data import PatchLabels, Scenes, roughen
from .fit import Recipe, fit, save
from .vocabulary import bert_tokenizer

RECIPE = Recipe(steps=1600, batch=64, lr=1e-3)
WIDTH, EMBEDDING = 96, 64
TEMPERATURE = 0.07
HARD_NEGATIVES = 3
Pair = tuple[str, str]


def build(tokenizer: PreTrainedTokenizerBase) -> Blip2ForImageTextRetrieval:
    """A small BLIP-2 retrieval model with random weights."""
    text = {"use_qformer_text_input": True, "max_position_embeddings": 64}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = Blip2Config(
        vision_config=VISION.to_dict(),
        qformer_config=qformer(WIDTH, 3, len(tokenizer), **text, **no_dropout).to_dict(),
        num_query_tokens=QUERIES,
        image_text_hidden_size=EMBEDDING,
        image_token_index=None,
    )
    model = Blip2ForImageTextRetrieval(config)
    nn.init.normal_(model.query_tokens, std=0.02)
    return model


def wrong_pairs(pairs: list[Pair], rng: random.Random) -> list[Pair]:
    """The pairs with one colour or shape changed, or two things' colours (or shapes) swapped."""
    pairs = list(pairs)
    i = rng.randrange(len(pairs))
    part = rng.randrange(2)
    if len(pairs) > 1 and rng.random() < 0.5:
        j = rng.choice([k for k in range(len(pairs)) if k != i])
        if pairs[i][1 - part] != pairs[j][1 - part] and pairs[i][part] != pairs[j][part]:
            pairs[i], pairs[j] = _set(pairs[i], part, pairs[j][part]), _set(pairs[j], part, pairs[i][part])
            return pairs
    return changed_pairs(pairs, i, part, rng)


def changed_pairs(pairs: list[Pair], i: int, part: int, rng: random.Random) -> list[Pair]:
    """The pairs, the colour (part 0) or shape (part 1) of the one at `i` changed to one that none of them has."""
    options = [v for v in (COLORS, SHAPES)[part] if v not in [pair[part] for pair in pairs]]
    return [*pairs[:i], _set(pairs[i], part, rng.choice(options)), *pairs[i + 1 :]]


def _set(pair: Pair, part: int, value: str) -> Pair:
    return (value, pair[1]) if part == 0 else (pair[0], value)


def train(scenes: Scenes, out: Path, device: str, recipe: Recipe) -> None:
    """InfoNCE between images and texts with hard negatives, and the matching head. Saves to `out/blip2_itm`."""
    folder = out / "blip2_itm"
    tokenizer = bert_tokenizer(folder)
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    model = build(tokenizer).to(device).train()
    patches, words = PatchLabels(scenes, device, VISION.hidden_size), WordLabels(tokenizer, device)

    def loss_of(index: Tensor) -> Tensor:
        right, reordered, wrong = draw_captions([scenes.things[i] for i in index.tolist()], rng)
        vision = model.vision_model(roughen(scenes.pixels(index, device))).last_hidden_state
        tokens = tokenizer(right + reordered + wrong, padding=True, return_tensors="pt").to(device)
        image, (text, hidden) = embed_images(model, vision), read_texts(model, tokens)
        ones, others, negatives = text.split([len(index), len(index), len(wrong)])
        contrasts = contrast(image, ones, negatives) + _text_contrast(ones, others, negatives)
        fit_or_not = matching(model, vision, tokens)
        return contrasts + 0.5 * fit_or_not + patches.loss(vision, index) + words.loss(hidden, tokens.input_ids)

    fit(recipe, [model, patches.head, words.head], scenes, loss_of, "text tower")
    save(folder, model, tokenizer, image_processor())


def draw_captions(things: list[tuple[Thing, ...]], rng: random.Random) -> tuple[list[str], list[str], list[str]]:
    """For B scenes: B captions, B captions in another order, B x HARD_NEGATIVES wrong ones (scene by scene)."""
    right, reordered, wrong = [], [], []
    for scene in things:
        pairs = [t.pair for t in scene]
        right.append(caption(rng.sample(pairs, len(pairs))))
        reordered.append(caption(rng.sample(pairs, len(pairs))))
        for _ in range(HARD_NEGATIVES):
            changed = wrong_pairs(pairs, rng)
            wrong.append(caption(rng.sample(changed, len(changed))))
    return right, reordered, wrong


def embed_images(model: Blip2ForImageTextRetrieval, vision: Tensor) -> Tensor:
    """ViT tokens [B, T, D] → one unit vector per query [B, Q, E]."""
    queries = model.query_tokens.expand(len(vision), -1, -1)
    hidden = model.qformer(query_embeds=queries, encoder_hidden_states=vision).last_hidden_state
    return F.normalize(model.vision_projection(hidden).float(), dim=-1)


def read_texts(model: Blip2ForImageTextRetrieval, tokens) -> tuple[Tensor, Tensor]:
    """Token ids [B, L] → unit vectors [B, E] (the [CLS] position, projected) and the last layer's input [B, L, D]."""
    words = model.embeddings(input_ids=tokens.input_ids)
    read = model.qformer(
        query_embeds=words, query_length=0, attention_mask=tokens.attention_mask, output_hidden_states=True
    )
    text = F.normalize(model.text_projection(read.last_hidden_state[:, 0]).float(), dim=-1)
    return text, read.hidden_states[-2]


class WordLabels:
    """A dense auxiliary task: which color precedes each shape's word?

    With contrastive losses alone, a swap of two colors is confused with another order: 9 % after 3500 steps.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, device: str) -> None:
        colors, shapes = (torch.tensor(tokenizer.convert_tokens_to_ids(list(words))) for words in (COLORS, SHAPES))
        self.shapes = shapes.to(device)
        self.color_of = torch.full((len(tokenizer),), -100, device=device)
        self.color_of[colors] = torch.arange(len(COLORS), device=device)
        self.head = nn.Linear(WIDTH, len(COLORS)).to(device)

    def loss(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """hidden [B, L, D] of the texts with token ids [B, L] → cross-entropy."""
        at = torch.isin(ids, self.shapes)
        return F.cross_entropy(self.head(hidden[at]).float(), self.color_of[ids.roll(1, dims=1)[at]])


def contrast(image: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    """Images [B, Q, E] against all captions [B, E] and their own wrong ones; captions against all images.

    Of an image's queries the best one counts, as in BLIP-2.
    """
    batch = len(right)
    label = torch.arange(batch, device=right.device)
    hard = torch.einsum("bqe,bne->bqn", image, wrong.unflatten(0, (batch, -1))).amax(1) / TEMPERATURE
    plain = torch.einsum("bqe,te->bqt", image, right).amax(1) / TEMPERATURE
    return F.cross_entropy(torch.cat([plain, hard], dim=1), label) + F.cross_entropy(plain.T, label)


def _text_contrast(right: Tensor, reordered: Tensor, wrong: Tensor) -> Tensor:
    """A caption against reordered captions: its own is the one; its own wrong ones are not."""
    batch = len(right)
    hard = torch.einsum("be,bne->bn", right, wrong.unflatten(0, (batch, -1)))
    logits = torch.cat([right @ reordered.T, hard], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.arange(batch, device=right.device))


def matching(model: Blip2ForImageTextRetrieval, vision: Tensor, tokens) -> Tensor:
    """The ITM head: right caption or (the first) wrong one?

    vision: ViT tokens [B, T, D]. tokens: first the B right captions, last the B x HARD_NEGATIVES wrong ones.
    """
    batch = len(vision)
    scene = torch.arange(batch, device=vision.device)
    rows = torch.cat([scene, len(tokens.input_ids) + (scene - batch) * HARD_NEGATIVES])
    queries = model.query_tokens.expand(2 * batch, -1, -1)
    joint = model.embeddings(input_ids=tokens.input_ids[rows], query_embeds=queries)
    mask = torch.cat([tokens.attention_mask.new_ones(2 * batch, QUERIES), tokens.attention_mask[rows]], dim=1)
    read = model.qformer(
        query_embeds=joint, query_length=QUERIES, attention_mask=mask, encoder_hidden_states=vision.repeat(2, 1, 1)
    ).last_hidden_state
    logits = model.itm_head(read[:, :QUERIES]).mean(1).float()
    return F.cross_entropy(logits, (rows < batch).long())
