"""What `--dry-run` says of memory is what a run then takes."""

from pathlib import Path

import pytest
import torch
from realigndiff.core.errors import RealignError
from realigndiff.training.loop.models import load_models
from realigndiff.training.loop.optimization import make_optimizer
from realigndiff.training.loop.plan import memory, plan
from realigndiff.training.settings.files import load as read
from realigndiff.training.settings.refl import ReflConfig

DEMO = read(ReflConfig, Path(__file__).parents[1] / "training/configs/demo.toml")


def bytes_of(tensors) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@pytest.mark.parametrize("train", ["lora", "unet"])
def test_the_memory_told_is_that_of_the_tensors(train):
    config = DEMO.replace(train=train, precision="bf16")
    models = load_models(config, torch.device("cpu"))
    sizes, optimizer = memory(config, models), make_optimizer(models.weights, config)
    for weight in models.weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert sizes["AdamW's moments"] == bytes_of(moments)
    assert sizes["gradient"] == bytes_of(weight.grad for weight in models.weights)
    judges = models.rewards["caption"].networks()
    assert {weight.dtype for weight in judges[0].vision_model.parameters()} == {torch.bfloat16}
    assert sizes["reward/caption"] == bytes_of(t for net in judges for t in (*net.parameters(), *net.buffers()))
    assert sizes["model/unet"] == bytes_of([*models.sampler.unet.parameters(), *models.sampler.unet.buffers()])
    assert {weight.dtype for weight in models.weights} == {torch.float32}


def test_eight_bits_take_about_a_quarter():
    config = DEMO.replace(train="unet", ema=0.9)
    models = load_models(config, torch.device("cpu"))
    full = memory(config, models)
    small = memory(config.replace(optimizer_8bit=True), models)
    assert small["AdamW's moments"] == pytest.approx(full["AdamW's moments"] / 4, rel=0.05)
    assert full["moving average"] == full["gradient"]


def test_the_plan_stops_at_what_the_run_would_stop_at():
    without = DEMO.replace(reward="clip", clip="demo", captioner="nowhere")
    with pytest.raises(RealignError, match="no model folder 'nowhere'"):
        plan(without.replace(prior_captions="captioner"))


def test_a_captioner_is_read_only_where_something_is_to_be_said():
    without = DEMO.replace(reward="clip", clip="demo", captioner="nowhere")
    assert "reward/clip" in plan(without.replace(prior_captions="prompt", prior_keep=1))
    assert "reward/clip" in plan(without.replace(prior_captions="captioner", prior_weight=0))


def test_the_plan_names_what_is_written_and_where(tmp_path):
    text = plan(DEMO.replace(output=str(tmp_path / "mine"), sample_every=0, evaluate_every=0))
    assert f"writes to {tmp_path / 'mine'}:" in text
    assert "last.safetensors" in text
    assert "samples" not in text
    assert "best.safetensors" not in text
    assert "goes on from" not in text
    (tmp_path / "mine/checkpoints").mkdir(parents=True)
    (tmp_path / "mine/checkpoints/step-00000004.pt").touch()
    assert "step-00000004.pt" in plan(DEMO.replace(output=str(tmp_path / "mine")))
