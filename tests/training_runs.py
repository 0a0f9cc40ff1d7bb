"""Training scripts run in the tests' own process: one that imports PyTorch costs more than the steps it takes."""

import contextlib
import io
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from realigndiff.training.loop.run import main
from realigndiff.training.refl_train import ReflRun
from realigndiff.training.settings.refl import ReflConfig
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "training/refl_train.py"
QUICK = (
    "--config training/configs/demo.toml --estimator prompt_likelihood --margin 0 --reward-weight 0.05 --batch-size 2 "
    "--rollout-steps 4 --judged predicted --gradient-steps 1 --first-gradient-step 2 "
    "--prior-images 4 --prior-steps 4 --prior-batch-size 0 --rank 8 --targets to_q to_k to_v to_out.0 "
    "--learning-rate 2e-4 --warmup-steps 0 --decay-steps 0 --precision fp32 --evaluate-prompts 2 --evaluate-every 2 "
    "--sample-every 3 --save-every 2 --keep-last 9 --steps 6"
)
"""The options of a run on the demo models that takes seconds."""


@dataclass(frozen=True)
class Done:
    """What a process would have left: its exit status and its two streams."""

    status: int
    stdout: str
    stderr: str


def arguments(output: Path, *more: str) -> list[str]:
    """The options of a quick run into the folder `output`."""
    return [*QUICK.split(), "--output", str(output), *more]


def run_refl(output: Path, *more: str) -> Done:
    """`python training/refl_train.py` with the quick options and `more`."""
    out, err = io.StringIO(), io.StringIO()
    warnings = logging.StreamHandler(err)  # where pytest listens to the log, Python does not print it
    with pytest.MonkeyPatch.context() as patch, alone_on_the_cpu():
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [str(SCRIPT), *arguments(output, *more)])
        logging.getLogger().addHandler(warnings)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(ReflRun, ReflConfig, "refl_train", "")
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
            finally:
                logging.getLogger().removeHandler(warnings)
    return Done(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def alone_on_the_cpu() -> Iterator[None]:
    """Around a run: as in a process of its own, without what accelerate, the run and PyTorch's generator keep."""
    stop, generator = signal.getsignal(signal.SIGINT), torch.random.get_rng_state()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ACCELERATE_USE_CPU", "true")
            yield
    finally:
        signal.signal(signal.SIGINT, stop)
        torch.random.set_rng_state(generator)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def environment(**more: str) -> dict[str, str]:
    """For a process: on the CPU, by as many threads as here, for others round differently."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "ACCELERATE_USE_CPU": "true", **more}


def copied(whole: Path, output: Path, *names: str) -> Path:
    """The folder `output` with these files of the run in `whole`, as a run that was stopped leaves it."""
    for name in names:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole / name, output / name)
    return output


def same(a: Path, b: Path) -> bool:
    """Whether two files hold the same tensors, bit for bit."""
    one, two = load_file(a), load_file(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
