"""Training runs of the demo model that take about a second: what they need, and what they left."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from realigndiff.training.refl_train import ReflRun
from realigndiff.training.settings.files import parse
from realigndiff.training.settings.refl import ReflConfig
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
OPTIONS = (
    f"--config {ROOT}/training/configs/demo.toml --reward-weight 0 --batch-size 1 --prior-batch-size 1 "
    "--prior-images 2 --prior-steps 1 --prior-keep 1 --prior-captions prompt --rollout-steps 2 --first-gradient-step 0 "
    "--gradient-steps 1 --rank 2 --targets to_q --learning-rate 1e-3 "
    "--warmup-steps 0 --decay-steps 0 --precision fp32 --evaluate-every 0 --evaluate-prompts 1 --sample-every 0 "
    "--save-every 1 --keep-last 9 --steps 3"
)
QUICK = parse(ReflConfig, OPTIONS.split())


def run_in(output: Path, **changes) -> ReflRun:
    """A run, not yet trained."""
    return ReflRun(QUICK.replace(output=str(output), **changes))


def copy_of(whole: Path, output: Path, *steps: int) -> Path:
    """A run's folder as it was when it had only the checkpoints of these steps; what it drew is there."""
    (output / "checkpoints").mkdir(parents=True)
    for file in (*(f"checkpoints/step-{step:08d}.pt" for step in steps), "prior.safetensors"):
        shutil.copy(whole / file, output / file)
    return output


def checkpoint(output: Path, step: int) -> Path:
    return output / f"checkpoints/step-{step:08d}.pt"


def steps(output: Path) -> list[int]:
    """Of the checkpoints in a run's folder."""
    return sorted(int(file.stem.removeprefix("step-")) for file in (output / "checkpoints").glob("*.pt"))


def same(one: Path, other: Path) -> bool:
    """Whether two files hold equal tensors."""
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder but the lock's."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".lock")
    }


def forget_devices() -> None:
    """accelerate keeps one state per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
