"""Modulated attention computes eq. 8-9: the written-out version equals a loop, and the lean one equals that."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from realigndiff.attention.equation import modulated
from realigndiff.attention.equation.layout import KeyBlock, Layout, cross_layout, self_layout
from realigndiff.attention.equation.modulated import joint_attention, modulated_attention
from realigndiff.attention.equation.reference import joint_reference, reference_attention
from realigndiff.attention.equation.relation import Relation
from realigndiff.attention.equation.settings import ModulationSettings
from realigndiff.core.errors import RealignError
from realigndiff.core.regions import LIKELIHOODS, Region, RegionSet
from realigndiff.tests.close import apart, assert_close
from realigndiff.tests.layouts import random_layout
from torch.utils._python_dispatch import TorchDispatchMode


def random_qkv(layout: Layout, heads=2, d=8, dv=8, seed=0, size=1.0):
    g = torch.Generator().manual_seed(seed)
    rows, n_queries, n_keys = layout.shape
    shapes = ((rows, heads, n_queries, d), (rows, heads, n_keys, d), (rows, heads, n_keys, dv))
    q, k, v = (torch.randn(shape, generator=g) for shape in shapes)
    return q * size, k * size, v


def attention_in_a_loop(q, k, v, layout, lam):
    """z' = z + a·((R ? max z : min z) − z), one number at a time, in Python floats."""
    out = torch.zeros(*q.shape[:3], v.shape[-1])
    rows, n_queries, n_keys = layout.shape
    for b, h, i in ((b, h, i) for b in range(rows) for h in range(q.shape[1]) for i in range(n_queries)):
        z = [
            sum(x * y for x, y in zip(q[b, h, i].tolist(), k[b, h, j].tolist(), strict=True)) / math.sqrt(q.shape[-1])
            for j in range(n_keys)
        ]
        moved = []
        for j in range(n_keys):
            shared = (layout.R.queries[b, i] & layout.R.keys[b, j]).any()
            s = float(layout.S[b, i, 0] if layout.per_query else layout.S[b, 0, j])
            a = min(lam * s * (1 - float(layout.B[b, i, 0])), layout.gain_limit)
            moved.append(z[j] + a * ((max(z) if shared else min(z)) - z[j]))
        weights = [math.exp(x - max(moved)) for x in moved]
        out[b, h, i] = sum(w * v[b, h, j] for j, w in enumerate(weights)) / sum(weights)
    return out


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("limit", [math.inf, 0.4])
def test_the_reference_is_the_equation_one_number_at_a_time(per_query, limit):
    layout = random_layout(2, 5, 5 if per_query else 4, 3, per_query=per_query, limit=limit)
    q, k, v = random_qkv(layout)
    slow = attention_in_a_loop(q, k, v, layout, 0.9)
    assert_close(reference_attention(q, k, v, layout, 0.9), slow)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 3),
    heads=st.integers(1, 3),
    n_queries=st.integers(1, 40),
    n_keys=st.integers(1, 90),
    regions=st.integers(1, 4),
    d=st.sampled_from([4, 8, 40]),
    dv=st.sampled_from([4, 8, 72]),
    per_query=st.booleans(),
    limit=st.sampled_from([math.inf, 1.0, 0.3]),
    lam=st.floats(0, 1.2),
    tile=st.sampled_from([1, 64, 2**20]),
    seed=st.integers(0, 10**6),
)
def test_lean_attention_equals_the_reference(
    rows, heads, n_queries, n_keys, regions, d, dv, per_query, limit, lam, tile, seed
):
    layout = random_layout(
        rows, n_queries, n_queries if per_query else n_keys, regions, per_query=per_query, limit=limit, seed=seed
    )
    layout.S[seed % rows] *= seed % 2  # sometimes a row is left alone
    q, k, v = random_qkv(layout, heads, d, dv, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(modulated.TILE, "cpu", tile)
        lean = modulated_attention(q, k, v, layout, lam)
    assert_close(lean, reference_attention(q, k, v, layout, lam))


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    n_tokens=st.sampled_from([5, 77, 154]),
    seed=st.integers(0, 10**6),
)
def test_lean_attention_equals_the_reference_on_layouts_of_real_regions(size, counts, n_tokens, seed):
    g = torch.Generator().manual_seed(seed)
    mask = lambda: (torch.rand(1, 1, 3, 3, generator=g) > 0.5).float()  # noqa: E731
    sets = [
        RegionSet(
            "x",
            tuple(
                Region(tag="x", phrase="x", likelihood=LIKELIHOODS[i % 2], mask=F.interpolate(mask(), (24, 16))[0, 0])
                for i in range(n)
            ),
        )
        for n in counts
    ]
    positions = [[[1 + i, 2 + i] for i, _ in enumerate(one.active)] for one in sets]
    options = ModulationSettings(outside=(seed % 3) / 2)
    for layout in (cross_layout(sets, positions, size, n_tokens, options), self_layout(sets, size, options)):
        q, k, v = random_qkv(layout, seed=seed)
        assert_close(modulated_attention(q, k, v, layout, 0.8), reference_attention(q, k, v, layout, 0.8))


