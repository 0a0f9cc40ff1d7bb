"""Modulated attention in the place of ComfyUI's while a model is called.

`ModulatedBlock` is for UNets, whose blocks have a place for it; `ModulatedAttention` is for transformers, where one
override sees every attention. Both call what another pack has put there: whatever else that adds stays, and only
attention's own part is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel
from torch import Tensor

from ..equation.layout import KeyBlock, as_slice
from ..equation.modulated import joint_attention
from ..equation.relation import Elements

CALL = "realign_call"
"""The key of the current `run.ModelCall` in the transformer options."""
OVERRIDE = "optimized_attention_override"
Site = tuple[str, int, int]
"""Where a transformer block is: ("input" | "middle" | "output", block, index in the block)."""
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k, v → the attention's output."""


class Selection(NamedTuple):
    """Some queries of some batch elements, and the dimension of tokens in q, k and v and in the output."""

    elements: Elements
    queries: slice
    dim: int = 1
    out_dim: int = 1

    def inputs(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What attention needs for these queries."""
        return q[self._index(self.dim)], k[self.elements], v[self.elements]

    @property
    def outputs(self) -> tuple:
        """The index of these queries in the output."""
        return self._index(self.out_dim)

    def others(self, n_elements: int, n_queries: int) -> Iterator[Selection]:
        """All other queries of so many batch elements."""
        selected = range(n_elements)[self.elements] if isinstance(self.elements, slice) else self.elements
        rest = [element for element in range(n_elements) if element not in selected]
        if rest:
            yield self._replace(elements=as_slice(rest), queries=slice(0, n_queries))
        for queries in (slice(0, self.queries.start), slice(self.queries.stop, n_queries)):
            if queries.start < queries.stop:
                yield self._replace(queries=queries)

    def _index(self, dim: int) -> tuple:
        return (self.elements, *[slice(None)] * (dim - 1), self.queries)


class ModulatedBlock:
    """Modulated attention as a UNet block's attn1 or attn2."""

    def __init__(self, cross: bool, previous: Any) -> None:
        self.cross, self.previous = cross, previous

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        """q: [B, Nq, C], k and v: [B, Nk, C] → [B, Nq, C], before the output projection."""
        call, heads, precision = options[CALL], options["n_heads"], options["attn_precision"]

        def previous(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return (self.previous or plain_attention)(q, k, v, options)

        blocks = call.blocks_in_unet(self.cross, q, k, options)
        if not blocks:
            return previous(q, k, v)
        modulated = partial(_attend, blocks, heads, precision)
        selection = Selection(call.elements, slice(0, q.shape[1]))
        is_plain = self.previous is None and OVERRIDE not in options
        plain = None if is_plain else partial(optimized_attention, heads=heads, attn_precision=precision)
        return _modulate_part(previous, plain, modulated, selection, q, k, v)


class ModulatedAttention:
    """Modulated attention as the `optimized_attention_override` of a transformer."""

    def __init__(self, previous: Any) -> None:
        self.previous = previous

    def __call__(
        self,
        func: Callable,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        attn_precision: torch.dtype | None = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """`func`'s arguments and result: [B, N, C], or [B, H, N, d] where a reshape is skipped."""
        options = {"heads": heads, "mask": mask, "attn_precision": attn_precision, **kwargs}
        options |= {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape}
        plain = partial(func, **options)
        previous = plain if self.previous is None else partial(self.previous, func, **options)
        dim, out_dim = (2 if skip_reshape else 1), (2 if skip_output_reshape else 1)
        call = kwargs["transformer_options"][CALL]
        special = mask is not None or kwargs.get("scale") is not None or kwargs.get("enable_gqa")
        queries, blocks = call.blocks_in_transformer(q, k, dim, special)
        if not blocks:
            return previous(q, k, v)
        modulated = partial(
            _attend, blocks, heads, attn_precision, split=not skip_reshape, join=not skip_output_reshape
        )
        selection = Selection(call.elements, queries, dim, out_dim)
        return _modulate_part(previous, None if self.previous is None else plain, modulated, selection, q, k, v)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    """ComfyUI's own attention in a UNet's block."""
    return optimized_attention(
        q, k, v, options["n_heads"], attn_precision=options["attn_precision"], transformer_options=options
    )


def _modulate_part(
    previous: Attention, plain: Attention | None, modulated: Attention, part: Selection, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """`modulated` for a part of the queries, `previous` for all others.

    plain: where `previous` adds something to it, plain attention; the part then keeps what is added.
    """
    inputs = part.inputs(q, k, v)
    ours = modulated(*inputs)
    if plain is not None:
        out = previous(q, k, v).clone()
        out[part.outputs] += ours - plain(*inputs)
        return out
    n = q.shape[part.dim]
    if ours.shape[0] == len(q) and ours.shape[part.out_dim] == n:
        return ours
    out = ours.new_empty((len(q), *ours.shape[1 : part.out_dim], n, *ours.shape[part.out_dim + 1 :]))
    out[part.outputs] = ours
    for other in part.others(len(q), n):
        out[other.outputs] = previous(*other.inputs(q, k, v))
    return out


def _attend(
    blocks: Sequence[KeyBlock],
    heads: int,
    precision: torch.dtype | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    split: bool = True,
    join: bool = True,
) -> Tensor:
    """Modulated attention. split: q, k and v come as [B, N, C] (Stable Diffusion 3's v as [B, N, H, d]), not as
    [B, H, N, d]; join: the result is [B, N, C]."""
    if split:
        q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    out = joint_attention(q, k, v, blocks, precision)
    return out.transpose(1, 2).flatten(2) if join else out


def add_patches(options: dict, kind: str, sites: Sequence[Site], patch: Callable[[Any], Any]) -> dict:
    """Transformer options with `patch(previous)` as each block's attn1 or attn2; previous: its patch, or None."""
    previous = options.get("patches_replace", {}).get(kind, {})
    ours = {site: patch(previous.get(site, previous.get(site[:2]))) for site in sites}
    return {**options, "patches_replace": {**options.get("patches_replace", {}), kind: {**previous, **ours}}}


def attention_levels(unet: UNetModel) -> list[int]:
    """How many times the latent has been halved where there is attention."""
    levels, level = set(), 0
    for block in (*unet.input_blocks, unet.middle_block or ()):
        for layer in block:
            level += isinstance(layer, Downsample)
            if isinstance(layer, SpatialTransformer):
                levels.add(level)
    return sorted(levels)


def attention_sites(unet: UNetModel) -> Iterator[Site]:
    """All transformer blocks of the UNet, by the names under which ComfyUI looks for their patches."""
    middle = [] if unet.middle_block is None else [unet.middle_block]
    for name, blocks in (("input", unet.input_blocks), ("middle", middle), ("output", unet.output_blocks)):
        for number, block in enumerate(blocks):
            for layer in block:
                if isinstance(layer, SpatialTransformer):
                    yield from ((name, number, index) for index in range(len(layer.transformer_blocks)))
