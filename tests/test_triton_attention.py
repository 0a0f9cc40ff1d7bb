"""The Triton kernel computes eq. 8-9 (seen in Triton's interpreter) and is compiled for GPUs (which needs none)."""

from __future__ import annotations

import logging
import math
import multiprocessing
import runpy
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from realigndiff.attention.equation import modulated
from realigndiff.attention.equation.layout import KeyBlock
from realigndiff.attention.equation.reference import joint_reference
from realigndiff.tests.close import assert_close
from realigndiff.tests.layouts import random_layout

triton = pytest.importorskip("triton", reason="needs Triton")
from realigndiff.attention.equation import triton_kernel as kernel

INTERPRETER = str(Path(__file__).with_name("triton_interpreter.py"))


@pytest.fixture(scope="module")
def attend():
    """`triton_attention` in a process of its own: there the interpreter, which no other test may meet."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), runpy.run_path, (INTERPRETER,)) as pool:

        def attend(*arguments):
            assert pool.submit(kernel.supports, *arguments).result()
            return pool.submit(kernel.triton_attention, *arguments).result()

        yield attend


def random_block(start, n_queries, n_keys, *, regions=3, rows=2, strength=0.8, **options):
    layout = random_layout(rows, n_queries, n_keys, regions, **options)
    return KeyBlock(slice(start, start + n_keys), layout, strength)


def qkv(n_queries, n_keys, d, *, rows=2, heads=2, dtype=torch.float32, seed=0):
    """As models make them: views of [rows, N, heads · d], those of keys and values parts of a longer vector."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, n_queries, heads * d, generator=g)
    both = torch.randn(rows, n_keys, 2 * heads * d, generator=g)
    return tuple(x.to(dtype).unflatten(-1, (heads, d)).transpose(1, 2) for x in (q, *both.chunk(2, -1)))