def test_with_very_many_combinations_of_regions_the_result_is_the_same():
    pixels = torch.rand(1, 300, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    layout = replace(random_layout(1, 300, 300, 9, per_query=True), R=Relation(pixels, pixels))
    assert layout.R.factors[0].shape[-1] > modulated.MAX_GROUPS
    q, k, v = random_qkv(layout)
    assert_close(modulated_attention(q, k, v, layout, 0.9), reference_attention(q, k, v, layout, 0.9))


@pytest.mark.parametrize("per_query", [False, True])
def test_without_strength_or_weight_attention_is_plain_to_the_last_bit(per_query):
    layout = random_layout(3, 20, 20, 2, per_query=per_query)
    q, k, v = random_qkv(layout)
    plain = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(modulated_attention(q, k, v, layout, 0.0), plain)
    off = replace(layout, S=torch.zeros_like(layout.S))
    assert torch.equal(modulated_attention(q, k, v, off, 1.0), plain)
    half = replace(layout, S=layout.S * torch.tensor([0.0, 1.0, 0.0])[:, None, None])
    mixed = modulated_attention(q, k, v, half, 1.0)
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])
    assert apart(mixed[1], plain[1]) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("mask", ["empty", "full", "one pixel", "overlapping"])
def test_half_precision_stays_finite_and_close(dtype, per_query, mask):
    layout = random_layout(2, 24, 24, 2, per_query=per_query)
    if mask != "overlapping":
        queries = torch.full_like(layout.R.queries, mask == "full")
        queries[:, 7, 0] |= mask == "one pixel"
        layout = replace(layout, R=Relation(queries, queries if per_query else layout.R.keys))
    for size in (1.0, 18.0):  # the scores of the second reach ±1000
        q, k, v = (x.to(dtype) for x in random_qkv(layout, size=size))
        lean = modulated_attention(q, k, v, layout, 1.0)
        assert lean.dtype == dtype
        assert lean.isfinite().all()
        if size == 1:
            worst = (lean.float() - reference_attention(q, k, v, layout, 1.0).float()).abs().max().item()
            plain = (
                (
                    F.scaled_dot_product_attention(q, k, v).float()
                    - F.scaled_dot_product_attention(q.float(), k.float(), v.float())
                )
                .abs()
                .max()
                .item()
            )
            assert worst < 4 * plain + 4 * torch.finfo(dtype).eps, f"{worst:.2e} off, plain attention {plain:.2e}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_a_small_region_loses_no_more_than_rounding_its_result_does(dtype):
    n, small = 1024, slice(0, 8)  # here the lift a·(M − m) of 8 keys weighs up against 1016 others: its rounding shows
    pixels = torch.zeros(1, n, 1, dtype=torch.bool)
    pixels[:, small] = True
    layout = Layout(Relation(pixels, pixels), torch.full((1, n, 1), 0.8), torch.zeros(1, n, 1))
    q, k, v = (x.to(dtype) for x in random_qkv(layout, d=40))
    v[:, :, small] += 2
    exact = reference_attention(q.float(), k.float(), v.float(), layout, 1.0)[:, :, small]
    lean = modulated_attention(q, k, v, layout, 1.0)[:, :, small].float()
    lost, rounding = ((x - exact).square().mean().sqrt().item() for x in (lean, exact.to(dtype).float()))
    assert lost < 1.3 * rounding, f"{lost:.2e} lost, {rounding:.2e} by rounding the result"


def test_extreme_scores_do_not_overflow_half_precision():
    layout = replace(
        random_layout(1, 16, 16, 2, per_query=True), S=torch.full((1, 16, 1), 2.0), B=torch.zeros(1, 16, 1)
    )
    q, k, v = (
        x.half() for x in random_qkv(layout, d=64, size=100.0)
    )  # scores up to ±30000, beyond float16 when doubled
    assert modulated_attention(q, k, v, layout, 1.0).isfinite().all()


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("groups", [modulated.MAX_GROUPS, 0], ids=["extra head dimensions", "tiles"])
def test_gradients_are_those_of_the_reference(per_query, groups, monkeypatch):
    monkeypatch.setitem(modulated.TILE, "cpu", 64)
    monkeypatch.setattr(modulated, "MAX_GROUPS", groups)
    layout = random_layout(2, 12, 12 if per_query else 9, 3, per_query=per_query)
    layout.S[1] = 0  # a row that is left alone
    weights = torch.randn(2, 2, 12, 8, generator=torch.Generator().manual_seed(1))

    def gradients(attention):
        qkv = [x.requires_grad_() for x in random_qkv(layout)]
        return torch.autograd.grad((attention(*qkv, layout, 0.9) * weights).sum(), qkv)

    for lean, slow in zip(gradients(modulated_attention), gradients(reference_attention), strict=True):
        assert_close(lean, slow)


