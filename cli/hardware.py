"""The options `--device` and `--precision`."""

from __future__ import annotations

import argparse

import torch

from ..core.errors import RealignError
from ..core.precision import DTYPES, checked_dtype


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--device` and `--precision`, which `device_and_dtype` reads."""
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, mps, cpu …; auto: the fastest of this machine")
    parser.add_argument(
        "--precision", choices=("auto", *DTYPES), default="auto", help="auto: fp16 on a GPU of NVIDIA or AMD, else fp32"
    )


def device_and_dtype(options: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype that the options name."""
    device = device_of(options.device)
    automatic = "fp16" if device.type == "cuda" else "fp32"
    precision = automatic if options.precision == "auto" else options.precision
    return device, checked_dtype(precision, device, "--precision")


def device_of(name: str) -> torch.device:
    """The device of this name; `auto` is the fastest of this machine."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except Exception as error:  # PyTorch raises errors of many kinds
        raise RealignError(f"PyTorch cannot compute on '{name}' here: give another --device, or auto.") from error
    return device