CASES = {
    "words": (40, 77, 40, [random_block(0, 40, 77)]),
    "words of two encodings, gains limited": (20, 154, 40, [random_block(0, 20, 154, limit=0.4)]),
    "pixels": (70, 70, 64, [random_block(0, 70, 70, per_query=True, strength=0.3)]),
    "pixels, few": (1, 1, 80, [random_block(0, 1, 1, per_query=True)]),
    "words and pixels": (40, 81, 96, [random_block(0, 40, 41), random_block(41, 40, 40, per_query=True, seed=1)]),
    "pixels and words, apart, and keys of neither": (
        40, 130, 8, [random_block(7, 40, 40, per_query=True), random_block(60, 40, 39, seed=1, limit=1.0)],
    ),
    "the later block first": (20, 60, 16, [random_block(40, 20, 20), random_block(10, 20, 20, seed=1)]),
    "31 regions": (20, 20, 160, [random_block(0, 20, 20, regions=31, per_query=True)]),
    "a strength that is a tensor": (20, 20, 8, [random_block(0, 20, 20, strength=torch.tensor(0.8))]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_equals_the_reference(case, attend):
    n_queries, n_keys, d, blocks = CASES[case]
    inputs = qkv(n_queries, n_keys, d)
    out = attend(*inputs, blocks)
    assert out.transpose(1, 2).is_contiguous(), "in memory as q is, so that joining the heads copies nothing"
    assert_close(out, joint_reference(*inputs, blocks))


def test_strides_may_be_any(attend):
    q, k, v = qkv(20, 30, 24)
    q, k, v = q.mT.contiguous().mT, k.flip(2)[:, :1].expand(-1, 2, -1, -1), v.contiguous()
    blocks = [random_block(0, 20, 30)._replace(keys=slice(None))]
    assert_close(attend(q, k, v, blocks), joint_reference(q, k, v, blocks))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_no_more_than_plain_attention(dtype, attend):
    inputs = qkv(130, 170, 64, dtype=dtype)
    blocks = [random_block(0, 130, 40, regions=2), random_block(40, 130, 130, regions=2, per_query=True, strength=0.3)]

    def lost(out, exact):
        return ((out.float() - exact).square().mean() / exact.square().mean()).sqrt().item()

    wide = [x.float() for x in inputs]
    ours = lost(attend(*inputs, blocks), joint_reference(*wide, blocks))
    plain = lost(F.scaled_dot_product_attention(*inputs), F.scaled_dot_product_attention(*wide))
    assert ours < 1.3 * plain, f"{ours:.2e} lost, plain attention loses {plain:.2e}"


def test_extreme_scores_of_half_precision_stay_finite(attend):
    q, k, v = qkv(16, 40, 64, dtype=torch.float16)
    blocks = [random_block(0, 16, 40, strength=2.0)]
    assert attend(q * 100, k * 100, v, blocks).isfinite().all()


def test_what_the_kernel_is_not_made_for_it_refuses(monkeypatch):
    monkeypatch.setattr(kernel, "_runs_on", lambda device: True)
    q, k, v = qkv(4, 6, 8)
    block = random_block(0, 4, 6)
    assert kernel.supports(q, k, v, [block])
    assert not kernel.supports(q.requires_grad_(), k, v, [block])
    with torch.no_grad():
        assert kernel.supports(q, k, v, [block])
    q = q.detach()
    assert not kernel.supports(q, k.half(), v, [block])
    assert not kernel.supports(q.double(), k.double(), v.double(), [block])
    assert not kernel.supports(q, k, v[..., :4], [block])
    assert not kernel.supports(*qkv(4, 6, 264), [block])
    assert not kernel.supports(q, k, v, [random_block(0, 4, 6, regions=32)])
    assert not kernel.supports(q, k, v, [random_block(n, 4, 2) for n in (0, 2, 4)])


@pytest.mark.parametrize("broken", ["no Triton", "no GPU"])
def test_where_the_kernel_does_not_work_that_is_told_once(broken, monkeypatch, caplog):
    monkeypatch.setattr(modulated, "_broken", set())
    monkeypatch.setattr(kernel, "_runs_on", lambda device: True)
    if broken == "no Triton":
        monkeypatch.delattr("realigndiff.attention.equation.triton_kernel")
        monkeypatch.setitem(sys.modules, "realigndiff.attention.equation.triton_kernel", None)
    arguments = (*qkv(4, 6, 8), [random_block(0, 4, 6)])
    with caplog.at_level(logging.INFO):
        assert modulated._run_kernel(*arguments) is None
        assert modulated._run_kernel(*arguments) is None
    assert len(caplog.messages) == 1
    assert "without its Triton kernel" in caplog.text


def test_a_compiled_model_takes_it_as_one_operation(monkeypatch):
    monkeypatch.setattr(kernel, "_runs_on", lambda device: True)
    q, k, v = qkv(4, 6, 8)
    operations = []

    def backend(graph, inputs):
        operations.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph

    block = random_block(0, 4, 6)
    block = block._replace(layout=block.layout.to("cpu"))  # with all that is derived from it, as in a run
    op = kernel._operation
    op.register_kernel("cpu")(lambda q, k, v, *others: q + v[:, :, :4] * others[4][0])  # any stand-in
    with op.set_kernel_enabled("cpu"):
        model = torch.compile(
            lambda q, k, v, x: 2 * modulated._run_kernel(q, k, v, [block._replace(strength=x)]),
            backend=backend,
            fullgraph=True,
        )
        for strength in (0.5, 0.25):
            out = model(q, k, v, torch.tensor(strength))
            assert torch.equal(out, 2 * (q + v[:, :, :4] * strength))
    assert operations.count(torch.ops.realigndiff.modulated_attention.default) == 1, "compiled once, for any strength"


class NoGPU:
    """What Triton asks of a GPU's driver before it compiles."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch

    def get_current_stream(self, device):
        return 0


MODELS = {
    "SD1.5, pixels": (80, torch.float16, 40, 4096, [(0, 4096, 1)], 4096),
    "SDXL, words": (90, torch.float16, 64, 4096, [(0, 77, 77)], 77),
    "Flux, words and pixels": (86, torch.bfloat16, 128, 4096, [(0, 512, 512), (512, 4096, 1)], 4608),
}


@pytest.mark.parametrize("model", MODELS)
def test_it_is_compiled_for_a_gpu(model, monkeypatch, tmp_path):
    capability, dtype, d, n_queries, blocks, n_keys = MODELS[model]
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", NoGPU(capability))
    q, k, v = (
        torch.empty(2, n, 8 * d, dtype=dtype).unflatten(-1, (8, d)).transpose(1, 2) for n in (n_queries, n_keys, n_keys)
    )
    vectors = [
        [torch.empty(2, n, dtype=kind) for n in sizes]
        for sizes, kind in (
            ([n_queries] * len(blocks), torch.float32),
            ([n_queries] * len(blocks), torch.int32),
            ([gains for _, _, gains in blocks], torch.float32),
            ([n for _, n, _ in blocks], torch.int32),
        )
    ]
    numbers = [[0.3] * len(blocks), [math.inf] * len(blocks), [start for start, _, _ in blocks]]
    grid, arguments, options = kernel._call(q, k, v, torch.empty_like(q), *vectors, *numbers)
    compiled = kernel._kernel.warmup(*arguments, grid=grid, **options)
    assert "mma" in compiled.asm["ptx"], "tensor cores"
    assert "cp.async" in compiled.asm["ptx"], "loads while it computes"
    assert compiled.metadata.shared <= 99 * 1024, "what a thread block can have on consumer cards"
