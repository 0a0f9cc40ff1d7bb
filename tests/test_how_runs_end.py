"""A run that cannot write says so before a model is read; one that fails or is asked to stop ends in order."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from realigndiff.core.errors import RealignError
from realigndiff.core.files import remove_partial_files, write_whole
from realigndiff.tests.short_runs import QUICK, contents, run_in, same, steps
from realigndiff.training.loop import ending, run
from realigndiff.training.refl_train import ReflRun
from realigndiff.training.state import resuming
from realigndiff.training.state.run_folder import RunFolder, check_writable
from realigndiff.training.watch.watching import Watcher

NOT_LOADED = lambda *_: pytest.fail("a model was read")  # noqa: E731

# Where nothing can be written


@pytest.mark.parametrize("name", ["", "checkpoints", "samples", "rounds", "unet", "tensorboard"])
def test_a_file_in_the_place_of_a_folder_is_found_before_a_model_is_read(name, tmp_path, monkeypatch):
    output = tmp_path / "out"
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).write_text("a file", encoding="utf-8")
    monkeypatch.setattr(run, "load_models", NOT_LOADED)
    with pytest.raises(RealignError, match=r"is no folder to write to .*give another output"):
        run_in(output)


@pytest.mark.parametrize("name", ["last.safetensors", "best.safetensors", "log.csv", "report.html"])
def test_a_folder_in_the_place_of_a_file_is_found_before_a_model_is_read(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.setattr(run, "load_models", NOT_LOADED)
    with pytest.raises(RealignError, match="is a folder, where the run writes a file: move it"):
        run_in(tmp_path)


def test_a_read_only_output_is_found_before_a_model_is_read(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("realigndiff.core.files.tempfile.TemporaryFile", read_only)
    monkeypatch.setattr(run, "load_models", NOT_LOADED)
    with pytest.raises(RealignError, match=r"is no folder to write to \(Read-only file system\): give another output"):
        run_in(tmp_path)


def test_folders_that_a_run_does_not_need_are_not_made(tmp_path):
    check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_disk_is_named_as_what_it_is(tmp_path):
    def full(_: Path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RealignError, match=r"\(No space left on device\): make room there\."):
        write_whole(tmp_path / "file", full)


def test_little_room_is_warned_of_at_the_start(tmp_path, monkeypatch, capsys):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(resuming.shutil, "disk_usage", lambda _: usage)
    run_in(tmp_path, prior_weight=0.0, reward_weight=1e-3)
    assert "Only 1.0 kB are free in" in capsys.readouterr().out


# What killed processes left


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_what_killed_runs_left_half_written_is_swept_at_the_next_start(tmp_path):
    dead = dead_process()
    left = [
        *(f"last.safetensors.{dead}.part", f"report.html.{dead}.partial", f"log.csv.{os.getpid()}.partial"),
        *(
            f"checkpoints/step-00000006.pt.{dead}.partial",
            "checkpoints/step-00000006.part",
            "samples/step-00000003.part",
        ),
        *("rounds/0001/000000.part", f"rounds/0001/000032.safetensors.{dead}.partial", "report.part", "prior.part"),
        f"unet.{dead}.partial/config.json",
    ]
    stays = [
        *(f"report.html.{os.getppid()}.partial", "checkpoints/step-00000006.pt", "notes.part", "movie.1999.part"),
        *("prior.safetensors", "samples/step-00000003.png", "notes.partial"),
    ]
    for name in (*left, *stays):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    RunFolder(tmp_path).release()
    assert sorted(contents(tmp_path)) == sorted(stays)


def test_of_one_file_alone_the_left_overs_go(tmp_path):
    dead = dead_process()
    for name in ("mine.safetensors", "other.safetensors"):
        (tmp_path / f"{name}.{dead}.partial").write_bytes(b"half")
    remove_partial_files(tmp_path, "mine.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == [f"other.safetensors.{dead}.partial"]


# What fails in a step

TOO_LARGE = "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation for Memory Management"


def failing_at(step: int, error: Exception):
    """A `Run.add_gradient` that raises the error in the middle of this step."""
    add = ReflRun.add_gradient

    def add_gradient(self, part):
        added = add(self, part)
        if self.step + 1 == step:
            raise error
        return added

    return add_gradient


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), r"The memory did not suffice for step 2 \(MemoryError\): halve batch_size and double gradient"),
        (RuntimeError("CUDA error: an illegal access\nCompile with"), r"Step 2 failed on the GPU \(RuntimeError: CUDA"),
        (RealignError("The server is silent: start it."), "The server is silent: start it"),
    ],
)
def test_an_error_in_a_step_is_one_sentence_and_the_steps_before_are_saved(
    error, message, three_steps, tmp_path, monkeypatch
):
    monkeypatch.setattr(ReflRun, "add_gradient", failing_at(2, error))
    with pytest.raises(RealignError, match=message) as failed:
        run_in(tmp_path, save_every=0).train()
    assert str(failed.value).endswith("; step 1 is saved, and the same command goes on from it.")
    assert "\n" not in str(failed.value)
    assert steps(tmp_path) == [1] and (tmp_path / "report.html").is_file()
    if isinstance(error, MemoryError):
        monkeypatch.undo()
        run_in(tmp_path).train()
        assert same(tmp_path / "last.safetensors", three_steps / "last.safetensors")


def test_an_error_that_is_none_of_torchs_keeps_its_traceback_and_what_was_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ReflRun, "add_gradient", failing_at(2, KeyError("a bug")))
    with pytest.raises(KeyError, match="a bug"):
        run_in(tmp_path, save_every=0).train()
    assert "Step 2 failed; step 1 is saved" in capsys.readouterr().out
    assert steps(tmp_path) == [1]


def test_weights_that_are_half_changed_are_not_saved(tmp_path, monkeypatch):
    started = run_in(tmp_path, save_every=2)
    take = started.optimizer.step

    def step():
        take()
        raise torch.cuda.OutOfMemoryError(TOO_LARGE)

    started.optimizer.step = step
    with pytest.raises(RealignError, match="no step was saved yet"):
        started.train()
    assert steps(tmp_path) == []


def test_models_that_do_not_fit_are_one_sentence_and_the_folder_is_free_again(tmp_path, monkeypatch):
    def load(*_):
        raise torch.cuda.OutOfMemoryError(TOO_LARGE)

    monkeypatch.setattr(run, "load_models", load)
    with pytest.raises(RealignError, match="The memory did not suffice for reading the models"):
        run_in(tmp_path)
    RunFolder(tmp_path).release()


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17.62 GB)"), True),
        (RuntimeError("The size of tensor a (3) must match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_does_not_suffice_is_known_by_any_name(error, is_one):
    assert ending.is_out_of_memory(error) == is_one


# Stopping


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)])
def test_a_signal_ends_a_run_in_order_and_the_handlers_are_as_before(number, tmp_path, capsys):
    before = [signal.getsignal(each) for each in ending.SIGNALS]
    started = run_in(tmp_path, save_every=0)
    take = started.optimizer.step
    started.optimizer.step = lambda: (take(), os.kill(os.getpid(), number))
    started.train()
    assert "Stopped at step 1; the same command goes on from" in capsys.readouterr().out
    assert steps(tmp_path) == [1]
    assert [signal.getsignal(each) for each in ending.SIGNALS] == before


def test_a_stop_in_the_middle_of_a_step_leaves_the_step_out(tmp_path, capsys):
    started = run_in(tmp_path, gradient_accumulation=2)
    add = started.add_gradient
    started.add_gradient = lambda part: (add(part), started.request_stop())[0]
    started.train()
    assert "Stopped at step 0" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.usefixtures("default_signals")
def test_a_second_signal_acts_at_once_but_an_echo_of_the_first_does_not(monkeypatch):
    asked = []
    with pytest.raises(KeyboardInterrupt), ending.handle_stop_signals(lambda: asked.append(1)):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # the launcher's, of the same request
        monkeypatch.setattr(ending, "ECHO", -1)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")
    assert asked == [1]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending.handle_stop_signals(lambda: pytest.fail("nohup asks for nothing")):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_of_the_main_thread_nothing_is_handled():
    went = []

    def work():
        with ending.handle_stop_signals(lambda: None):
            went.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert went == [True]


def test_a_run_that_does_not_go_on_by_itself_says_how_it_does(tmp_path, capsys):
    started = run_in(tmp_path, resume="never")
    started.request_stop()
    started.train()
    assert "the same command with resume set to auto goes on from" in capsys.readouterr().out


def test_an_interrupt_at_once_is_a_sentence_and_the_shells_status(monkeypatch, capsys):
    class Interrupted:
        def __init__(self, _):
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "parse_command", lambda *_, **__: (QUICK, False))
    with pytest.raises(SystemExit) as ended:
        run.main(Interrupted, None, "refl_train", "")
    assert ended.value.code == 130
    assert capsys.readouterr().err == "refl_train: stopped at once; what was saved before is there.\n"


# The log


@pytest.mark.parametrize("content", [b"\xff\xfes\0t\0e\0p\0", b'"' + b"x" * 200_000])
def test_a_log_that_is_none_ends_no_training(content, tmp_path, capsys):
    (tmp_path / "log.csv").write_bytes(content)
    watcher = Watcher(QUICK.replace(output=str(tmp_path)), Accelerator(cpu=True))
    watcher.log({"step": 1, "reward": 0.5})
    assert "log.csv cannot be written (" in capsys.readouterr().out
    assert (tmp_path / "log.csv").read_bytes() == content
