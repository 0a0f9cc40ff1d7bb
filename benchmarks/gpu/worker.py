"""Runs the cases of one part of `make gpu` in a process of its own.

It reports to `suite.py` in lines of JSON behind a mark: the names of all cases, then each case's beginning, results and
end.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "standalone.py"))["package_of"](__file__)

import argparse
import gc
import importlib
import json
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from .results import ERROR, SKIPPED, Case, Lacking, Options, Result
from .supervisor import MARK

BROKEN = 3
"""The exit status when the device computes nothing any more, as after an illegal access; a new process can go on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, required=True, help="no case begins later than this")
    parser.add_argument("--shard", type=int, nargs=2, default=(0, 1), help="this one, of so many that share the cases")
    parser.add_argument("--done", nargs="*", default=[], help="cases to leave out")
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    device = torch.device(args.device)
    if device.index is not None:
        torch.cuda.set_device(device)
    try:
        part = importlib.import_module(f".{args.part}", __package__)
    except ModuleNotFoundError as error:
        tell({"result": asdict(failure("everything", error))})
        return
    shard, shards = args.shard
    cases = dict(list(part.cases(Options(device, args.quick)).items())[shard::shards])
    tell({"cases": list(cases)})
    run({name: case for name, case in cases.items() if name not in args.done}, tell, end, device)


def tell(message: dict[str, Any]) -> None:
    """A line for `suite.py`."""
    print(f"{MARK}{json.dumps(message)}", flush=True)


def run(cases: Mapping[str, Case], tell: Callable[[dict[str, Any]], None], end: float, device: torch.device) -> None:
    """Each case until `end`, by `time.monotonic`; what one raises does not stop the others."""
    for name, case in cases.items():
        if time.monotonic() > end:
            tell({"result": asdict(Result(case=name, status=SKIPPED, detail="no time was left"))})
            continue
        tell({"begin": name})
        try:
            for result in case():
                tell({"result": asdict(result)})
        except Exception as error:  # whatever it is, the next case may go well
            tell({"result": asdict(failure(name, error))})
        tell({"end": name})
        if device.type == "cuda":
            gc.collect()
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError:
                os._exit(BROKEN)


def failure(name: str, error: Exception) -> Result:
    """What an exception says of a case: it was skipped, where the machine lacks something, or went wrong."""
    if isinstance(error, ModuleNotFoundError):
        error = Lacking(f"the package {error.name}")
    if isinstance(error, torch.cuda.OutOfMemoryError):
        error = Lacking("memory on the GPU")
    if isinstance(error, Lacking):
        return Result(case=name, status=SKIPPED, detail=f"needs {error}")
    traceback.print_exception(error)
    why = (str(error).strip().splitlines() or [""])[0][:300]
    return Result(case=name, status=ERROR, detail=f"{type(error).__name__}: {why}")


if __name__ == "__main__":
    main()
