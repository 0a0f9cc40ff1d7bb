"""The training script on the demo models: what a run writes, and that stopping it costs nothing."""

import base64
import csv
import io
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from realigndiff.core.errors import RealignError
from realigndiff.tests.close import assert_close
from realigndiff.tests.miniatures import save_sdxl
from realigndiff.tests.short_runs import (
    PRIOR_ALONE,
    ROOT,
    WITH_REWARD,
    Exit,
    checkpoint,
    copy_of,
    environment,
    run_in,
    run_script,
    same,
    steps,
)
from realigndiff.training.loop.models import make_estimators
from realigndiff.training.refl_train import ReflRun
from realigndiff.training.settings.files import parse
from realigndiff.training.settings.refl import ReflConfig
from safetensors import safe_open
from safetensors.torch import load_file

ONE_STEP = ("--steps", "1", "--evaluate-every", "0", "--sample-every", "0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Exit]:
    """A run of six steps that nothing stopped, and what it printed."""
    output = tmp_path_factory.mktemp("run")
    done = run_script(output)
    assert done.status == 0, done.stderr
    return output, done


@pytest.fixture(scope="module")
def whole(finished) -> Path:
    """The folder of that run."""
    return finished[0]


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory) -> tuple[list[str], Path]:
    """The options for a miniature SDXL, and a run of two steps with them that nothing stopped."""
    folder = tmp_path_factory.mktemp("sdxl")
    options = ["--model", str(save_sdxl(folder / "model")), "--steps", "2", "--save-every", "1", "--sample-every", "2"]
    done = run_script(folder / "run", *options)
    assert done.status == 0, done.stderr
    return options, folder / "run"


LITTLE = "--steps 2 --evaluate-every 0 --sample-every 0 --prior-images 2 --prior-steps 1 --rollout-steps 3"
WAYS = {
    "predicted": (f"{LITTLE} --first-gradient-step 1", "--batch-size 4"),
    "finished": (
        f"{LITTLE} --first-gradient-step 1 --judged finished --gradient-steps 2 --prior-batch-size 3",
        "--batch-size 4 --prior-batch-size 6",
    ),
}
"""The options of a run that two processes train, and those that change where one trains the same."""


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> Path:
    """The runs `killed`, `predicted` and `finished` of processes of their own."""
    folder = tmp_path_factory.mktemp("processes")
    runs = {"killed": PRIOR_ALONE, **{way: f"{WITH_REWARD} {options}" for way, (options, _) in WAYS.items()}}
    each = [f"{options} --output {shlex.quote(str(folder / way))}" for way, options in runs.items()]
    command = [sys.executable, str(ROOT / "tests/train_in_turn.py"), *each]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return folder


def first_loss(folder: Path) -> float:
    """Of the first step of a run."""
    return float(next(row["loss"] for row in csv.DictReader((folder / "log.csv").open()) if row["step"] == "1"))


def test_it_writes_a_log_samples_checkpoints_and_the_weights(whole):
    rows = list(csv.DictReader((whole / "log.csv").open(encoding="utf-8")))
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert all(-1 <= float(row["reward"]) <= 1 for row in rows[1:])
    assert [bool(row["held_out_reward"]) for row in rows] == [True, False, True, False, True, False, True]
    assert [file.name for file in sorted((whole / "samples").iterdir())] == [
        f"step-{step:08d}.png" for step in (0, 3, 6)
    ]
    assert sorted(file.name for file in (whole / "checkpoints").iterdir()) == [
        f"step-{step:08d}.pt" for step in (2, 4, 6)
    ]
    with safe_open(whole / "last.safetensors", "pt") as file:
        assert file.metadata()["ss_steps"] == "6"
        assert "realigndiff.config" in file.metadata()


def test_the_progress_bar_shows_reward_loss_and_speed(finished):
    output = finished[1].stderr
    assert re.search(r"6/6 .*reward 0\.\d+, loss 0\.\d+, \d+\.\d+ images/s", output), output


def test_the_header_holds_the_newest_sample_as_a_thumbnail_and_stays_small(whole):
    for name in ("best", "last"):
        file = whole / f"{name}.safetensors"
        with safe_open(file, "pt") as opened:
            kind, _, content = opened.metadata()["modelspec.thumbnail"].partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).size == (64, 64)
        assert int.from_bytes(file.read_bytes()[:8], "little") < 100_000


def test_the_report_shows_the_run_and_its_samples(whole):
    text = (whole / "report.html").read_text(encoding="utf-8")
    assert "6 of 6 steps" in text
    assert text.count("<img") == 2 * 4 + 1  # four prompts before and after, and one grid between


def test_a_run_that_goes_on_ends_with_the_same_weights_bit_for_bit(whole, tmp_path):
    """As if it had been killed after a checkpoint; and drawing samples changes nothing."""
    output = copy_of(whole, tmp_path / "resumed", 4)
    done = run_script(output, "--sample-every", "1")
    assert "step 4 of 6" in done.stdout, done.stderr
    assert len(list((output / "samples").iterdir())) == 2
    assert same(output / "last.safetensors", whole / "last.safetensors")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process")