def test_no_tensor_of_queries_by_keys_is_ever_made():
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
            return out

    n = 2048
    layout = random_layout(1, n, n, 3, per_query=True)
    q, k, v = random_qkv(layout, heads=1)
    with Largest() as largest:
        modulated_attention(q, k, v, layout, 0.3)
    assert largest.elements < n * n / 2


def test_a_layout_for_another_layer_is_refused():
    layout = random_layout(1, 4, 4, 1)
    q, k, v = random_qkv(random_layout(1, 5, 4, 1))
    with pytest.raises(RealignError, match="5 queries"):
        modulated_attention(q, k, v, layout, 1.0)


WORDS, PIXELS, REST = 7, 30, 5


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 2),
    order=st.permutations(["words", "pixels", "rest"]),
    left_out=st.sampled_from([(), ("rest",), ("rest", "words"), ("rest", "pixels")]),
    plain=st.sampled_from(["", "words", "pixels"]),
    tile=st.sampled_from([1, 64, 2**20]),
    seed=st.integers(0, 10**6),
)
def test_joint_attention_equals_the_reference(rows, order, left_out, plain, tile, seed):
    """Each block of keys by its own extrema, whatever stands beside it: words, pixels, and keys of neither."""
    words = random_layout(rows, PIXELS, WORDS, 3, seed=seed)
    pixels = random_layout(rows, PIXELS, PIXELS, 3, per_query=True, seed=seed + 1)
    pixels.S[seed % rows] *= seed % 2
    sizes = {"words": WORDS, "pixels": PIXELS, "rest": REST}
    blocks, end = [], 0
    for name in (name for name in order if name not in left_out):
        keys, end = slice(end, end + sizes[name]), end + sizes[name]
        if name not in ("rest", plain):
            blocks.append(KeyBlock(keys, words if name == "words" else pixels, 0.9 if name == "words" else 0.4))
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(rows, 2, n, 8, generator=g) for n in (PIXELS, end, end))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(modulated.TILE, "cpu", tile)
        lean = joint_attention(q, k, v, blocks)
    assert_close(lean, joint_reference(q, k, v, blocks))


@pytest.mark.parametrize("size", [1.0, 4.0], ids=["even", "sharp"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_no_more_is_lost_than_by_plain_attention(dtype, size):
    words, pixels = random_layout(1, 400, 40, 2), random_layout(1, 400, 400, 2, per_query=True)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, n, 64, generator=g) for n in (400, 440, 440))
    q, k, v = (size * q).to(dtype), (size * k).to(dtype), v.to(dtype)
    blocks = [KeyBlock(slice(0, 40), words, 1.0), KeyBlock(slice(40, 440), pixels, 0.3)]

    def lost(attention, exact):
        return ((attention - exact).square().mean() / exact.square().mean()).sqrt().item()

    wide = (q.float(), k.float(), v.float())
    plain = lost(F.scaled_dot_product_attention(q, k, v).float(), F.scaled_dot_product_attention(*wide))
    for subset in (blocks, blocks[:1], blocks[1:]):
        ours = lost(joint_attention(q, k, v, subset).float(), joint_reference(*wide, subset))
        assert ours < 1.3 * plain, f"{ours:.2e} lost, plain attention loses {plain:.2e}"


def test_a_layer_reads_nothing_back_from_its_tensors():
    """On a GPU that would wait for all that is queued; what has to be known was read when the masks were laid out."""

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "unique_dim", "_unique2")
            return func(*args, **(kwargs or {}))

    words, pixels = random_layout(2, 30, 7, 3), random_layout(2, 30, 30, 3, per_query=True)
    words.S[0] = pixels.S[0] = 0
    words, pixels = words.to("cpu"), pixels.to("cpu")
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 8, generator=g) for n in (30, 37, 37))
    blocks = [KeyBlock(slice(0, 7), words, torch.tensor(0.9)), KeyBlock(slice(7, 37), pixels, torch.tensor(0.4))]
    with Reads():
        ours = joint_attention(q, k, v, blocks)
    assert_close(ours, joint_reference(q, k, v, blocks))
