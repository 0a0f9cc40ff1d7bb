"""Part 5 of `make gpu`: what a captioner gains from images in batches; random weights in bf16."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from ...core.precision import DTYPES
from ..memory import free, peak
from ..timing import medians
from . import models
from .results import Case, Options, Result

NEEDED = 12e9
"""Bytes for OPT-2.7b, in bf16 7.5 GB of weights; with less memory a smaller language model writes."""
BATCHES = (1, 4, 16)
"""The first is what the others are compared with."""


def cases(options: Options) -> dict[str, Case]:
    """Captions written greedily, then by beam search."""
    return {f"captions, {beams} beams": partial(_captions, options, beams) for beams in (1, 5)}


def _captions(options: Options, beams: int) -> Iterator[Result]:
    if options.quick:
        precision, text, side, tokens, batches = "fp32", "miniature", 64, 3, BATCHES[:2]
    else:
        text = "opt-2.7b" if free(options.device) > NEEDED else "opt-125m"
        precision, side, tokens, batches = "bf16", 512, 20, BATCHES
    captioner = models.captioner(options.device, DTYPES[precision], options.quick, text)
    weights = sum(weight.nbytes for weight in captioner.model.parameters())
    fields: dict[str, Any] = {"case": f"BLIP-2 {text}, {tokens} tokens, {beams} beams", "dtype": precision}
    for count in batches:
        images = torch.rand(count, side, side, 3, generator=torch.Generator().manual_seed(count))
        run = partial(captioner.caption, images, max_tokens=tokens, num_beams=beams)
        milliseconds = medians({"caption": run}, options.device, 1 if options.quick else 3, 0.0)["caption"]
        way = f"batch of {count}"
        yield Result(quantity="throughput", way=way, value=count / milliseconds * 1e3, unit="images/s", **fields)
        most = weights + peak(run, options.device)
        yield Result(quantity="memory with weights", way=way, value=most / 1e6, unit="MB", **fields)
