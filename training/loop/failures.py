"""What ends a run, in one sentence: memory that does not suffice, a GPU that fails."""

from __future__ import annotations

import torch

from ...core.errors import first_line

_GPU = ("CUDA", "CUBLAS", "CUDNN", "NCCL", "HIP error")
_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, the GPU's or the computer's; torch says so by several kinds of error."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def of_the_device(error: BaseException) -> bool:
    """Whether memory or the GPU failed, and not the program."""
    return out_of_memory(error) or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in _GPU))


def sentence(error: BaseException, doing: str) -> str | None:
    """What went wrong while `doing` something such as "step 3", and what to change; None for an error that is none of
    torch's, of which the traceback says more."""
    first = first_line(error).rstrip(".")
    if out_of_memory(error):
        return (
            f"The memory did not suffice for {doing} ({first}): halve batch_size and double gradient_accumulation, or "
            "set gradient_checkpointing or offload_captioner"
        )
    if isinstance(error, RuntimeError):
        gpu = " on the GPU" if of_the_device(error) else ""
        return f"{doing[:1].upper()}{doing[1:]} failed{gpu} ({type(error).__name__}: {first}): start again"
    return None
