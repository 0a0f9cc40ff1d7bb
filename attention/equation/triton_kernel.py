"""Modulated attention as one Triton kernel: what `modulated.joint_attention` runs on CUDA.

It is flash attention (Dao, arXiv 2307.08691) that reads the keys twice. A tile of queries first meets the keys of a
block for the smallest and the largest score of each row, m and M; then once more for the online softmax of

    z' = z + a·((R ? M : m) − z)

with R as one bit per region and a = min(λ_t·query_weight·key_weight, gain_limit), both made on the spot from one number
per query and one per key. Nothing of Nq x Nk numbers is ever in memory. z comes from the same product both times, so
that m and M are among the scores to the last bit.

It makes three products of 2·Nq·Nk·d operations (QKᵀ, QKᵀ again, PV) where plain attention makes two, and reads K twice,
V once: 1.5 times the operations and bytes of plain attention, hence 1.5 times its time where these bound it. Each score
takes some six simple operations more (two comparisons for m and M, then bits, choice and product); the smaller d is,
the more these weigh. It is compiled for GPUs and run in Triton's interpreter by the tests; it has not been timed on a
GPU.

A head is cut into two powers of two, as 40 = 32 + 8 or 160 = 128 + 32: in one it would be padded to 64 or 256.
"""

# pyright: reportArgumentType=false
# Triton makes constexprs of numbers.
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import KeyBlock

MAX_HEAD = 256
"""The accumulators of longer heads do not fit into registers."""
MOST_THREAD_BLOCKS = 2**16 - 1
"""Along the second and third dimension of a grid on CUDA, which are heads and batch elements here."""
SIZES = ["start", "end", "start_2", "end_2", "rest", "Nq"]
SIZES += [f"{x}_{dimension}" for x in ("q", "k", "v", "out") for dimension in "bhn"]
"""Arguments that Triton does not specialize on: the kernel is not compiled again for other sizes, ALIGNED suffices."""


