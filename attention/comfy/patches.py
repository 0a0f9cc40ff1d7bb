"""What stands in for ComfyUI's attention while a model is called: modulated attention for the pixels of rows with
regions, ComfyUI's own for all else.

`ModulatedBlock` is for UNets, whose blocks have a place for it; `ModulatedAttention` is for transformers, where one
override sees every attention. Both are put over what another pack has put there: whatever else that adds stays, and
only attention's own part is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel
from torch import Tensor

from ..equation.layout import KeyBlock, as_slice
from ..equation.modulated import joint_attention

CALL = "realign_call"
"""Among the transformer options: the `comfy_run.Call` that is going on."""
OVERRIDE = "optimized_attention_override"
Rows = slice | list[int]
Site = tuple[str, int, int]
"""Where a transformer block is: ("input" | "middle" | "output", block, index in the block)."""


class ModulatedBlock:
    """Modulated attention as a UNet block's attn1 or attn2."""

    def __init__(self, cross: bool, previous: Any) -> None:
        self.cross, self.previous = cross, previous

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        """q: [B, Nq, C], k and v: [B, Nk, C] → [B, Nq, C], before the output projection."""
        call, heads, precision = options[CALL], options["n_heads"], options["attn_precision"]

        def before(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return (self.previous or plain)(q, k, v, options)

        blocks = call.of_block(self.cross, q, k, options)
        if not blocks:
            return before(q, k, v)
        alone = self.previous is None and OVERRIDE not in options
        own = None if alone else partial(optimized_attention, heads=heads, attn_precision=precision)
        attend = partial(_attend, blocks, heads, precision)
        return _exchanged(q, k, v, before, own, attend, call.rows, slice(0, q.shape[1]))


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
        """`func`'s own arguments and result: [B, N, C], or [B, H, N, d] where a reshape is skipped."""
        options = {"heads": heads, "mask": mask, "attn_precision": attn_precision, **kwargs}
        options |= {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape}
        own = partial(func, **options)
        before = own if self.previous is None else partial(self.previous, func, **options)
        axes = (2 if skip_reshape else 1), (2 if skip_output_reshape else 1)
        call = kwargs["transformer_options"][CALL]
        special = mask is not None or kwargs.get("scale") is not None or kwargs.get("enable_gqa")
        queries, blocks = call.of_attention(q, k, axes[0], special)
        if not blocks:
            return before(q, k, v)
        attend = partial(_attend, blocks, heads, attn_precision, split=not skip_reshape, join=not skip_output_reshape)
        own = None if self.previous is None else own
        return _exchanged(q, k, v, before, own, attend, call.rows, queries, axes)


def plain(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    """ComfyUI's own attention in a UNet's block."""
    return optimized_attention(
        q, k, v, options["n_heads"], attn_precision=options["attn_precision"], transformer_options=options
    )


def _exchanged(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    before: Callable[..., Tensor],
    own: Callable[..., Tensor] | None,
    attend: Callable[..., Tensor],
    rows: Rows,
    queries: slice,
    axes: tuple[int, int] = (1, 1),
) -> Tensor:
    """`before(q, k, v)`, but `attend(q, k, v)` of some queries in some rows.

    own: what of `before` that stands for; None: all. axes: of the tokens in q, k, v and in the result.
    """
    here, there = _at(rows, axes[0], queries), _at(rows, axes[1], queries)
    ours = attend(q[here], k[rows], v[rows])
    if own is not None:
        out = before(q, k, v).clone()
        out[there] += ours - own(q[here], k[rows], v[rows])
        return out
    n = q.shape[axes[0]]
    if ours.shape[0] == len(q) and ours.shape[axes[1]] == n:
        return ours
    out = ours.new_empty((len(q), *ours.shape[1 : axes[1]], n, *ours.shape[axes[1] + 1 :]))
    out[there] = ours
    rest = _rest(rows, len(q))
    for some, tokens in ((rest, slice(0, n)), (rows, slice(0, queries.start)), (rows, slice(queries.stop, n))):
        if some != slice(0, 0) and tokens.start < tokens.stop:
            here, there = _at(some, axes[0], tokens), _at(some, axes[1], tokens)
            out[there] = before(q[here], k[some], v[some])
    return out


def _at(rows: Rows, axis: int, tokens: slice) -> tuple:
    """The index of some tokens in some rows."""
    return (rows, *[slice(None)] * (axis - 1), tokens)


def _rest(rows: Rows, n: int) -> Rows:
    """The other rows of n."""
    modulated = range(n)[rows] if isinstance(rows, slice) else rows
    others = [row for row in range(n) if row not in modulated]
    return as_slice(others) if others else slice(0, 0)


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


def with_patches(options: dict, kind: str, sites: Sequence[Site], patch: Callable[[Any], Any]) -> dict:
    """Transformer options with `patch(previous)` as each block's attn1 or attn2; previous: its patch, or None."""
    there = options.get("patches_replace", {}).get(kind, {})
    ours = {site: patch(there.get(site, there.get(site[:2]))) for site in sites}
    return {**options, "patches_replace": {**options.get("patches_replace", {}), kind: {**there, **ours}}}


def levels(unet: UNetModel) -> list[int]:
    """How many times the latent has been halved where there is attention."""
    found, level = set(), 0
    for block in (*unet.input_blocks, unet.middle_block or ()):
        for layer in block:
            level += isinstance(layer, Downsample)
            if isinstance(layer, SpatialTransformer):
                found.add(level)
    return sorted(found)


def sites(unet: UNetModel) -> Iterator[Site]:
    """All transformer blocks of the UNet, by the names under which ComfyUI looks for their patches."""
    parts: Sequence[tuple[str, Any]] = (
        ("input", unet.input_blocks),
        ("middle", [] if unet.middle_block is None else [unet.middle_block]),
        ("output", unet.output_blocks),
    )
    for name, blocks in parts:
        for number, block in enumerate(blocks):
            for layer in block:
                if isinstance(layer, SpatialTransformer):
                    yield from ((name, number, index) for index in range(len(layer.transformer_blocks)))
