"""`make gpu`, on a CPU: each of its parts runs as a miniature, and what fails, raises or hangs is told and no more."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from realigndiff.attention.equation import modulated
from realigndiff.benchmarks import diffusers_unet
from realigndiff.benchmarks.gpu import captioners, cost, kernel, parity, suite, training, worker
from realigndiff.benchmarks.gpu.results import ERROR, FAIL, MEASURED, PASS, SKIPPED, Lacking, Options, Result
from realigndiff.benchmarks.gpu.supervisor import supervise

ROOT = Path(__file__).parents[1]
QUICK = Options(torch.device("cpu"), quick=True)


def results_of(part, *names: str) -> list[Result]:
    cases = part.cases(QUICK)
    return [result for name in names or cases for result in cases[name]()]


def test_a_worker_holds_the_kernel_against_the_reference_in_all_kinds_of_blocks():
    pytest.importorskip("triton", reason="needs Triton")
    command = [*suite.worker("kernel", "cpu", quick=True), "--shard", "1", "7", "--seconds", "60"]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=settings)
    messages = [json.loads(line.removeprefix("@gpu ")) for line in done.stdout.splitlines() if line.startswith("@gpu ")]
    assert messages[0] == {"cases": ["fp16, heads of 40", "autocast"]}, done.stderr
    found = [Result(**message["result"]) for message in messages if "result" in message]
    assert {result.status for result in found} == {PASS}
    assert [result.case.split(",")[0] for result in found] == [*kernel.KINDS, "inside autocast"]
    assert all(0 < result.value < result.limit and "plain attention's own" in result.detail for result in found)


def test_where_there_is_no_gpu_the_kernel_is_skipped_with_the_reason():
    with pytest.raises(Lacking, match="an NVIDIA GPU from Ampere on"):
        results_of(kernel, "fp16, heads of 64")
    assert {result.status for result in results_of(kernel, "what models call")} == {PASS}


def test_a_kernel_that_is_wrong_fails():
    q, k, v, blocks = kernel._example(QUICK)
    right = kernel.compare("right", modulated.joint_attention, q, k, v, blocks)
    wrong = kernel.compare("wrong", lambda *inputs: 1.01 * modulated.joint_attention(*inputs), q, k, v, blocks)
    missing = kernel.compare("none", lambda *inputs: math.nan * modulated.joint_attention(*inputs), q, k, v, blocks)
    assert (right.status, wrong.status, missing.status) == (PASS, FAIL, FAIL)


def test_whole_sampling_is_held_against_the_obvious_implementation():
    found = results_of(parity, "demo model, fp32", "SDXL, bf16")
    assert {result.status for result in found} == {PASS}
    assert {result.case.split(",")[0] for result in found} == {"demo model", "SDXL"}


@pytest.mark.parametrize("wrong", ["other strength", "nothing modulated"])
def test_whole_sampling_with_wrong_attention_fails(wrong, monkeypatch):
    right = diffusers_unet.obvious
    if wrong == "other strength":
        monkeypatch.setattr(diffusers_unet, "obvious", lambda q, k, v, layout, lam: right(q, k, v, layout, 0.8 * lam))
    else:  # both agree, which shows nothing
        monkeypatch.setattr(parity, "STRONG", parity.ModulationSettings(end=0.0))
    found = results_of(parity, "SD1.5, fp16")
    assert FAIL in {result.status for result in found}


def test_times_and_memory_are_those_of_all_ways():
    found = results_of(cost)
    assert {result.status for result in found} == {MEASURED}
    for quantity in ("time", "memory", "whole sampling", "modulated steps", "memory with weights"):
        several = [result for result in found if result.quantity == quantity]
        assert {result.way for result in several} == {"plain", "ours", "DenseDiffusion", "obvious"}
        assert all(result.value > 0 for result in several)


def test_a_way_that_needs_more_memory_than_there_is_is_skipped(monkeypatch):
    monkeypatch.setattr(cost, "free", lambda device: 0)
    found = results_of(cost, "sampling")
    assert {result.way for result in found if result.status == MEASURED} == {"plain", "ours"}
    assert {result.way for result in found if result.status == SKIPPED} == {"DenseDiffusion", "obvious"}


def test_trainer_and_published_loop_are_measured_beside_each_other():
    found = results_of(training, "plain", "ours, LoRA, gradient checkpointing, offloading")
    assert {result.quantity for result in found} == {"throughput", "memory of a step"}
    assert len({result.way for result in found}) == 2
    assert all(result.value > 0 for result in found)
    with pytest.raises(Lacking, match="a GPU, on which alone fp16 trains"):
        results_of(training, "ours, LoRA, fp16")


@pytest.mark.parametrize("status", [PASS, FAIL])
def test_fp16_fails_where_no_step_changes_the_weights(status, monkeypatch):
    config_of = training.config_of
    monkeypatch.setattr(training, "config_of", lambda options, way: config_of(options, "ours, LoRA"))
    if status == FAIL:
        monkeypatch.setattr(training, "our_loop", lambda config, models: lambda: run)
        models = training.load_run_models(config_of(QUICK, "ours"), QUICK.device, quick=True)
        run = SimpleNamespace(models=models, accelerator=SimpleNamespace(scaler=None))
    assert [result.status for result in results_of(training, "loss scale")] == [status]


def test_captions_are_written_in_batches():
    found = results_of(captioners, "captions, 1 beams")
    assert {result.way for result in found} == {"batch of 1", "batch of 4"}
    assert all(result.value > 0 for result in found)


def messages_of(cases, end=math.inf) -> list[dict]:
    messages: list[dict] = []
    worker.run(cases, messages.append, end, torch.device("cpu"))
    return messages


def raising(error: BaseException):
    def case():
        yield Result(case="before")
        raise error

    return case


def test_a_case_that_raises_does_not_stop_the_others():
    cases = {
        "wrong": raising(ValueError("no such thing")),
        "lacking": raising(Lacking("a card")),
        "package": raising(ModuleNotFoundError("No module named 'x'", name="x")),
        "memory": raising(torch.cuda.OutOfMemoryError("so many bytes")),
        "right": lambda: [Result(case="right", status=PASS)],
    }
    results = [message["result"] for message in messages_of(cases) if "result" in message]
    kept = [(result["status"], result["detail"]) for result in results if result["case"] != "before"]
    assert kept == [
        (ERROR, "ValueError: no such thing"),
        (SKIPPED, "needs a card"),
        (SKIPPED, "needs the package x"),
        (SKIPPED, "needs memory on the GPU"),
        (PASS, ""),
    ]


def test_cases_that_time_does_not_reach_are_told():
    messages = messages_of({"late": lambda: [Result(case="late")]}, end=time.monotonic() - 1)
    assert messages == [{"result": asdict(Result(case="late", status=SKIPPED, detail="no time was left"))}]


WORKER = """
import json, os, sys, time
def tell(**message): print("@gpu " + json.dumps(message), flush=True)
done = sys.argv[sys.argv.index("--done") + 1:]
cases = ["good", "crash", "hang", "last"]
tell(cases=cases)
print("noise of a library", flush=True)
for case in [case for case in cases if case not in done]:
    tell(begin=case)
    if case == "crash": os._exit(139)
    if case == "hang": time.sleep(60)
    tell(result={"case": case, "status": "pass"})
    tell(end=case)