def supports(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[KeyBlock]) -> bool:
    """Whether `triton_attention` takes these."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return False
    return (
        _runs_on(q.device)
        and q.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and q.dtype == k.dtype == v.dtype
        and q.shape[-1] == v.shape[-1] <= MAX_HEAD
        and all(_offsets_fit(x) for x in (q, k, v))
        and max(q.shape[:2]) <= MOST_THREAD_BLOCKS
        and 1 <= len(blocks) <= 2
        and all(block.layout.R.bits is not None for block in blocks)
        and not any(isinstance(block.strength, Tensor) and block.strength.is_cuda for block in blocks)  # would wait
    )


def _offsets_fit(x: Tensor) -> bool:
    """Whether the numbers of one head lie within 2³¹ of each other, as the kernel counts in int32 within a head."""
    return (x.shape[2] - 1) * x.stride(2) + x.shape[3] < 2**31


def _runs_on(device: torch.device) -> bool:
    """An NVIDIA GPU from Ampere on, or Triton's interpreter.

    On older GPUs Triton 3.7 does not use tensor cores, and the program is so long that it takes minutes to compile.
    """
    if not isinstance(_kernel, triton.JITFunction):
        return True
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_properties(device).major >= 8


def triton_attention(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[KeyBlock]) -> Tensor:
    """softmax(z') V with the keys of each block modulated, and all other keys plain.

    q: [B, H, Nq, d], k: [B, H, Nk, d], v: [B, H, Nk, d] → [B, H, Nq, d], in memory ordered as q is. One or two blocks,
    whose keys do not overlap. Views are copied only where their last dimension is not contiguous.
    """
    every = range(k.shape[2])
    blocks = sorted(blocks, key=lambda block: every[block.keys].start)
    layouts = [block.layout for block in blocks]
    query_bits, key_bits = [], []
    for layout in layouts:
        assert layout.R.bits is not None  # `supports` has seen to it
        query_bits.append(layout.R.bits[0])
        key_bits.append(layout.R.bits[1])
    run = _operation if torch.compiler.is_compiling() else _launch  # an operation costs time of its own
    return run(
        q,
        k,
        v,
        [layout.weights[0] for layout in layouts],
        query_bits,
        [layout.weights[1] for layout in layouts],
        key_bits,
        [torch.as_tensor(block.strength, dtype=torch.float32, device="cpu") for block in blocks],
        [layout.gain_limit for layout in layouts],
        [every[block.keys].start for block in blocks],
    )


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_weight: list[Tensor],
    query_bits: list[Tensor],
    key_weight: list[Tensor],
    key_bits: list[Tensor],
    strength: list[Tensor],
    gain_limit: list[float],
    start: list[int],
) -> Tensor:
    """A list has one item per block: [B, Nq], [B, Nq], [B, keys] or [B, 1], [B, keys], [], number, first key."""
    q, k, v = (_readable(x) for x in (q, k, v))
    out = torch.empty_like(q)
    grid, arguments, options = _call(
        q, k, v, out, query_weight, query_bits, key_weight, key_bits, strength, gain_limit, start
    )
    with torch.cuda.device_of(q):
        _kernel[grid](*arguments, **options)
    return out


def _readable(x: Tensor) -> Tensor:
    """The kernel reads any strides but the last."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _call(q, k, v, out, query_weight, query_bits, key_weight, key_bits, strength, gain_limit, start):
    """The kernel's grid, its arguments and its options."""
    (B, H, Nq, d), Nk, n = q.shape, k.shape[2], len(start)
    blocks = []
    for b in [0, n - 1]:  # one block is passed twice
        keys = key_bits[b].shape[1]
        vectors = (x[b].contiguous() for x in (query_weight, query_bits, key_weight, key_bits))
        blocks += [*vectors, start[b], start[b] + keys, float(strength[b]), gain_limit[b]]
    rest = Nk - sum(x.shape[1] for x in key_bits)
    strides = [stride for x in (q, k, v, out) for stride in x.stride()[:3]]
    tile = tile_of(d, q.element_size())
    head = max(16, 1 << (d.bit_length() - 1))  # the largest power of two in d; products are of 16 or more
    options = dict(
        tile,
        D=d,
        HEAD=head,
        TAIL=0 if d <= head else max(16, triton.next_power_of_2(d - head)),
        BLOCKS=n,
        PER_QUERY=key_weight[0].shape[1] == 1,
        PER_QUERY_2=key_weight[-1].shape[1] == 1,
        REST=rest > 0,
        ALIGNED=8 if all(stride % 8 == 0 for stride in strides) else 1,
        enable_fp_fusion=True,  # what newer versions of Triton leave out unless they are asked
    )
    grid = (triton.cdiv(Nq, tile["BLOCK_M"]), H, B)
    return grid, (q, k, v, out, *blocks, rest, Nq, d**-0.5 / math.log(2), *strides), options


def tile_of(d: int, bytes_each: int) -> dict[str, int]:
    """Queries and keys of a tile, warps and stages for heads of d numbers.

    The more queries share a tile of keys the better, as far as registers reach: the accumulator of a query takes d of
    them, its scores BLOCK_N. Long heads therefore get fewer queries and keys or more warps, and float32, which no
    tensor core takes, small tiles. As many stages are used as fit into the 99 KB of shared memory of consumer cards.
    """
    if bytes_each == 4:
        return {"BLOCK_M": 32, "BLOCK_N": 32 if d <= 128 else 16, "num_warps": 4, "num_stages": 2}
    if d <= 64:
        return {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3}
    if d <= 128:
        return {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2}


_operation = _launch
if hasattr(torch.library, "custom_op"):  # torch 2.4: compiled models take it as one operation
    _operation = torch.library.custom_op(
        "realigndiff::modulated_attention",
        _launch,
        mutates_args=(),
        schema="(Tensor q, Tensor k, Tensor v, Tensor[] query_weight, Tensor[] query_bits, Tensor[] key_weight, "
        "Tensor[] key_bits, Tensor[] strength, float[] gain_limit, SymInt[] start) -> Tensor",
    )
    _operation.register_fake(lambda q, *others: torch.empty_like(_readable(q)))


@triton.jit(do_not_specialize=SIZES)
def _kernel(
    q, k, v, out,
    query_weight, query_bits, key_weight, key_bits, start, end, strength, limit,  # the first block: keys start … end
    query_weight_2, query_bits_2, key_weight_2, key_bits_2, start_2, end_2, strength_2, limit_2,  # the second
    rest,  # the number of keys of no block
    Nq,
    scale,  # log2(e)/√d: exponentials are of 2
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n,  # strides
    D: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, BLOCKS: tl.constexpr, PER_QUERY: tl.constexpr,
    PER_QUERY_2: tl.constexpr, REST: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i = tl.minimum(rows, Nq - 1)  # past the end the last once more: needs no mask, and is not stored
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    q += tl.multiple_of(b * q_b + h * q_h, ALIGNED)
    k += tl.multiple_of(b * k_b + h * k_h, ALIGNED)
    v += tl.multiple_of(b * v_b + h * v_h, ALIGNED)
    out += tl.multiple_of(b * out_b + h * out_h, ALIGNED)
    q_head = _rows(q, i, q_n, D, 0, HEAD, ALIGNED)
    q_tail = q_head
    if TAIL > 0:
        q_tail = _rows(q, i, q_n, D, HEAD, TAIL, ALIGNED)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    head = tl.zeros([BLOCK_M, HEAD], tl.float32)
    tail = tl.zeros([BLOCK_M, TAIL if TAIL > 0 else 1], tl.float32)
    top, total, head, tail = _block(
        q_head, q_tail, k, v, k_n, v_n, i, b, Nq, query_weight, query_bits, key_weight, key_bits, start, end, strength,
        limit, scale, top, total, head, tail, D, HEAD, TAIL, PER_QUERY, ALIGNED, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if BLOCKS == 2:
        top, total, head, tail = _block(
            q_head, q_tail, k, v, k_n, v_n, i, b, Nq, query_weight_2, query_bits_2, key_weight_2, key_bits_2, start_2,
            end_2, strength_2, limit_2, scale, top, total, head, tail, D, HEAD, TAIL, PER_QUERY_2, ALIGNED, BLOCK_M,
            BLOCK_N,
        )  # fmt: skip
    if REST:
        for first in range(0, rest, BLOCK_N):
            n = first + tl.arange(0, BLOCK_N)
            j = tl.minimum(n, rest - 1)
            j += tl.where(j >= start, end - start, 0)
            if BLOCKS == 2:
                j += tl.where(j >= start_2, end_2 - start_2, 0)
            z = _scores(q_head, q_tail, k, j, k_n, D, HEAD, TAIL, ALIGNED) * scale
            z = tl.where((n < rest)[None, :], z, float("-inf"))
            top, total, head, tail = _attend(z, v, j, v_n, top, total, head, tail, D, HEAD, TAIL, ALIGNED)
    columns = tl.arange(0, HEAD)
    at = out + tl.multiple_of(rows * out_n, ALIGNED)[:, None]
    inside = (rows < Nq)[:, None]
    tl.store(at + columns, (head / total[:, None]).to(out.dtype.element_ty), mask=inside & (columns < D)[None, :])
    if TAIL > 0:
        columns = HEAD + tl.arange(0, TAIL)
        tl.store(at + columns, (tail / total[:, None]).to(out.dtype.element_ty), mask=inside & (columns < D)[None, :])


@triton.jit
def _block(
    q_head, q_tail, k, v, k_n, v_n, i, b, Nq, query_weight, query_bits, key_weight, key_bits, start, end, strength,
    limit, scale, top, total, head, tail,
    D: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, PER_QUERY: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """All keys of a block: m and M first, then the softmax of z'."""
    low = tl.full([BLOCK_M], float("inf"), tl.float32)
    high = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for first in range(start, end, BLOCK_N):
        j = tl.minimum(first + tl.arange(0, BLOCK_N), end - 1)  # the last key once more changes no extremum
        s = _scores(q_head, q_tail, k, j, k_n, D, HEAD, TAIL, ALIGNED)
        low, high = tl.minimum(low, tl.min(s, 1)), tl.maximum(high, tl.max(s, 1))
    a = strength * tl.load(query_weight + b * Nq + i)
    query_bits = tl.load(query_bits + b * Nq + i)
    key_bits += b * (end - start) - start
    keep = scale
    low, high = low * scale, high * scale
    if PER_QUERY:  # z' = (1 − a)·z + (R ? a·M : a·m)
        a = tl.minimum(a * tl.load(key_weight + b), limit)
        keep, low, high = (1 - a) * scale, a * low, a * high
    else:
        key_weight += b * (end - start) - start
    for first in range(start, end, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        j = tl.minimum(n, end - 1)
        s = _scores(q_head, q_tail, k, j, k_n, D, HEAD, TAIL, ALIGNED)
        related = (query_bits[:, None] & tl.load(key_bits + j)[None, :]) != 0
        target = tl.where(related, high[:, None], low[:, None])
        if PER_QUERY:
            z = s * keep[:, None] + target
        else:
            z = s * scale
            z += tl.minimum(a[:, None] * tl.load(key_weight + j)[None, :], limit) * (target - z)
        z = tl.where((n < end)[None, :], z, float("-inf"))
        top, total, head, tail = _attend(z, v, j, v_n, top, total, head, tail, D, HEAD, TAIL, ALIGNED)
    return top, total, head, tail


@triton.jit
def _scores(q_head, q_tail, k, j, k_n, D: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, ALIGNED: tl.constexpr):
    """QKᵀ of the keys j, float32."""
    s = tl.dot(q_head, tl.trans(_rows(k, j, k_n, D, 0, HEAD, ALIGNED)), input_precision="ieee")
    if TAIL > 0:
        s = tl.dot(q_tail, tl.trans(_rows(k, j, k_n, D, HEAD, TAIL, ALIGNED)), s, input_precision="ieee")
    return s


@triton.jit
def _attend(
    z, v, j, v_n, top, total, head, tail,
    D: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """The online softmax: the keys j with the scores z·log2(e) join those that `top` is the largest of."""
    larger = tl.maximum(top, tl.max(z, 1))
    p = tl.exp2(z - larger[:, None])
    shrink = tl.exp2(top - larger)
    total = total * shrink + tl.sum(p, 1)
    p = p.to(v.dtype.element_ty)
    head = tl.dot(p, _rows(v, j, v_n, D, 0, HEAD, ALIGNED), head * shrink[:, None], input_precision="ieee")
    if TAIL > 0:
        tail = tl.dot(p, _rows(v, j, v_n, D, HEAD, TAIL, ALIGNED), tail * shrink[:, None], input_precision="ieee")
    return larger, total, head, tail


@triton.jit
def _rows(x, at, stride, D: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr):
    """WIDTH numbers, from number FIRST on, of the rows `at`; zeros from number D on."""
    columns = FIRST + tl.arange(0, WIDTH)
    x += tl.multiple_of(at * stride, ALIGNED)[:, None] + columns[None, :]
    return tl.load(x, mask=(columns < D)[None, :], other=0.0) if FIRST + WIDTH > D else tl.load(x)
