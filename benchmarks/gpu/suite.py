"""All that a GPU has to show, in one command of less than nine minutes: `make gpu`.

    python benchmarks/gpu/suite.py                           # with any Python that has PyTorch and Triton
    python benchmarks/gpu/suite.py --only kernel cost        # some of the parts
    python benchmarks/gpu/suite.py --device cpu --quick      # miniatures: shows that the parts run, and nothing else

In order: the Triton kernel beside the reference; whole sampling beside the obvious implementation; time and memory of a
call and of whole sampling; the trainer beside the published loop; captions in batches. Each result is printed as it
comes and written to `out/gpu/PART.json`; `out/gpu/report.md` has the tables. Models have random weights of the true
sizes; nothing is downloaded. What the machine lacks is skipped, with the reason; what fails or hangs does not stop the
rest; later parts are cut where time runs out, which the report says.

Exit status: 0 all went well; 1 a parity did not hold, or a case went wrong; 2 there is no GPU, and nothing was written.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "standalone.py"))["package_of"](__file__)

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from ...core.errors import RealignError
from ...core.files import make_folder, write_whole
from . import report
from .results import BAD, Result
from .supervisor import supervise

NO_GPU = 2


class Part(NamedTuple):
    """One part of the run."""

    title: str
    share: float
    """Of the time that is left, beside the shares of the parts that follow."""
    case_seconds: float
    """What takes longer hangs."""
    workers: int = 1
    """Processes that share its cases: several where compiling, and not the GPU, takes the time."""


PARTS = {
    "kernel": Part("The kernel beside the reference", 22, 90, workers=6),
    "parity": Part("Whole sampling beside the obvious implementation", 18, 60),
    "cost": Part("Time and memory of a call and of whole sampling", 26, 100),
    "training": Part("The trainer beside ImageReward's loop", 24, 60),
    "captioners": Part("Captions in batches", 10, 60),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some of the parts")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all of it (8.5)")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="the folder of the results (out/gpu)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, …; with --quick also cpu")
    parser.add_argument("--quick", action="store_true", help="miniature shapes: only shows that the parts run")
    args = parser.parse_args(arguments)
    if (why := obstacle(args.device, args.quick)) is not None:
        print(why)
        return NO_GPU
    make_folder(args.out)
    if args.device == "cpu":
        os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}  # for the workers
    sink = Sink(args.out, environment(args.device, args.quick))
    run(args, sink)
    print(f"\n{report.summary(sink.results)} {args.out / 'report.md'}")
    return int(any(result.status in BAD for result in sink.results))


def obstacle(device: str, quick: bool) -> str | None:
    """Why nothing can be run here, in a sentence."""
    if importlib.util.find_spec("torch") is None:
        return (
            f"There is no GPU that can be used: {sys.executable} has no PyTorch; on a machine with a GPU run "
            "`make .venv/ready` first, or name a Python that has it (make gpu GPU_PYTHON=python3)."
        )
    import torch

    if device == "cpu":
        return None if quick else "The CPU is for --quick only: give --quick too, or a GPU."
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        how = f"built for {built}" if built else "built for CPUs only"
        return (
            f"There is no GPU that PyTorch {torch.__version__} ({how}) can use here: nothing was run or written; run "
            "this on a machine with an NVIDIA GPU."
        )
    return None


def environment(device: str, quick: bool) -> dict[str, str]:
    """The card and the versions that the numbers are of."""
    import torch

    miniatures = ", miniatures: these numbers mean nothing" if quick else ""
    if device == "cpu":
        found = {"device": f"a CPU ({platform.machine()}){miniatures}"}
    else:
        card = torch.cuda.get_device_properties(device)
        found = {
            "device": card.name + miniatures,
            "compute capability": f"{card.major}.{card.minor}",
            "memory": f"{card.total_memory / 1e9:.0f} GB",
            "multiprocessors": str(card.multi_processor_count),
            "CUDA": str(torch.version.cuda or torch.version.hip),
        }
    found |= {"Python": platform.python_version(), "torch": torch.__version__}
    for name in ("triton", "diffusers", "transformers", "accelerate", "peft"):
        found[name] = next(
            (package.version for package in importlib.metadata.distributions(name=name)), "not installed"
        )
    return found


class Sink:
    """Where results go as they come: the terminal, a file for each part, and the report."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.results: list[Result] = []
        self.lock = threading.Lock()
        for name in [*(f"{part}.json" for part in PARTS), "report.md"]:  # of an earlier run
            (folder / name).unlink(missing_ok=True)

    def take(self, part: str, result: Result) -> None:
        with self.lock:
            result = replace(result, part=part, device=self.environment["device"], torch=self.environment["torch"])
            result = report.with_ratio(result, self.results)
            self.results.append(result)
            print(result.line(), flush=True)
            kept = [asdict(one) for one in self.results if one.part == part]
            write_whole(self.folder / f"{part}.json", json.dumps(kept, indent=1) + "\n")
            titles = {name: part.title for name, part in PARTS.items()}
            write_whole(self.folder / "report.md", report.report(self.environment, titles, self.results))


def run(args: argparse.Namespace, sink: Sink) -> None:
    """All parts, one after the other."""
    last = time.monotonic() + 60 * args.minutes
    for place, name in enumerate(args.only):
        part = PARTS[name]
        print(f"\n== {part.title}", flush=True)
        left = sum(PARTS[other].share for other in args.only[place:])
        end = time.monotonic() + (last - time.monotonic()) * part.share / left
        workers = 1 if args.quick else min(part.workers, max(1, (os.cpu_count() or 1) // 2))
        commands = [
            [*worker(name, args.device, args.quick), "--shard", str(shard), str(workers)] for shard in range(workers)
        ]
        take = partial(sink.take, name)
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(supervise, commands, repeat(end), repeat(part.case_seconds), repeat(take)))


def worker(part: str, device: str, quick: bool) -> list[str]:
    """The command that runs a part."""
    file = Path(__file__).with_name("worker.py")
    return [sys.executable, str(file), "--part", part, "--device", device, *(["--quick"] if quick else [])]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RealignError as error:
        sys.exit(str(error))
