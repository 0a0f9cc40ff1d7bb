"""Prompts into the embeddings that a UNet is conditioned on: Stable Diffusion 1 and 2 have one text encoder, XL two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..attention.equation.tokens import phrase_ids, token_positions
from ..core.regions import RegionSet

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


@dataclass(frozen=True)
class PromptEmbeds:
    """The embeddings of B texts."""

    prompt_embeds: Tensor
    """[B, 77, D], one vector per token, for cross-attention."""
    pooled: Tensor | None = None
    """[B, P], one vector per text, which only SDXL reads."""

    def __getitem__(self, rows: slice | Sequence[int]) -> PromptEmbeds:
        """Select texts, as a tensor is indexed; a text may be taken more than once."""
        return PromptEmbeds(self.prompt_embeds[rows], None if self.pooled is None else self.pooled[rows])

    def clone(self) -> PromptEmbeds:
        """A copy that shares no memory with this one."""
        return PromptEmbeds(self.prompt_embeds.clone(), None if self.pooled is None else self.pooled.clone())


class SecondEncoder(NamedTuple):
    """SDXL's second tokenizer and text encoder."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModelWithProjection
    force_zeros_for_empty_prompt: bool
    """Whether the embeddings of an empty text, the unconditional half of guidance, are zeros."""


def encode_prompts(
    texts: Sequence[str], tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, second: SecondEncoder | None = None
) -> PromptEmbeds:
    """Encode texts; what is beyond the text encoders' 77 tokens is cut off."""

    def ids(tokenizer: CLIPTokenizer) -> Tensor:
        return tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids

    empty = torch.tensor([text == "" for text in texts])
    return _encode(ids, empty, tokenizer, text_encoder, second)


def encode_phrases(
    phrases: Sequence[Sequence[int]],
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    second: SecondEncoder | None = None,
) -> PromptEmbeds:
    """Encode phrases, each alone. phrases: token ids of each, without start and end token."""

    def ids(tokenizer: CLIPTokenizer) -> Tensor:
        start, end, room = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length - 2
        rows = [[start, *phrase[:room], end] for phrase in phrases]
        return tokenizer.pad({"input_ids": rows}, padding="max_length", return_tensors="pt").input_ids

    empty = torch.tensor([not phrase for phrase in phrases])
    return _encode(ids, empty, tokenizer, text_encoder, second)


def isolate_phrases(
    embeds: PromptEmbeds,
    region_sets: Sequence[RegionSet | None],
    tokenizer: CLIPTokenizer,
    encode: Callable[[Sequence[Sequence[int]]], PromptEmbeds],
) -> PromptEmbeds:
    """Give the tokens of the regions' phrases the embeddings of the phrase alone, as DenseDiffusion's code does.

    In "a blue square and a red circle" the embedding of "circle" depends on all words before it; encoded alone it
    depends on its phrase only. Where phrases overlap, a token gets the embedding of the shortest phrase, and of equally
    long ones that of the last. Other tokens and the pooled vectors stay.

    embeds: B encoded prompts. region_sets: B sets, whose active regions count; None leaves a prompt as it is.
    encode: encodes phrases given as token ids, as `encode_phrases` does.

    Raises:
        RealignError: a phrase cannot be found in its prompt.
    """
    phrases = []
    for i, regions in enumerate(region_sets):
        if regions is None:
            continue
        for region in regions.active:
            phrase = region.phrase, regions.prompt, tokenizer, region.occurrence
            phrases.append((i, token_positions(*phrase), tuple(phrase_ids(*phrase))))
    if not phrases:
        return embeds
    index = {ids: k for k, ids in enumerate(dict.fromkeys(ids for *_, ids in phrases))}
    alone = encode(list(index)).prompt_embeds
    prompt_embeds = embeds.prompt_embeds.clone()
    for i, positions, ids in sorted(phrases, key=lambda phrase: -len(phrase[-1])):
        prompt_embeds[i, positions] = alone[index[ids], 1 : 1 + len(positions)]  # after the start token
    return replace(embeds, prompt_embeds=prompt_embeds)


def _encode(
    ids: Callable[[CLIPTokenizer], Tensor],
    empty: Tensor,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    second: SecondEncoder | None,
) -> PromptEmbeds:
    """ids: a tokenizer → token ids [B, 77]. empty: [B] bool, which texts are empty."""
    tokens = ids(tokenizer).to(text_encoder.device)
    if second is None:
        return PromptEmbeds(text_encoder(tokens).last_hidden_state)
    one = text_encoder(tokens, output_hidden_states=True)
    two = second.text_encoder(ids(second.tokenizer).to(second.text_encoder.device), output_hidden_states=True)
    # SDXL was trained on the penultimate layer of both.
    embeds, pooled = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), two.text_embeds
    if second.force_zeros_for_empty_prompt:
        empty = empty.to(embeds.device)
        embeds, pooled = embeds.masked_fill(empty[:, None, None], 0), pooled.masked_fill(empty[:, None], 0)
    return PromptEmbeds(embeds, pooled)
