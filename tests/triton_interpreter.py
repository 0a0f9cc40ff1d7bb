"""Makes the process that runs it one where Triton's kernels are interpreted on the CPU, with bfloat16 as on GPUs.

As it is, the interpreter multiplies the bits of bfloat16 as if they were integers, and cuts off where GPUs round.
"""

import os
import runpy
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its own functions are kernels, too

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl


def wide(x):
    if x.dtype.scalar != tl.bfloat16:
        return x
    return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def rounding_cast(self, x, dtype):
    if (x.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
        return cast(self, x, dtype)
    rounded = torch.from_numpy(np.ascontiguousarray(x.data)).bfloat16().view(torch.int16)
    return TensorHandle(rounded.numpy().view(np.uint16), tl.bfloat16)


InterpreterBuilder.create_dot = lambda self, a, b, *others: dot(self, wide(a), wide(b), *others)
InterpreterBuilder.cast_impl = rounding_cast
runpy.run_path(str(Path(__file__).parents[1] / "standalone.py"))["load_pack"]()
