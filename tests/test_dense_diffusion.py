"""What the benchmarks call DenseDiffusion computes what ours does, where both mean the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from realigndiff.attention.equation.layout import Layout
from realigndiff.attention.equation.reference import reference_attention
from realigndiff.attention.equation.relation import Relation
from realigndiff.benchmarks.dense_diffusion import dense_diffusion_attention, region_maps
from realigndiff.tests.close import assert_close


@pytest.mark.parametrize("keys", [7, 30], ids=["words", "pixels"])
def test_dense_diffusion_modulates_the_prompts_elements_as_regions_whose_S_is_one_do(keys):
    g = torch.Generator().manual_seed(0)
    relation = Relation(torch.rand(2, 30, 3, generator=g) < 0.4, torch.rand(2, keys, 3, generator=g) < 0.4)
    layout = Layout(relation, torch.ones(2, 1, keys), torch.rand(2, 30, 1, generator=g))
    q, k, v = (torch.randn(4, 2, n, 8, generator=g) for n in (30, keys, keys))
    dense = dense_diffusion_attention(q, k, v, region_maps(layout), 0.8, 0.5)
    assert_close(dense[:2], F.scaled_dot_product_attention(q, k, v)[:2])
    assert_close(dense[2:], reference_attention(q[2:], k[2:], v[2:], layout, 0.4))
    after = dense_diffusion_attention(q, k, v, None, 0.8, 0.5)
    assert_close(after, F.scaled_dot_product_attention(q, k, v))
