"""Training runs of the demo models that take seconds, in the tests' process: a new one would import PyTorch first."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from realigndiff.training.loop.run import main
from realigndiff.training.refl_train import ReflRun
from realigndiff.training.settings.files import parse
from realigndiff.training.settings.refl import ReflConfig
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
PRIOR_ALONE = (
    f"--config {ROOT}/training/configs/demo.toml --reward-weight 0 --batch-size 1 --prior-batch-size 1 "
    "--prior-images 2 --prior-steps 1 --prior-keep 1 --prior-captions prompt --rollout-steps 2 --first-gradient-step 0 "
    "--gradient-steps 1 --rank 2 --targets to_q --learning-rate 1e-3 "
    "--warmup-steps 0 --decay-steps 0 --precision fp32 --evaluate-every 0 --evaluate-prompts 1 --sample-every 0 "
    "--save-every 1 --keep-last 9 --steps 3"
)
QUICK = parse(ReflConfig, PRIOR_ALONE.split())
"""A run without a reward, which takes about a second."""
WITH_REWARD = (
    f"--config {ROOT}/training/configs/demo.toml --estimator prompt_likelihood --margin 0 --reward-weight 0.05 "
    "--batch-size 2 --rollout-steps 4 --judged predicted --gradient-steps 1 --first-gradient-step 2 "
    "--prior-images 4 --prior-steps 4 --prior-batch-size 0 --rank 8 "
    "--targets to_q to_k to_v to_out.0 --learning-rate 2e-4 --warmup-steps 0 --decay-steps 0 --precision fp32 "
    "--evaluate-prompts 2 --evaluate-every 2 --sample-every 3 --save-every 2 --keep-last 9 --steps 6"
)
"""The options of a run with a reward."""


def run_in(output: Path, **changes) -> ReflRun:
    """A run without a reward, not yet trained."""
    return ReflRun(QUICK.replace(output=str(output), **changes))


@dataclass(frozen=True)
class Exit:
    """What a process would leave: its exit status and its two streams."""

    status: int
    stdout: str
    stderr: str


def run_script(output: Path, *more: str) -> Exit:
    """`python training/refl_train.py` with a reward and the options `more`."""
    out, err = io.StringIO(), io.StringIO()
    warnings = logging.StreamHandler(err)  # where pytest listens to the log, Python does not print it
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["refl_train.py", *WITH_REWARD.split(), "--output", str(output), *more])
        logging.getLogger().addHandler(warnings)
        try:
            main(ReflRun, ReflConfig, "refl_train", "")
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        finally:
            logging.getLogger().removeHandler(warnings)
    return Exit(status, out.getvalue(), err.getvalue())


def environment() -> dict[str, str]:
    """For a new process: by as many threads as here, as another number rounds differently."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def copy_of(whole: Path, output: Path, *steps: int) -> Path:
    """A run's folder as it was when it had only the checkpoints of these steps, and the images for L_pre."""
    (output / "checkpoints").mkdir(parents=True)
    for file in (checkpoint(whole, step).relative_to(whole) for step in steps):
        shutil.copy(whole / file, output / file)
    if (whole / "prior.safetensors").exists():
        shutil.copy(whole / "prior.safetensors", output)
    return output


def checkpoint(output: Path, step: int) -> Path:
    return output / f"checkpoints/step-{step:08d}.pt"


def steps(output: Path) -> list[int]:
    """The steps of the checkpoints in a run's folder."""
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
