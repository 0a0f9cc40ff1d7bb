"""Modulated attention (eq. 8-9) at about the cost of plain attention: no Nq x Nk tensor is ever held.

With z the scaled scores, m and M their smallest and largest in each row, and a = S·λ_t·(1 − B), eq. 8-9 say

    z' = z + a·((R ? M : m) − z) = (1 − a)·z + a·m + a·(M − m)·R

so two passes over the keys are enough: one for m and M, one for the softmax of z'. On CUDA one Triton kernel makes both
(`triton_attention`). Elsewhere, and where it cannot, fused attention does as much of the work as it can:

Between pixels a belongs to the query alone. Then a·m, one number a row, drops out of the softmax, and R is a product of
thin 0/1 matrices, sees·memberᵀ. So z' is itself a score, of longer vectors,

    q' = [(1 − a)·q, a·(M − m)·sees]        k' = [k, member]

and any fused attention kernel computes it; only M and m take one more pass, in tiles. Between pixels and words a
depends on the word too, but there are few words: there the first line is computed as it stands, tile by tile. Where
words and pixels are keys of one softmax (joint attention), the words come in as one more key of the fused kernel, with
their log-sum-exp as its score: how much attention it gets says how the two results are mixed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import RealignError
from .layout import Block, Layout, span

logger = logging.getLogger(__name__)

TILE = {"cpu": 2**20, "cuda": 2**24}
"""Scores held at once; on a CPU as many as stay in its cache."""
LONGEST = 256
"""Numbers of a vector that fused kernels take on GPUs."""
MAX_GROUPS = 64
"""With more combinations of overlapping regions than this, longer vectors cost more than tiles do."""


def modulated_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, strength: float | Tensor) -> Tensor:
    """softmax((QKᵀ + S ⊙ M) / √d) V.

    q: [B, H, Nq, d], k: [B, H, Nk, d], v: [B, H, Nk, dv] → [B, H, Nq, dv]. `strength` is λ_t, at least 0.
    Batch rows without gain, and all rows at strength 0, are plain attention, bit for bit.
    """
    return joint_attention(q, k, v, [Block(slice(0, k.shape[2]), layout, strength)])


def joint_attention(
    q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[Block], precision: torch.dtype | None = None
) -> Tensor:
    """softmax(z') V with the keys of each block modulated as its own attention would be, and all other keys plain.

    q: [B, H, Nq, d], k: [B, H, Nk, d], v: [B, H, Nk, dv] → [B, H, Nq, dv]. The keys of blocks do not overlap.
    precision: of what is computed with scores, where those of a model overflow q's own.
    """
    for block in blocks:
        _check(q, k, block)
    blocks = [block for block in blocks if isinstance(block.strength, Tensor) or block.strength]
    rows = sorted({row for block in blocks for row in block.layout.active})
    if not rows:
        return F.scaled_dot_product_attention(q, k, v)
    q, k = q.to(v.dtype), k.to(v.dtype)  # inside autocast a layer's norms may have left them in float32
    if len(rows) == len(q):
        return _modulated(q, k, v, blocks, precision)
    rest = [row for row in range(len(q)) if row not in rows]
    plain, some = span(rest), span(rows)
    out = torch.empty_like(q) if q.shape[-1] == v.shape[-1] else v.new_empty(*q.shape[:3], v.shape[-1])
    out[plain] = F.scaled_dot_product_attention(*_cast(precision, q[plain], k[plain], v[plain])).to(v.dtype)
    own = [block._replace(layout=block.layout.of_rows(rows)) for block in blocks]
    out[some] = _modulated(q[some], k[some], v[some], own, precision)
    return out


def _check(q: Tensor, k: Tensor, block: Block) -> None:
    keys = len(range(k.shape[2])[block.keys])
    if block.layout.shape != (q.shape[0], q.shape[2], keys):
        raise RealignError(
            f"Attention has {q.shape[0]} rows of {q.shape[2]} queries and {keys} keys, but the regions were laid "
            f"out for {block.layout.shape}; lay them out for this layer and batch."
        )


def _modulated(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[Block], precision: torch.dtype | None) -> Tensor:
    """All rows modulated: by the kernel, which keeps scores in float32 whatever `precision` is, or without it."""
    by_kernel = _by_kernel(q, k, v, blocks) if _may_have_kernel(q.device) else None
    if by_kernel is not None:
        return by_kernel
    with _no_autocast(q.device):
        return _attention(*_cast(precision, q, k, v), blocks).to(v.dtype)


def _may_have_kernel(device: torch.device) -> bool:
    """Elsewhere Triton is not even imported."""
    return device.type == "cuda"


def _cast(precision: torch.dtype | None, *tensors: Tensor) -> Sequence[Tensor]:
    return tensors if precision is None else [x.to(precision) for x in tensors]


def _no_autocast(device: torch.device) -> AbstractContextManager:
    """Autocast would compute products of float32, which scores and their extrema need, in half precision."""
    return torch.autocast(device.type, enabled=False) if device.type in ("cpu", "cuda") else nullcontext()


def _attention(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[Block]) -> Tensor:
    words, pixels = _words_and_pixels(blocks, k.shape[2])
    if words is None and pixels is None:
        return _by_tiles(q, k, v, blocks)[0].to(v.dtype)
    return _by_longer_vectors(q, k, v, words, pixels)


_broken: set[tuple] = set()
"""What the kernel has failed for: (dtype, d, number of blocks), or () for everything."""


def _by_kernel(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[Block]) -> Tensor | None:
    """One Triton kernel. None where it is not made for these tensors, or does not work here, which is told once."""
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
        why = (str(error).splitlines() or [""])[0]
        logger.warning(
            "RealignDiff: modulated attention goes on without its Triton kernel, more slowly (%s: %s).",
            type(error).__name__,
            why,
        )
        return None


def _words_and_pixels(blocks: Sequence[Block], n_keys: int) -> tuple[Block | None, Block | None]:
    """Which blocks are which, where longer vectors do: some words before or after keys that share one gain, or none.

    Both None where they do not.
    """
    one_gain = [b for b in blocks if b.layout.key_gain.shape[1] == 1]
    words = [b for b in blocks if b.layout.key_gain.shape[1] > 1]
    if len(one_gain) > 1 or len(words) > 1 or any(b.layout.groups[0].shape[-1] > MAX_GROUPS for b in one_gain):
        return None, None
    rest = _outside(words[0].keys, n_keys) if words else range(n_keys)
    if not rest or (one_gain and range(n_keys)[one_gain[0].keys] != rest):
        return None, None
    return (words[0] if words else None), (one_gain[0] if one_gain else None)


def _outside(keys: slice, n_keys: int) -> range:
    """The keys before or after these; none where there are some on both sides, or nowhere."""
    inside = range(n_keys)[keys]
    before, after = range(inside.start), range(inside.stop, n_keys)
    return range(0) if before and after else before or after


def _by_longer_vectors(q: Tensor, k: Tensor, v: Tensor, words: Block | None, pixels: Block | None) -> Tensor:
    """All keys but the words share one gain: z' as the scores of q' and k'."""
    scale, d = q.shape[-1] ** -0.5, v.shape[-1]
    if words is None:
        queries, keys, _ = _longer(q, k, pixels)
        length = _length(queries, d)
        longer = (_join(queries, length), _join(keys, length), _join([v], length))
        return F.scaled_dot_product_attention(*longer, scale=scale)[..., :d]
    said, heard = _by_tiles(q, k[:, :, words.keys], v[:, :, words.keys], [words._replace(keys=slice(None))])
    own = _outside(words.keys, k.shape[2])
    k, v = (x[:, :, own.start : own.stop] for x in (k, v))
    queries, keys, lost = _longer(q, k, pixels)
    # The words as one more key: its score is their log-sum-exp, its value 0, but for one dimension that only this key
    # has, and that so tells how much attention the words get.
    extra = _exactly(heard / scale - lost, q.dtype)
    n = sum(x.shape[-1] for x in keys)
    length = _length([*queries, *extra], d + 1)
    k, v = (F.pad(_join(parts, length), (0, 0, 0, 1)) for parts in (keys, [v]))
    k[:, :, -1, n : n + len(extra)] = 1
    v[:, :, -1, d] = 1
    out = F.scaled_dot_product_attention(_join([*queries, *extra], length), k, v, scale=scale).float()
    return (out[..., :d] + out[..., d : d + 1] * said).to(q.dtype)


def _longer(q: Tensor, k: Tensor, pixels: Block | None) -> tuple[list[Tensor], list[Tensor], Tensor | float]:
    """q' and k' in parts, and the a·m that they leave out, all of scores without √d; of plain keys q and k."""
    if pixels is None:
        return [q], [k], 0.0
    sees, member = pixels.layout.groups  # [B, Nq, P], [B, Nk, P]
    a = pixels.layout.gain(pixels.strength)[:, None]  # [B, 1, Nq, 1]
    m, M = _extrema(q, k)
    lifts = _exactly(a * (M - m) * sees[:, None], q.dtype)  # of [B, H, Nq, P]
    own = _exactly((1 - a) * q.float(), q.dtype)
    if sum(x.shape[-1] for x in [*own, *lifts]) > LONGEST:
        own = own[:1]  # large scores then lose more than plain attention's do
    member = member[:, None].expand(-1, q.shape[1], -1, -1).to(k.dtype)
    return [*own, *lifts], [*[k] * len(own), *[member] * len(lifts)], a * m


def _by_tiles(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[Block]) -> tuple[Tensor, Tensor]:
    """Eq. 8-9 on a few queries at a time; and log Σ exp z' [B, H, Nq, 1]; both float32."""
    k, v, out, heard = (k.float() * q.shape[-1] ** -0.5).mT, v.float(), [], []
    height = max(1, _tile(q) // (q.shape[0] * q.shape[1] * k.shape[-1]))
    for start in range(0, q.shape[2], height):
        part = slice(start, start + height)
        z = q[:, :, part].float() @ k
        for block in blocks:
            z = _moved(z, block, part)
        A = z.softmax(-1)
        out.append(A @ v)
        heard.append(z.amax(-1, keepdim=True) - A.amax(-1, keepdim=True).log())  # as max A = exp(max z' − heard)
    return torch.cat(out, 2), torch.cat(heard, 2)


def _moved(z: Tensor, block: Block, queries: slice) -> Tensor:
    """The scores [B, H, some queries, Nk] with those of a block's keys modulated."""
    layout = block.layout.part(slice(None), queries)
    own = z[..., block.keys]
    a = layout.gain(block.strength)[:, None]
    m, M = own.amin(-1, keepdim=True), own.amax(-1, keepdim=True)
    into = None if z.requires_grad else own  # in place where no gradient needs z as it was
    own = torch.mul(own, 1 - a, out=into)
    own = torch.addcmul(own, a, m, out=into)
    own = torch.addcmul(own, a * layout.related()[:, None], M - m, out=into)  # z'
    if into is not None:
        return z
    keys = range(z.shape[-1])[block.keys]
    return torch.cat([z[..., : keys.start], own, z[..., keys.stop :]], -1)


def _extrema(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest of QKᵀ in each row, float32: two of [B, H, Nq, 1]."""
    (B, H, n, _), n_keys = q.shape, k.shape[2]
    height = max(1, _tile(q) // n_keys)
    heads = max(1, height // n)  # of short sequences, several at once
    low, high = (torch.empty(B * H, n, device=q.device) for _ in range(2))
    queries, keys = q.flatten(0, 1), k.flatten(0, 1)
    for head in range(0, B * H, heads):
        some = keys[head : head + heads].float().mT
        for start in range(0, n, height):
            here = slice(head, head + heads), slice(start, start + height)
            z = queries[here].float() @ some
            low[here], high[here] = z.amin(-1), z.amax(-1)
    return low.view(B, H, n, 1), high.view(B, H, n, 1)


def _tile(x: Tensor) -> int:
    return TILE.get(x.device.type, TILE["cuda"])


def _exactly(x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """x as a sum of tensors of a dtype: of half precision two, where the second is what rounding took."""
    x = _fit(x, dtype)
    rounded = x.to(dtype)
    return [rounded] if dtype == torch.float32 else [rounded, (x - rounded.float()).to(dtype)]


def _length(queries: list[Tensor], values: int) -> int:
    """Fused kernels want one length for q', k' and v, best a multiple of 8."""
    return -8 * (-max(sum(x.shape[-1] for x in queries), values) // 8)


def _join(parts: list[Tensor], length: int) -> Tensor:
    """The parts [B, H, N, *] one after the other, then zeros: [B, H, N, length]."""
    rest = length - sum(part.shape[-1] for part in parts)
    zeros = parts[0].new_zeros(1).expand(*parts[0].shape[:-1], rest)
    return torch.cat([*parts, zeros], -1)


def _fit(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Clamped to the numbers that `dtype` can hold."""
    limit = torch.finfo(dtype).max
    return x.clamp(-limit, limit)
