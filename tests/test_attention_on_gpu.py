"""What a GPU adds to modulated attention, seen on a CPU: the kernel's part of a batch, its limits, and autocast."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from realigndiff.attention.equation import modulated
from realigndiff.attention.equation.layout import KeyBlock
from realigndiff.attention.equation.modulated import joint_attention
from realigndiff.attention.equation.reference import joint_reference
from realigndiff.tests.layouts import random_layout


def block(n_queries=20, n_keys=30, rows=4, per_query=False) -> KeyBlock:
    """Two regions, in the first and the last batch element; the others are left alone."""
    layout = random_layout(rows, n_queries, n_queries if per_query else n_keys, 2, per_query=per_query)
    layout.S[1:-1] = 0
    return KeyBlock(slice(0, layout.shape[2]), layout, 0.8)


def qkv(n_queries=20, n_keys=30, rows=4, d=8, dtype=torch.float32, sharp=1.0):
    """As models make them: views of [rows, N, heads · d]."""
    g = torch.Generator().manual_seed(1)
    return tuple(
        (scale * torch.randn(rows, n, 2 * d, generator=g)).to(dtype).unflatten(-1, (2, d)).transpose(1, 2)
        for n, scale in ((n_queries, sharp), (n_keys, 1.0), (n_keys, 1.0))
    )


def test_the_kernel_gets_the_modulated_rows_and_the_others_are_plain_attention_bit_for_bit(monkeypatch):
    asked = []

    def run_kernel(q, k, v, blocks):
        asked.append([len(q), *(len(one.layout.B) for one in blocks)])
        return joint_reference(q, k, v, blocks)

    monkeypatch.setattr(modulated, "_may_have_kernel", lambda device: True)
    monkeypatch.setattr(modulated, "_run_kernel", run_kernel)
    (q, k, v), one = qkv(), block()
    out = joint_attention(q, k, v, [one])
    assert asked == [[2, 2]]
    assert torch.equal(out[1:3], F.scaled_dot_product_attention(q, k, v)[1:3])
    torch.testing.assert_close(out, joint_reference(q, k, v, [one]))
    assert out.transpose(1, 2).is_contiguous(), "in memory as q is, so that joining the heads copies nothing"


@pytest.mark.parametrize("per_query", [False, True], ids=["words", "pixels"])
def test_inside_autocast_scores_are_as_exact_as_outside(per_query):
    (q, k, v), one = qkv(sharp=3.0), block(per_query=per_query)
    with torch.autocast("cpu", torch.bfloat16):
        inside = joint_attention(q[:1], k[:1], v[:1], [one._replace(layout=one.layout.part([0]))])
    torch.testing.assert_close(inside, joint_reference(q, k, v, [one])[:1])


def test_inside_autocast_queries_and_keys_may_have_stayed_in_float32():
    (q, k, v), one = qkv(), block()
    with torch.autocast("cpu", torch.bfloat16):
        out = joint_attention(q, k, v.bfloat16(), [one])
    assert out.dtype == torch.bfloat16, "as plain attention's would be"
    torch.testing.assert_close(out.float(), joint_reference(q, k, v, [one]), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "q, kept",
    [
        (torch.empty(1, 2, 20, 8, device="meta"), True),
        (torch.empty(2**16, 1, 20, 8, device="meta"), False),  # more batch rows than a grid has
        (torch.empty(1, 2**16, 20, 8, device="meta"), False),
        (torch.empty(1, 20, 2**27, device="meta").unflatten(-1, (2**24, 8)).transpose(1, 2)[:, :2], False),  # 2³¹ apart
    ],
)
def test_the_kernel_refuses_what_its_numbers_do_not_hold(q, kept, monkeypatch):
    kernel = pytest.importorskip("realigndiff.attention.equation.triton_kernel", reason="needs Triton")
    monkeypatch.setattr(kernel, "_runs_on", lambda device: True)
    k = torch.empty(*q.shape[:2], 30, 8, device="meta")
    assert kernel.supports(q, k, k, [block()]) is kept