def test_a_run_that_was_killed_goes_on_to_the_same_weights(three_steps, processes, capsys):
    """What a run that is stopped in order leaves: tests/test_how_runs_end.py."""
    killed = processes / "killed"
    assert steps(killed) == [1]
    run_in(killed).train()
    assert "step 1 of 3" in capsys.readouterr().out
    assert same(killed / "last.safetensors", three_steps / "last.safetensors")


def test_the_moving_average_is_saved_and_goes_on_bit_for_bit_in_bf16(tmp_path, capsys):
    """The raw weights, their average and the optimiser's state all come back from a checkpoint."""
    whole, settings = tmp_path / "whole", {"train": "unet", "ema": 0.5, "precision": "bf16", "steps": 2}
    run_in(whole, **settings).train()
    run_in(copy_of(whole, tmp_path / "resumed", 1), **settings).train()
    assert "step 1 of 2" in capsys.readouterr().out
    assert same(tmp_path / "resumed/last.safetensors", whole / "last.safetensors")
    losses = [float(row["loss"]) for row in csv.DictReader((whole / "log.csv").open()) if row["loss"]]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    first, second = (torch.load(checkpoint(whole, step), weights_only=True) for step in (1, 2))
    conv = next(i for i, weight in enumerate(second["weights"]) if weight.dim() == 4)
    before, raw = first["average"]["shadow_params"][conv], second["weights"][conv]
    average = before + (raw - before) * (1 - 2 / 11)  # the second step's decay, still rising to 0.5
    assert_close(second["average"]["shadow_params"][conv], average)
    saved = load_file(whole / "last.safetensors")["input_blocks.0.0.weight"]
    assert torch.equal(saved, second["average"]["shadow_params"][conv].half())
    assert not torch.equal(saved, raw.half())
    folder = load_file(whole / "unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(folder["conv_in.weight"].half(), saved)


def test_a_lora_trains_in_bf16(three_steps, tmp_path):
    """Frozen weights in bf16, the LoRA in fp32; the same run as in fp32, as far as bf16 goes."""
    output = copy_of(three_steps, tmp_path / "bf16")
    run_in(output, precision="bf16", steps=1).train()
    assert first_loss(output) == pytest.approx(first_loss(three_steps), rel=0.05)
    tensors = load_file(output / "last.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert max(float(tensor.abs().max()) for name, tensor in tensors.items() if "lora_up" in name) > 1e-5


def test_the_gradient_that_goes_back_in_pieces_is_that_of_the_loss_written_out(tmp_path):
    """Of two rewards whose weights go with the step at which the gradient enters."""
    changes = "--reward caption=0.5,clip=0..4 --margin 1 --schedule timesteps --offload-captioner --prior-steps 1"
    settings = parse(ReflConfig, [*WITH_REWARD.split(), *changes.split(), "--output", str(tmp_path)])
    whole = ReflRun(settings)
    reward, loss, prior_loss = whole.add_gradient(0).tolist()
    pieces = [weight.grad.clone() for weight in whole.models.weights]
    whole.optimizer.zero_grad()

    texts, seeds, (index,) = whole._draw_batch(0)
    images = whole.rollout.predict_x0(texts, whole.models.sampler.noise(seeds), index)
    L_pre = whole.prior.loss(whole.models.sampler, whole.models.sampler.unet, seeds)
    R, true = whole.estimators["caption"](images, texts), whole.models.rewards["caption"](images.clamp(0, 1), texts)
    weight = 4 * index / (settings.rollout.rollout_steps - 1)
    clip = whole.models.rewards["clip"]
    R, true = 0.5 * R + weight * clip(images, texts), 0.5 * true + weight * clip(images.clamp(0, 1), texts)
    L = (
        settings.reward.reward_weight * (settings.reward.margin - R).relu().mean() + settings.prior.prior_weight * L_pre
    )  # eq. 5
    L.backward()
    assert (reward, loss, prior_loss) == pytest.approx((true.mean().item(), L.item(), L_pre.item()), rel=1e-4)
    assert max(float(piece.abs().max()) for piece in pieces) > 1e-4
    for piece, weight in zip(pieces, whole.models.weights, strict=True):
        assert_close(piece, weight.grad, 1e-3)


def test_a_reward_without_gradient_is_sent_to_the_other_script():
    flat = SimpleNamespace(name="sam", differentiable=False)
    with pytest.raises(RealignError, match=r"The reward sam has no gradient: .* training/arl_train\.py"):
        make_estimators(ReflConfig(), {"sam": flat})


def test_an_image_that_is_not_finite_leaves_its_batch_out(tmp_path):
    changes = f"--estimator score_function --prior-weight 0 --output {shlex.quote(str(tmp_path))}"
    whole = ReflRun(parse(ReflConfig, [*WITH_REWARD.split(), *shlex.split(changes)]))
    before, drawn = [weight.clone() for weight in whole.models.weights], whole.rollout.predict_x0
    whole.rollout.predict_x0 = lambda *given: drawn(*given) * torch.tensor([1.0, math.nan])[:, None, None, None]
    row = whole.train_step()
    assert whole.nonfinite == 1
    assert "loss" not in row
    assert all(torch.equal(*pair) for pair in zip(before, whole.models.weights, strict=True))
    whole.rollout.predict_x0 = drawn
    assert math.isfinite(whole.train_step()["loss"])
    assert whole.nonfinite == 0


def test_a_checkpoint_of_another_run_is_one_sentence(whole, tmp_path):
    copy_of(whole, tmp_path, 6)
    done = run_script(tmp_path, "--seed", "43", "--prior-weight", "0")
    assert "whose seed was 42, and now it is 43" in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "last.safetensors").exists()


def test_a_plan_is_told_and_nothing_written(tmp_path):
    done = run_script(tmp_path / "none", "--dry-run")
    assert done.status == 0, done.stderr
    assert "trains" in done.stdout
    assert "6 steps of 2 images" in done.stdout
    assert not (tmp_path / "none").exists()


def test_a_size_that_the_model_does_not_draw_is_one_sentence(tmp_path):
    done = run_script(tmp_path / "none", "--resolution", "128")
    assert "resolution is 128, but this is no longer a setting: images have the size" in done.stderr.splitlines()[-1]


def test_a_missing_model_is_one_sentence(tmp_path):
    done = run_script(tmp_path / "none", "--model", "no/such/folder")
    assert done.status == 1
    assert done.stderr.strip().splitlines()[-1].startswith("refl_train: There is no model folder 'no/such/folder")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process")
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_what_one_does_at_the_same_total_batch(way, processes, tmp_path):
    """By the image that a step predicts, and by the finished one."""
    options, larger = WAYS[way]
    assert run_script(tmp_path, *options.split(), *larger.split()).status == 0
    one, two = (load_file(folder / "last.safetensors") for folder in (tmp_path, processes / way))
    apart = torch.cat([(one[name] - two[name]).flatten() for name in one])
    # AdamW takes a whole step for the smallest gradient, whose sign rounding may turn: not each weight is alike
    assert apart.square().mean().sqrt() < 0.02 * 2 * 2e-4  # of two steps of the learning rate
    assert max(float(one[name].abs().max()) for name in one if "lora_up" in name) > 1e-4


def test_sdxl_trains_a_lora_that_diffusers_loads(sdxl):
    from diffusers import StableDiffusionXLPipeline

    options, output = sdxl
    rows = list(csv.DictReader((output / "log.csv").open(encoding="utf-8")))
    assert [bool(row["held_out_reward"]) for row in rows] == [True, False, True]
    assert (output / "samples/step-00000002.png").is_file()
    weights = load_file(output / "last.safetensors")
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn2_to_k"
    assert weights[f"{layer}.lora_down.weight"].shape[1] == 32 + 48  # both text encoders
    assert weights[f"{layer}.lora_up.weight"].abs().max() > 0
    with safe_open(output / "last.safetensors", "pt") as file:
        assert file.metadata()["ss_base_model_version"] == "sdxl_base_v1-0"
    pipeline = StableDiffusionXLPipeline.from_pretrained(options[1])
    pipeline.load_lora_weights(output / "last.safetensors")
    loaded = {name: weight for name, weight in pipeline.unet.named_parameters() if ".lora_B." in name}
    assert len(loaded) == sum(name.endswith(".lora_up.weight") for name in weights)
    for name, weight in loaded.items():
        ours = name.replace(".lora_B.default_0", "").removesuffix(".weight").replace(".", "_")
        assert torch.equal(weight, weights[f"lora_unet_{ours}.lora_up.weight"])


def test_half_precision_trains_what_stays_in_float32(sdxl, tmp_path):
    options, whole = sdxl
    output = copy_of(whole, tmp_path / "half")
    done = run_script(output, *options, "--precision", "bf16", *ONE_STEP)
    assert done.status == 0, done.stderr
    assert first_loss(output) == pytest.approx(first_loss(whole), rel=0.05)
    half = load_file(output / "last.safetensors")
    assert all(weight.dtype == torch.float32 for weight in half.values())
    assert max(float(weight.abs().max()) for name, weight in half.items() if "lora_up" in name) > 1e-5


def test_a_run_on_sdxl_goes_on_to_the_same_weights(sdxl, tmp_path):
    options, whole = sdxl
    output = copy_of(whole, tmp_path / "resumed", 1)
    done = run_script(output, *options)
    assert "step 1 of 2" in done.stdout, done.stderr
    assert same(output / "last.safetensors", whole / "last.safetensors")


def test_without_the_rewards_weight_nothing_is_sampled_and_l_pre_is_trained_alone(three_steps):
    rows = list(csv.DictReader((three_steps / "log.csv").open(encoding="utf-8")))
    assert [row["reward"] for row in rows] == ["", "", "", ""]
    assert all(row["loss"] == row["prior_loss"] != "" for row in rows[1:])
