"""Settings of a training that are only passed on have the effect that their text promises."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from realigndiff.lora_files.state_dicts import lora_state_dict
from realigndiff.sampling.sampler import DiffusersSampler
from realigndiff.tests.miniatures import unet
from realigndiff.training.data.pairs import Pairs
from realigndiff.training.loop.models import load_models, make_trainable
from realigndiff.training.loop.optimization import make_optimizer
from realigndiff.training.loop.run import Run
from realigndiff.training.settings.files import load as read
from realigndiff.training.settings.refl import ReflConfig
from torch import nn

DEMO = read(ReflConfig, Path(__file__).parents[1] / "training/configs/demo.toml").replace(
    precision="fp32",
    reward="clip",
    clip="demo",
    prior_weight=0.0,
    prior_captions="prompt",
    sample_every=0,
    evaluate_every=0,
    save_every=0,
    warmup_steps=0,
    decay_steps=0,
)


def miniature() -> nn.Module:
    torch.manual_seed(0)
    return unet(cross_attention_dim=32)


# The LoRA


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (2, 1.0)])
def test_a_loras_change_is_scaled_by_alpha_over_rank(rank, alpha):
    network = miniature()
    make_trainable(network, DEMO.replace(rank=rank, alpha=alpha, targets=("to_q",)))
    layer = next(module for name, module in network.named_modules() if name.endswith("attn2.to_q"))
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(up)
    x = torch.randn(3, down.shape[1])
    change = (layer(x) - layer.base_layer(x)).detach()
    scaled = alpha / rank * (x @ down.T @ up.T).detach()
    torch.testing.assert_close(change, scaled, rtol=1e-4, atol=1e-5)
    assert change.abs().max() > 0.1 and down.shape[0] == rank
    written = {t.item() for name, t in lora_state_dict(network).items() if name.endswith(".alpha")}
    assert written == {alpha}


def test_a_lora_begins_as_no_change_and_follows_from_the_seed():
    starts = []
    for seed in (1, 1, 2):
        network = miniature()
        x, t, words = torch.randn(1, 4, 16, 16), torch.tensor(10), torch.randn(1, 7, 32)
        before = network(x, t, words).sample
        weights = make_trainable(network, DEMO.replace(seed=seed))
        torch.testing.assert_close(network(x, t, words).sample, before, rtol=1e-5, atol=1e-6)
        starts.append(torch.cat([weight.detach().flatten() for weight in weights]))
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_with_gradient_checkpointing_the_same_gradient_costs_a_second_forward_pass():
    calls, gradients = [], []
    for checkpointing in (False, True):
        network = miniature().eval()
        weights = make_trainable(network, DEMO.replace(gradient_checkpointing=checkpointing))
        for weight in weights:
            nn.init.constant_(weight, 0.01)
        counted = Counter()
        for name, module in network.named_modules():
            if name.endswith(("resnets.0", "transformer_blocks.0")):
                module.register_forward_pre_hook(lambda *_, name=name, counted=counted: counted.update([name]))
        torch.manual_seed(1)
        out = network(torch.randn(1, 4, 16, 16), torch.tensor(10), torch.randn(1, 7, 32)).sample
        out.square().mean().backward()
        calls.append(counted)
        gradients.append([weight.grad for weight in weights])
    assert set(calls[0].values()) == {1}
    assert any("resnets" in name for name in calls[1] if calls[1][name] == 2)
    assert any("transformer_blocks" in name for name in calls[1] if calls[1][name] == 2)
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-8)


# AdamW


def test_weights_without_a_gradient_stay_where_they_are():
    """So there is no weight decay: it would draw a LoRA, or the model itself, towards 0."""
    weight = nn.Parameter(torch.tensor([1.0, -20.0, 300.0]))
    optimizer, before = make_optimizer([weight], DEMO.replace(learning_rate=0.1)), weight.detach().clone()
    for _ in range(3):
        weight.grad = torch.zeros(3)
        optimizer.step()
    assert torch.equal(weight, before)


def test_the_first_step_moves_each_weight_by_the_learning_rate():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = make_optimizer([weight], DEMO.replace(learning_rate=0.03))
    weight.grad = torch.tensor([5.0, -0.1, 70.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.03, 0.03, -0.03]), rtol=1e-4, atol=0)


# A step


class Sloped(Run):
    """A run whose loss is a sum of the weights, so that its gradient is known."""

    slope = 1.0

    def add_gradient(self, part):
        loss = self.slope * sum((weight * 2).sum() for weight in self.models.weights)
        self.accelerator.backward(loss / self.config.optimizer.gradient_accumulation)
        return torch.tensor([0.5, loss.item(), float("nan")])


@pytest.fixture
def trained(tmp_path):
    def train(slope, **changes):
        settings = {"steps": 1, "rank": 1, "targets": ("to_q",), "gradient_accumulation": 1, **changes}
        run = Sloped(DEMO.replace(output=str(tmp_path / "run"), **settings))
        run.slope = slope
        run.before = [weight.detach().clone() for weight in run.models.weights]
        run.train()
        run.norm = float(torch.cat([weight.grad.flatten() for weight in run.models.weights]).norm())
        run.count = sum(weight.numel() for weight in run.models.weights)
        return run

    return train


def test_the_gradients_norm_is_clipped_to_max_grad_norm(trained):
    run = trained(1.0, max_grad_norm=0.25)
    assert 2 * run.count**0.5 > 1  # what it would be
    assert run.norm == pytest.approx(0.25, rel=1e-3)
    assert all((weight.grad > 0).all() for weight in run.models.weights)  # its direction stays
    moved = torch.cat([(a - b).flatten() for a, b in zip(run.before, run.models.weights, strict=True)])
    torch.testing.assert_close(moved, torch.full_like(moved, run.config.optimizer.learning_rate), rtol=0.01, atol=0)


def test_a_small_gradient_is_not_cut_and_all_batches_of_a_step_add_to_it(trained):
    run = trained(1e-4, max_grad_norm=1e3, gradient_accumulation=3)
    assert run.norm == pytest.approx(1e-4 * 2 * run.count**0.5, rel=1e-3)


def test_an_evaluation_draws_each_prompt_from_noise_of_its_own_and_the_same_each_time(trained, monkeypatch):
    drawn, noise = [], DiffusersSampler.noise

    def noted(sampler, seeds):
        drawn.extend(seeds)
        return noise(sampler, seeds)

    monkeypatch.setattr(DiffusersSampler, "noise", noted)
    monkeypatch.setattr(DiffusersSampler, "max_batch", 2)
    few = {"rollout_steps": 1, "judged": "predicted", "gradient_steps": 1, "first_gradient_step": 0}
    trained(1.0, evaluate_every=1, evaluate_prompts=3, **few)
    before, after = drawn[:3], drawn[3:]
    assert before == after and len(set(before)) == 3


def test_as_many_checkpoints_are_kept_as_asked_for(trained):
    run = trained(1e-4, steps=3, save_every=1, keep_last=2)
    kept = sorted(file.stem for file in (run.output / "checkpoints").glob("step-*"))
    assert kept == ["step-00000002", "step-00000003"]


# The denoising loss


class Listening:
    """In the place of a sampler: writes down which words it is asked to denoise with, and at which noise levels."""

    def __init__(self):
        self.unet = SimpleNamespace(device=torch.device("cpu"))
        self.scheduler = DDIMScheduler(num_train_timesteps=1000)
        self.texts, self.levels = [], []

    def encode_prompts(self, texts):
        self.texts += texts
        return torch.zeros(len(texts), 1)

    def predict(self, x, t, words, unet):
        self.levels += t.tolist()
        return torch.zeros_like(x)


def test_one_image_of_ten_is_learnt_without_its_caption_and_each_pair_belongs_together():
    listening, latents = Listening(), torch.arange(4.0).view(4, 1, 1, 1)
    Pairs(latents, ["a", "b", "c", "d"]).loss(listening, None, range(3000))
    counts = Counter(listening.texts)
    assert set(counts) == {"", "a", "b", "c", "d"}
    assert 0.08 < counts[""] / 3000 < 0.12
    assert all(0.19 < counts[name] / 3000 < 0.26 for name in "abcd")
    assert min(listening.levels) < 10 and max(listening.levels) > 990


def test_each_latent_is_learnt_with_its_caption_and_noise_of_its_own():
    """The latents are so far apart that the noised one tells which it was."""
    latents = torch.arange(4.0).view(4, 1, 1, 1) * 1000
    seen = []

    class Comparing(Listening):
        def predict(self, x, t, words, unet):
            alpha = self.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
            nearest = (x / alpha.sqrt() / 1000).round().flatten().tolist()
            noise = ((x - alpha.sqrt() * 1000 * torch.tensor(nearest).view(-1, 1, 1, 1)) / (1 - alpha).sqrt()).flatten()
            seen.extend(zip(nearest, self.texts, noise.tolist(), strict=True))
            return torch.zeros_like(x)

    comparing = Comparing()
    comparing.scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.001)
    Pairs(latents, ["0", "1", "2", "3"]).loss(comparing, None, range(64))
    assert all(text in ("", str(int(place))) for place, text, _ in seen)
    assert len({round(noise, 2) for *_, noise in seen}) > 40


def test_the_models_of_a_run_draw_as_its_settings_say(tmp_path):
    """rank, alpha and targets reach the UNet that is trained, whatever path they take."""
    models = load_models(DEMO.replace(rank=2, alpha=6.0, targets=("to_v",)), torch.device("cpu"))
    layers = [module for module in models.sampler.unet.modules() if hasattr(module, "lora_A")]
    assert layers and len(models.weights) == 2 * len(layers)
    assert {layer.scaling["default"] for layer in layers} == {3.0}
    assert {weight.shape[0] for weight in models.weights[::2]} == {2}
