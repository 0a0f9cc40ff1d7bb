"""The training script on the demo models: what a run writes, and that stopping it costs nothing."""

import base64
import csv
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
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


def test_the_progress_bar_shows_reward_loss_and_speed(tmp_path):
    said = run(tmp_path / "bar", "--steps", "1", "--evaluate-every", "0", "--sample-every", "0", "--prior-weight", "0")
    assert re.search(r"1/1 .*reward 0\.\d+, loss 0\.\d+, \d+\.\d+ images/s", said.stderr), said.stderr


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


def test_drawing_samples_changes_nothing(whole, tmp_path):
    output = tmp_path / "drawn"
    (output / "checkpoints").mkdir(parents=True)
    for file in ("checkpoints/step-00000004.pt", "prior.safetensors"):
        (output / file).write_bytes((whole / file).read_bytes())
    assert run(output, "--sample-every", "1").returncode == 0
    assert len(list((output / "samples").iterdir())) == 2
    assert same(output / "last.safetensors", whole / "last.safetensors")


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
        assert "not finished" in (output / "report.html").read_text(encoding="utf-8")
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