"""


def supervised(seconds: float, case_seconds: float) -> list[tuple[str, str, str]]:
    taken: list[Result] = []
    supervise([sys.executable, "-c", WORKER], time.monotonic() + seconds, case_seconds, taken.append)
    return [(result.case, result.status, result.detail) for result in taken]


def test_after_a_crash_or_a_hang_a_new_process_goes_on_with_the_next_case():
    assert supervised(60, 1) == [
        ("good", PASS, ""),
        ("crash", ERROR, "its process ended with status 139: noise of a library"),
        ("hang", ERROR, "it did not end within 1 s: noise of a library"),
        ("last", PASS, ""),
    ]


def test_what_is_cut_off_for_lack_of_time_is_told_and_no_error():
    cut = supervised(2, 60)
    assert cut[-2:] == [
        ("hang", SKIPPED, "no time was left: cut off: noise of a library"),
        ("last", SKIPPED, "no time was left"),
    ]


def test_a_worker_that_cannot_begin_is_told_once():
    taken: list[Result] = []
    supervise([sys.executable, "-c", "raise SystemExit('no such library')"], time.monotonic() + 60, 1, taken.append)
    assert [(result.case, result.status) for result in taken] == [("everything", ERROR)]
    assert "no such library" in taken[0].detail


@pytest.fixture
def with_parts(monkeypatch, tmp_path):
    """`suite.main` on a CPU with results in place of parts that are run; its status, results and report."""

    def run(*results: Result):
        def supervised(command, end, case_seconds, take):
            for result in results if "kernel" in command else ():
                take(result)

        monkeypatch.setattr(suite, "supervise", supervised)
        monkeypatch.setenv("TRITON_INTERPRET", "0")  # which `main` would set for its workers
        status = suite.main(["--device", "cpu", "--quick", "--out", str(tmp_path)])
        kept = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("*.json"))]
        return status, kept, (tmp_path / "report.md").read_text() if kept else ""

    return run


@pytest.mark.parametrize("status", [PASS, MEASURED, SKIPPED, FAIL, ERROR])
def test_the_exit_status_is_1_where_a_parity_failed_or_a_case_went_wrong(status, with_parts):
    code, _, report = with_parts(Result(case="case 7", status=PASS), Result(case="case 9", value=2.0, status=status))
    assert code == int(status in (FAIL, ERROR))
    assert "case 9" in report


def test_results_are_kept_and_divided_by_plain(with_parts, capsys):
    common = {"case": "SD1.5 512x512", "quantity": "time", "unit": "ms", "dtype": "fp16"}
    parities = Result(case="self", quantity="error", value=1e-4, limit=2e-4, ratio=0.9, status=PASS)
    _, (kept,), report = with_parts(
        Result(way="plain", value=2.0, **common), Result(way="ours", value=3.0, **common), parities
    )
    assert [one["ratio"] for one in kept] == [None, 1.5, 0.9]
    assert {(one["part"], one["torch"]) for one in kept} == {("kernel", torch.__version__)}
    assert "| SD1.5 512x512 fp16 | 2 ms | 1.50 × (3 ms) |" in report
    assert "1 parities hold, 0 do not" in report
    assert "these numbers mean nothing" in report.splitlines()[0]
    assert "[pass] self: error 0.0001 (at most 0.0002) = 0.9 x" in capsys.readouterr().out


def test_without_a_gpu_a_sentence_says_so_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert suite.main(["--out", str(tmp_path / "gpu")]) == suite.NO_GPU
    (sentence,) = capsys.readouterr().out.strip().splitlines()
    assert sentence.startswith("There is no GPU that PyTorch ")
    assert not (tmp_path / "gpu").exists()


def test_a_python_without_pytorch_says_how_to_get_it():
    command = [sys.executable, "-I", "-S", str(ROOT / "benchmarks/gpu/suite.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == suite.NO_GPU
    assert "has no PyTorch" in done.stdout
    assert "make .venv/ready" in done.stdout
