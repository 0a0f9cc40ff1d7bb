"""What ends a run, in one sentence: memory that does not suffice, a GPU that fails."""

from __future__ import annotations

import torch

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
    first = first_line(error)
    if out_of_memory(error):
        return (
            f"The memory did not suffice for {doing} ({first}): halve batch_size and double gradient_accumulation, or "
            "set gradient_checkpointing or offload_captioner"
        )
    if isinstance(error, RuntimeError):
        gpu = " on the GPU" if of_the_device(error) else ""
        return f"{doing[:1].upper()}{doing[1:]} failed{gpu} ({type(error).__name__}: {first}): start again"
    return None


def first_line(error: BaseException) -> str:
    """What an error says, without the lines of advice and traces that follow."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
