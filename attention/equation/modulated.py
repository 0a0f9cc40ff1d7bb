"""Modulated attention (eq. 8-9) at about the cost of plain attention: no Nq x Nk tensor is ever held.

With z the scaled scores, m and M their smallest and largest in each row, and a = S·λ_t·(1 − B), eq. 8-9 say

    z' = z + a·((R ? M : m) − z) = (1 − a)·z + a·m + a·(M − m)·R

so two passes over the keys are enough: one for m and M, one for the softmax of z'. On CUDA one Triton kernel makes both
(`triton_attention`). Elsewhere, and where the kernel cannot run, fused attention does as much of the work as possible:

Where keys are image tokens, a depends on the query alone. Then a·m, one number per row, drops out of the softmax, and
R is a product of two thin 0/1 matrices, Rq·Rkᵀ. So z' is itself a score, with extra head dimensions,

    q' = [(1 − a)·q, a·(M − m)·Rq]        k' = [k, Rk]

and any fused attention kernel computes it; only M and m take one more pass, in tiles. Where keys are text tokens, a
depends on the key too, but these are few: there z' is computed as it stands, tile by tile. Where text and image tokens
are keys of one softmax (joint attention), the text is attended to in tiles, and then enters the fused kernel as one
more key, with its log-sum-exp as score: the attention that this key gets is the weight of the text's result.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import RealignError
from .layout import KeyBlock, Layout, as_slice

logger = logging.getLogger(__name__)
TILE = {"cpu": 2**20, "cuda": 2**24}
"""Scores held at once; on a CPU as many as stay in its cache."""
MAX_HEAD = 256
"""The longest head that fused kernels take on GPUs."""
MAX_GROUPS = 64
"""With more combinations of overlapping regions than this, extra head dimensions cost more than tiles do."""


def modulated_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, strength: float | Tensor) -> Tensor:
    """softmax((QKᵀ + S ⊙ M) / √d) V, with the paper's M of eq. 9, not the row maximum.

    q: [B, H, Nq, d], k: [B, H, Nk, d], v: [B, H, Nk, dv] → [B, H, Nq, dv]. `strength` is λ_t, at least 0.
    Batch elements that are not modulated, and at strength 0 all of them, get plain attention, bit for bit.
    """
    return joint_attention(q, k, v, [KeyBlock(slice(0, k.shape[2]), layout, strength)])


def joint_attention(
    q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[KeyBlock], precision: torch.dtype | None = None
) -> Tensor:
    """softmax(z') V with the keys of each block modulated as its own attention would be, and all other keys plain.

    q: [B, H, Nq, d], k: [B, H, Nk, d], v: [B, H, Nk, dv] → [B, H, Nq, dv]. The keys of blocks do not overlap.
    precision: the dtype of computations with scores, for models whose scores overflow q's dtype.

    Raises:
        RealignError: a layout was made for another number of batch elements, queries or keys.
    """
    for block in blocks:
        shape = (q.shape[0], q.shape[2], len(range(k.shape[2])[block.keys]))
        if block.layout.shape != shape:
            raise RealignError(
                f"Attention has {shape[0]} batch elements of {shape[1]} queries and {shape[2]} keys, but the regions "
                f"were laid out for {block.layout.shape}; lay them out for this layer and batch."
            )
    blocks = [block for block in blocks if isinstance(block.strength, Tensor) or block.strength]
    elements = sorted({element for block in blocks for element in block.layout.modulated})
    if not elements:
        return F.scaled_dot_product_attention(q, k, v)
    q, k = q.to(v.dtype), k.to(v.dtype)  # inside autocast a layer's norms may have left them in float32
    if len(elements) == len(q):
        return _modulate_all(q, k, v, blocks, precision)
    plain = as_slice([element for element in range(len(q)) if element not in elements])
    modulated = as_slice(elements)
    out = torch.empty_like(q) if q.shape[-1] == v.shape[-1] else v.new_empty(*q.shape[:3], v.shape[-1])
    out[plain] = F.scaled_dot_product_attention(*_cast(precision, q[plain], k[plain], v[plain])).to(v.dtype)
    blocks = [block._replace(layout=block.layout.select(elements)) for block in blocks]
    out[modulated] = _modulate_all(q[modulated], k[modulated], v[modulated], blocks, precision)
    return out


def _modulate_all(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[KeyBlock], precision: torch.dtype | None) -> Tensor:
    """Modulate all batch elements; the kernel keeps scores in float32 whatever `precision` is."""
    out = _run_kernel(q, k, v, blocks) if _may_have_kernel(q.device) else None
    if out is not None:
        return out
    # Autocast would compute products of float32, which scores and their extrema need, in half precision.
    has_autocast = q.device.type in ("cpu", "cuda")
    with torch.autocast(q.device.type, enabled=False) if has_autocast else nullcontext():
        return _without_kernel(*_cast(precision, q, k, v), blocks).to(v.dtype)


def _may_have_kernel(device: torch.device) -> bool:
    """Whether the kernel is tried; on other devices Triton is not even imported."""
    return device.type == "cuda"


def _cast(precision: torch.dtype | None, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (q, k, v) if precision is None else (q.to(precision), k.to(precision), v.to(precision))


_broken: set[tuple] = set()
"""What the kernel has failed for: (dtype, d, number of blocks), or () for everything."""


def _run_kernel(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[KeyBlock]) -> Tensor | None:
    """One Triton kernel. None if it does not support these tensors, or fails, which is logged once."""
    kind = (q.dtype, q.shape[-1], len(blocks))
    if () in _broken or kind in _broken:
        return None
    try:
        from . import triton_kernel as kernel

        return kernel.triton_attention(q, k, v, blocks) if kernel.supports(q, k, v, blocks) else None
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # no Triton, no C compiler, a GPU that it does not know, …
        _broken.add(() if isinstance(error, ImportError) else kind)
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        logger.warning("RealignDiff: modulated attention goes on without its Triton kernel, more slowly (%s).", why)
        return None


def _without_kernel(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[KeyBlock]) -> Tensor:
    text, image = _text_and_image(blocks, k.shape[2])
    if text is None and image is None:
        return _attend_in_tiles(q, k, v, blocks)[0].to(v.dtype)
    return _attend_with_extra_dimensions(q, k, v, text, image)


def _text_and_image(blocks: Sequence[KeyBlock], n_keys: int) -> tuple[KeyBlock | None, KeyBlock | None]:
    """Which blocks are which, where extra head dimensions do: at most one block of text tokens, before or after the
    image tokens, which are plain or have one weight per query. Both None where they do not."""
    image = [b for b in blocks if b.layout.per_query]
    text = [b for b in blocks if not b.layout.per_query]
    if len(image) > 1 or len(text) > 1 or any(b.layout.R.factors[0].shape[-1] > MAX_GROUPS for b in image):
        return None, None
    rest = _other_keys(text[0].keys, n_keys) if text else range(n_keys)
    if not rest or (image and range(n_keys)[image[0].keys] != rest):
        return None, None
    return (text[0] if text else None), (image[0] if image else None)


def _other_keys(keys: slice, n_keys: int) -> range:
    """The keys before or after these; empty where there are keys on both sides, or on none."""
    inside = range(n_keys)[keys]
    before, after = range(inside.start), range(inside.stop, n_keys)
    return range(0) if before and after else before or after


def _attend_with_extra_dimensions(
    q: Tensor, k: Tensor, v: Tensor, text: KeyBlock | None, image: KeyBlock | None
) -> Tensor:
    """Fold the modulation of the image tokens into extra head dimensions: z' is the scores of q' and k'."""
    scale, d = q.shape[-1] ** -0.5, v.shape[-1]
    if text is None:
        queries, keys, _ = _fold(q, k, image)
        width = _head_width(queries, d)
        padded = (_join(queries, width), _join(keys, width), _join([v], width))
        return F.scaled_dot_product_attention(*padded, scale=scale)[..., :d]
    text_out, text_lse = _attend_in_tiles(q, k[:, :, text.keys], v[:, :, text.keys], [text._replace(keys=slice(None))])
    rest = _other_keys(text.keys, k.shape[2])
    k, v = (x[:, :, rest.start : rest.stop] for x in (k, v))
    queries, keys, dropped = _fold(q, k, image)
    # The text as one more key: its score is text_lse, its value 0, but for one dimension that only this key has: there
    # the result tells how much attention the text gets.
    extra = _split_hi_lo(text_lse / scale - dropped, q.dtype)
    n = sum(x.shape[-1] for x in keys)
    width = _head_width([*queries, *extra], d + 1)
    k, v = (F.pad(_join(parts, width), (0, 0, 0, 1)) for parts in (keys, [v]))
    k[:, :, -1, n : n + len(extra)] = 1
    v[:, :, -1, d] = 1
    out = F.scaled_dot_product_attention(_join([*queries, *extra], width), k, v, scale=scale).float()
    return (out[..., :d] + out[..., d : d + 1] * text_out).to(q.dtype)


def _fold(q: Tensor, k: Tensor, image: KeyBlock | None) -> tuple[list[Tensor], list[Tensor], Tensor | float]:
    """q' and k' in parts, and the a·m that they leave out, all of scores without √d; for plain keys q and k."""
    if image is None:
        return [q], [k], 0.0
    Rq, Rk = image.layout.R.factors  # [B, Nq, groups], [B, Nk, groups]
    a = image.layout.a(image.strength)[:, None]  # [B, 1, Nq, 1]
    m, M = _extrema(q, k)
    lifts = _split_hi_lo(a * (M - m) * Rq[:, None], q.dtype)  # of [B, H, Nq, groups]
    kept = _split_hi_lo((1 - a) * q.float(), q.dtype)
    if sum(x.shape[-1] for x in [*kept, *lifts]) > MAX_HEAD:
        kept = kept[:1]  # large scores then lose more than plain attention's do
    Rk = Rk[:, None].expand(-1, q.shape[1], -1, -1).to(k.dtype)
    return [*kept, *lifts], [*[k] * len(kept), *[Rk] * len(lifts)], a * m


def _attend_in_tiles(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[KeyBlock]) -> tuple[Tensor, Tensor]:
    """Eq. 8-9 for a few queries at a time; and log Σ exp z' [B, H, Nq, 1]; both float32."""
    k, v, out, lse = (k.float() * q.shape[-1] ** -0.5).mT, v.float(), [], []
    height = max(1, TILE.get(q.device.type, TILE["cuda"]) // (q.shape[0] * q.shape[1] * k.shape[-1]))
    for start in range(0, q.shape[2], height):
        queries = slice(start, start + height)
        z = q[:, :, queries].float() @ k
        for block in blocks:
            z = _modulate_scores(z, block, queries)
        A = z.softmax(-1)
        out.append(A @ v)
        lse.append(z.amax(-1, keepdim=True) - A.amax(-1, keepdim=True).log())  # as max A = exp(max z' − lse)
    return torch.cat(out, 2), torch.cat(lse, 2)


def _modulate_scores(z: Tensor, block: KeyBlock, queries: slice) -> Tensor:
    """z' for the scores z [B, H, tile of queries, Nk], where only the block's keys are modulated."""
    layout = block.layout.part(slice(None), queries)
    scores = z[..., block.keys]
    a = layout.a(block.strength)[:, None]
    m, M = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    into = None if z.requires_grad else scores  # in place where no gradient needs z as it was
    scores = torch.mul(scores, 1 - a, out=into)
    scores = torch.addcmul(scores, a, m, out=into)
    scores = torch.addcmul(scores, a * layout.R.dense()[:, None], M - m, out=into)  # z'
    if into is not None:
        return z
    keys = range(z.shape[-1])[block.keys]
    return torch.cat([z[..., : keys.start], scores, z[..., keys.stop :]], -1)


def _extrema(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest of QKᵀ in each row, float32: two of [B, H, Nq, 1]."""
    (B, H, n, _), n_keys = q.shape, k.shape[2]
    height = max(1, TILE.get(q.device.type, TILE["cuda"]) // n_keys)
    heads = max(1, height // n)  # of short sequences, several at once
    low, high = (torch.empty(B * H, n, device=q.device) for _ in range(2))
    queries, keys = q.flatten(0, 1), k.flatten(0, 1)
    for head in range(0, B * H, heads):
        keys_of_heads = keys[head : head + heads].float().mT
        for start in range(0, n, height):
            tile = slice(head, head + heads), slice(start, start + height)
            z = queries[tile].float() @ keys_of_heads
            low[tile], high[tile] = z.amin(-1), z.amax(-1)
    return low.view(B, H, n, 1), high.view(B, H, n, 1)


def _split_hi_lo(x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """x as a sum of tensors of a dtype: in half precision two, where the second is what rounding took."""
    limit = torch.finfo(dtype).max
    x = x.clamp(-limit, limit)
    high = x.to(dtype)
    return [high] if dtype == torch.float32 else [high, (x - high.float()).to(dtype)]


def _head_width(queries: list[Tensor], values: int) -> int:
    """Fused kernels want one length of heads for q', k' and v, best a multiple of 8."""
    return -8 * (-max(sum(x.shape[-1] for x in queries), values) // 8)


def _join(parts: list[Tensor], width: int) -> Tensor:
    """The parts [B, H, N, *] one after the other, then zeros: [B, H, N, width]."""
    rest = width - sum(part.shape[-1] for part in parts)
    zeros = parts[0].new_zeros(1).expand(*parts[0].shape[:-1], rest)
    return torch.cat([*parts, zeros], -1)
