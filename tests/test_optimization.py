"""From gradients to weights: the moving average, 8-bit AdamW, fp16's loss scale, and models that make room."""

import sys

import pytest
import torch
from accelerate import Accelerator
from realigndiff.core.errors import RealignError
from realigndiff.training.loop.models import on_device
from realigndiff.training.loop.optimization import (
    lower_scale,
    make_accelerator,
    make_average,
    make_optimizer,
    set_learning_rate,
    swap_in_average,
)
from realigndiff.training.settings.refl import ReflConfig
from torch import nn


def weights() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(2))]


# Precision


@pytest.mark.parametrize(("capability", "warned"), [("AVX2", True), ("AVX512", False)])
def test_bf16_on_a_cpu_without_it_is_warned_of(monkeypatch, caplog, tmp_path, capability, warned):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    make_accelerator(ReflConfig(precision="bf16", output=str(tmp_path)))
    assert ("set precision to fp32" in caplog.text) == warned


# The moving average


def test_the_average_is_the_sum_of_the_equation_written_out():
    params = weights()
    average, expected = make_average(params, 0.3), [weight.detach().clone() for weight in params]
    for step in range(6):
        for weight in params:
            weight.data += torch.randn_like(weight)
        average.step(params)
        decay = min(0.3, (1 + step) / (10 + step)) if step else 0
        expected = [decay * old + (1 - decay) * new.detach() for old, new in zip(expected, params, strict=True)]
    for got, want in zip(average.shadow_params, expected, strict=True):
        torch.testing.assert_close(got, want)


def test_the_average_stands_in_for_the_weights_and_makes_way_again():
    params = weights()
    average, before = make_average(params, 0.9), [weight.detach().clone() for weight in params]
    for weight in params:
        weight.data += 1
    raw = [weight.detach().clone() for weight in params]
    with pytest.raises(KeyError), swap_in_average(params, average):
        assert all(map(torch.equal, params, before))
        raise KeyError
    assert all(map(torch.equal, params, raw))
    with swap_in_average(params, None):
        assert all(map(torch.equal, params, raw))


def test_no_decay_is_no_average():
    assert make_average(weights(), 0.0) is None


# AdamW


def test_a_missing_bitsandbytes_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(RealignError, match=r"bitsandbytes.*pip install bitsandbytes, or set optimizer_8bit to false"):
        make_optimizer(weights(), ReflConfig(optimizer_8bit=True))


def test_8_bits_move_the_weights_as_32_do():
    pytest.importorskip("bitsandbytes")
    moved = []
    for eight_bit in (False, True):
        torch.manual_seed(1)
        weight = nn.Parameter(torch.randn(64, 64))
        optimizer = make_optimizer([weight], ReflConfig(optimizer_8bit=eight_bit, learning_rate=1e-2))
        for _ in range(5):
            weight.grad = torch.sign(weight.detach())
            optimizer.step()
        moved.append(weight.detach())
    torch.testing.assert_close(moved[1], moved[0], atol=1e-3, rtol=0)


def test_the_learning_rate_rises_and_falls():
    config, rates = ReflConfig(steps=6, warmup_steps=2, decay_steps=4, learning_rate=0.1), []
    optimizer = make_optimizer(weights(), config)
    for step in range(6):
        set_learning_rate(optimizer, config, step)
        rates.append(optimizer.param_groups[0]["lr"] / 0.1)
    assert rates == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])


# fp16


def test_fp16_without_a_gpu_is_refused(monkeypatch):
    with pytest.raises(RealignError, match=r"precision is fp16.*set it to fp32 or bf16"):
        make_accelerator(ReflConfig(precision="fp16"))


def test_a_scale_too_large_falls_until_the_gradient_fits():
    """accelerate's own way for fp16, whose scale here is too large even for fp32."""
    host = Accelerator(mixed_precision="fp16", cpu=True)
    host.native_amp, host.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**127)
    weight = nn.Parameter(torch.ones(3))
    optimizer = host.prepare(torch.optim.SGD([weight], lr=1.0))
    moved, lowered = [], []
    for _ in range(5):
        optimizer.zero_grad()
        before = weight.detach().clone()
        host.backward((weight * 7).sum())
        if torch.isfinite(host.clip_grad_norm_([weight], 1e9)):
            optimizer.step()
            torch.testing.assert_close(before - weight.detach(), torch.full((3,), 7.0))
        else:
            lowered.append(lower_scale(host))
        moved.append(not torch.equal(before, weight))
    assert moved == [False, False, True, True, True]  # 7 · 2**125 is the first below 2**128
    assert lowered == [True, True]


def test_a_gradient_that_is_not_finite_at_any_scale_is_not_blamed_on_it():
    host = Accelerator(mixed_precision="fp16", cpu=True)
    host.native_amp, host.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0)
    weight = nn.Parameter(torch.ones(3))
    optimizer = host.prepare(torch.optim.SGD([weight], lr=1.0))
    lowered = []
    for _ in range(4):
        optimizer.zero_grad()
        host.backward((weight * float("nan")).sum())
        host.clip_grad_norm_([weight], 1.0)
        lowered.append(lower_scale(host))
    assert lowered == [True, True, False, False]


def test_without_a_scale_a_bad_gradient_is_bad():
    assert not lower_scale(Accelerator(mixed_precision="no", cpu=True))


# Models that make room


def test_modules_move_and_have_their_own_memory_again():
    """A precision stands in for a second device, of which a CPU has none: `Tensor.to` takes either."""
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).requires_grad_(False)
    tensors = [*module.parameters(), *module.buffers()]
    places = [(tensor.data_ptr(), tensor.dtype) for tensor in tensors]
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(KeyError), on_device(torch.float64, [module]):
        module.eval()(x).sum().backward()
        assert {tensor.dtype for tensor in tensors} == {torch.float64}
        raise KeyError
    assert x.grad.abs().max() > 0
    assert [(tensor.data_ptr(), tensor.dtype) for tensor in tensors] == places


def test_nothing_moves_where_it_is_already():
    module = nn.Linear(3, 3)
    place = module.weight.data_ptr()
    with on_device(torch.device("cpu"), [module]):
        assert module.weight.data_ptr() == place
