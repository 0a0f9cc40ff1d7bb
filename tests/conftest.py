"""Loads the pack under the name `realigndiff`, so that tests import from it whatever its folder is called."""

import contextlib
import os
import pathlib
import runpy
import signal
import sys

import pytest

# The models are tiny: a second thread costs more than it gains. Another number wins, and must be as right.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["load_pack"]()

with contextlib.suppress(ModuleNotFoundError):  # the tests in ComfyUI do without it
    from hypothesis import HealthCheck, settings

    # The same examples in every run, however slow the machine; --hypothesis-profile default looks for new ones.
    slow = [HealthCheck.too_slow]
    settings.register_profile("gate", derandomize=True, deadline=None, database=None, suppress_health_check=slow)
    settings.load_profile("gate")


@pytest.fixture(scope="session", autouse=True)
def pickles():
    """Below torch 2.6 no pickle is read; the tests make theirs themselves, so all else is tested there too."""
    from realigndiff.checkpoints import unpickling

    unpickling.SAFE_TORCH = min(unpickling.SAFE_TORCH, unpickling.version_of_torch())


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps the first precision of a process: each test may choose another."""
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@pytest.fixture(scope="session")
def three_steps(tmp_path_factory):
    """The folder of a training run of three steps that nothing stopped."""
    from realigndiff.tests.short_runs import run_in

    output = tmp_path_factory.mktemp("three_steps")
    run_in(output).train()
    return output


@pytest.fixture
def default_signals():
    """For tests that send signals: a shell has what it runs in the background ignore Ctrl-C, and nohup a closed
    terminal, and a process inherits that."""
    defaults = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    numbers = {getattr(signal, name): handler for name, handler in defaults.items() if hasattr(signal, name)}
    ignored = {number: handler for number, handler in numbers.items() if signal.getsignal(number) == signal.SIG_IGN}
    for number, handler in ignored.items():
        signal.signal(number, handler)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def models():
    """The shipped demo models."""
    from realigndiff.demo.models import load_models

    return load_models()
