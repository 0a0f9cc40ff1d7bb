"""What a UNet is told of its prompts: Stable Diffusion 1 and 2 by one text encoder, XL by two."""

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
class Words:
    """Texts as a UNet reads them, one a row."""

    hidden: Tensor
    """[B, 77, D], a vector a token, for cross-attention."""
    pooled: Tensor | None = None
    """[B, P], a vector a text, which only SDXL reads."""

    def __getitem__(self, rows: slice | Sequence[int]) -> Words:
        """Some of the rows, as a tensor is indexed; a row may be taken more than once."""
        return Words(self.hidden[rows], None if self.pooled is None else self.pooled[rows])

    def clone(self) -> Words:
        """The same in tensors of their own."""
        return Words(self.hidden.clone(), None if self.pooled is None else self.pooled.clone())


class SecondEncoder(NamedTuple):
    """What SDXL reads a prompt with beside the text encoder that all have."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModelWithProjection
    empty_is_zero: bool
    """Whether an empty text, the unconditional half of guidance, is zeros in place of what the encoders make of it."""


def encode(
    texts: Sequence[str], tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, second: SecondEncoder | None = None
) -> Words:
    """The words of each text, cut to what the text encoders read."""

    def ids(tokenizer: CLIPTokenizer) -> Tensor:
        return tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids

    empty = torch.tensor([text == "" for text in texts])
    return _encode(ids, empty, tokenizer, text_encoder, second)


def encode_ids(
    phrases: Sequence[Sequence[int]],
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    second: SecondEncoder | None = None,
) -> Words:
    """The words of phrases that are given as CLIP's tokens, without start and end token; each is encoded alone."""

    def ids(tokenizer: CLIPTokenizer) -> Tensor:
        start, end, room = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length - 2
        rows = [[start, *phrase[:room], end] for phrase in phrases]
        return tokenizer.pad({"input_ids": rows}, padding="max_length", return_tensors="pt").input_ids

    empty = torch.tensor([not phrase for phrase in phrases])
    return _encode(ids, empty, tokenizer, text_encoder, second)


def isolate_phrases(
    words: Words,
    region_sets: Sequence[RegionSet | None],
    tokenizer: CLIPTokenizer,
    encode_ids: Callable[[Sequence[Sequence[int]]], Words],
) -> Words:
    """Prompts whose regions' phrases have the embeddings of the phrase encoded *alone*, as in DenseDiffusion's code.

    In the encoding of "a red circle and a blue square", the vector of "red" has read what precedes it; here it has read
    no more than its own phrase. Where phrases overlap, a token has the embedding of the shortest one, of equally long
    ones that of the last. Other tokens and pooled vectors stay.

    words: B encoded prompts. region_sets: B sets, whose active regions count; None leaves a row as it is. encode_ids:
    encodes phrases given as tokens.

    Raises:
        RealignError: a phrase cannot be found in its prompt.
    """
    places = []
    for row, regions in enumerate(region_sets):
        for region in () if regions is None else regions.active:
            phrase = region.phrase, regions.prompt, tokenizer, region.occurrence
            places.append((row, token_positions(*phrase), tuple(phrase_ids(*phrase))))
    if not places:
        return words
    index = {ids: i for i, ids in enumerate(dict.fromkeys(ids for *_, ids in places))}
    alone = encode_ids(list(index)).hidden
    hidden = words.hidden.clone()
    for row, positions, ids in sorted(places, key=lambda place: -len(place[-1])):
        hidden[row, positions] = alone[index[ids], 1 : 1 + len(positions)]  # after the start token
    return replace(words, hidden=hidden)


def _encode(
    ids: Callable[[CLIPTokenizer], Tensor],
    empty: Tensor,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    second: SecondEncoder | None,
) -> Words:
    """ids: [B, 77] for each tokenizer; empty: [B] bool, the texts without words."""
    read = ids(tokenizer).to(text_encoder.device)
    if second is None:
        return Words(text_encoder(read).last_hidden_state)
    one = text_encoder(read, output_hidden_states=True)
    two = second.text_encoder(ids(second.tokenizer).to(second.text_encoder.device), output_hidden_states=True)
    # SDXL was trained on the last layer but one of both.
    hidden, pooled = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), two.text_embeds
    if second.empty_is_zero:
        empty = empty.to(hidden.device)
        hidden, pooled = hidden.masked_fill(empty[:, None, None], 0), pooled.masked_fill(empty[:, None], 0)
    return Words(hidden, pooled)
