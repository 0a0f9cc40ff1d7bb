"""The training script on the demo models: what a run writes, and that stopping it costs nothing."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from realigndiff.tests.miniatures import save_sdxl
from safetensors import safe_open
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
QUICK = (
    "--config training/configs/demo.toml --estimator prompt_likelihood --margin 0 --reward-weight 0.05 --batch-size 2 "
    "--rollout-steps 4 --first-gradient-step 2 --last-gradient-step 3 --prior-images 4 --evaluate-prompts 2 "
    "--evaluate-every 2 --sample-every 3 --save-every 2 --keep-last 9 --steps 6"
)


def command(output: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "training/refl_train.py"), *QUICK.split(), "--output", str(output), *more]


def run(output: Path, *more: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command(output, *more), cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of six steps that nothing stopped."""
    output = tmp_path_factory.mktemp("run")
    done = run(output)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory) -> tuple[list[str], Path]:
    """The options for a miniature SDXL, and a run of two steps with them that nothing stopped."""
    folder = tmp_path_factory.mktemp("sdxl")
    options = ["--model", str(save_sdxl(folder / "model")), "--steps", "2", "--save-every", "1", "--sample-every", "2"]
    done = run(folder / "run", *options)
    assert done.returncode == 0, done.stderr
    return options, folder / "run"


def same(a: Path, b: Path) -> bool:
    one, two = load_file(a), load_file(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


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


@pytest.mark.parametrize("kept", [2, 4])
def test_a_run_that_goes_on_ends_with_the_same_weights_bit_for_bit(whole, tmp_path, kept):
    """As if it had been killed after the checkpoint of step `kept`."""
    output = tmp_path / "resumed"
    (output / "checkpoints").mkdir(parents=True)
    for file in (f"checkpoints/step-{kept:08d}.pt", "prior.safetensors"):
        (output / file).write_bytes((whole / file).read_bytes())
    done = run(output)
    assert f"step {kept} of 6" in done.stdout, done.stderr
    assert same(output / "last.safetensors", whole / "last.safetensors")


def test_a_checkpoint_that_is_cut_off_is_told_and_an_earlier_one_taken(whole, tmp_path):
    output = tmp_path / "cut"
    (output / "checkpoints").mkdir(parents=True)
    for file in ("checkpoints/step-00000002.pt", "checkpoints/step-00000004.pt", "prior.safetensors"):
        (output / file).write_bytes((whole / file).read_bytes())
    cut = output / "checkpoints/step-00000004.pt"
    cut.write_bytes(cut.read_bytes()[:1000])
    done = run(output)
    assert "step-00000004.pt cannot be read" in done.stderr
    assert "step 2 of 6" in done.stdout
    assert same(output / "last.safetensors", whole / "last.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_killed_or_stopped_goes_on_to_the_same_weights(whole, tmp_path, how):
    output = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(output), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (output / "checkpoints/step-00000002.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    said = process.communicate()[0]
    if how == signal.SIGINT:
        assert "the same command goes on from" in said
        assert process.returncode == 0
    assert run(output).returncode == 0
    assert same(output / "last.safetensors", whole / "last.safetensors")


def test_a_plan_is_told_and_nothing_written(tmp_path):
    done = run(tmp_path / "none", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "trains" in done.stdout
    assert "6 steps of 2 images" in done.stdout
    assert not (tmp_path / "none").exists()


def test_a_size_that_the_model_does_not_draw_is_one_sentence(tmp_path):
    done = run(tmp_path / "none", "--resolution", "128")
    assert "resolution is 128, but this model is trained at 64" in done.stderr.strip().splitlines()[-1]


def test_a_missing_model_is_one_sentence(tmp_path):
    done = run(tmp_path / "none", "--model", "no/such/folder")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("refl_train: There is no model folder 'no/such/folder")


def test_two_processes_train_what_one_does_at_the_same_total_batch(tmp_path):
    """As `accelerate launch` starts them, on the CPU."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    options = ["--steps", "3", "--evaluate-every", "0"]
    two = subprocess.run(
        [*launch, *command(tmp_path / "two", *options)[1:]], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert two.returncode == 0, two.stderr
    assert run(tmp_path / "one", *options, "--batch-size", "4").returncode == 0
    one, both = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert max(float((one[name] - both[name]).abs().max()) for name in one) < 1e-5
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
    done = run(tmp_path / "half", *options, "--precision", "bf16")
    assert done.returncode == 0, done.stderr
    half, full = load_file(tmp_path / "half" / "last.safetensors"), load_file(whole / "last.safetensors")
    assert all(weight.dtype == torch.float32 for weight in half.values())
    moved = torch.cat([torch.stack([half[name], full[name]]).flatten(1) for name in half if "lora_up" in name], dim=1)
    assert torch.corrcoef(moved)[0, 1] > 0.5


def test_a_run_on_sdxl_goes_on_to_the_same_weights(sdxl, tmp_path):
    options, whole = sdxl
    output = tmp_path / "resumed"
    (output / "checkpoints").mkdir(parents=True)
    for file in ("checkpoints/step-00000001.pt", "prior.safetensors"):
        (output / file).write_bytes((whole / file).read_bytes())
    done = run(output, *options)
    assert "step 1 of 2" in done.stdout, done.stderr
    assert same(output / "last.safetensors", whole / "last.safetensors")
