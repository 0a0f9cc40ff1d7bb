"""Which device a script computes on, and in which number format."""

from __future__ import annotations

import argparse

import torch

from ..core.errors import RealignError
from ..core.precision import DTYPES, checked_dtype


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--device` and `--precision`, which `chosen` reads."""
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, mps, cpu …; auto: the best that is there")
    parser.add_argument(
        "--precision", choices=("auto", *DTYPES), default="auto", help="auto: fp16 on a GPU of NVIDIA or AMD, else fp32"
    )


def chosen(options: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype that the arguments mean on this machine.

    Raises:
        RealignError: there is no such device, or PyTorch does not compute in that precision there.
    """
    device = device_of(options.device)
    automatic = "fp16" if device.type == "cuda" else "fp32"
    precision = automatic if options.precision == "auto" else options.precision
    return device, checked_dtype(precision, device, "--precision")


def device_of(name: str) -> torch.device:
    """The device of a name; `auto` is the best that is there.

    Raises:
        RealignError: PyTorch knows none of this name, or cannot compute on it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except Exception as error:  # PyTorch raises errors of many kinds
        raise RealignError(f"PyTorch cannot compute on '{name}' here: give another --device, or auto.") from error
    return device
