"""Which half precisions this PyTorch computes in on a CPU: old ones have no fp16 there."""

import pytest
import torch
from realigndiff.core.precision import computes_in

fp16 = pytest.param(
    torch.float16,
    id="fp16",
    marks=pytest.mark.skipif(not computes_in(torch.float16, "cpu"), reason="this PyTorch has no fp16 on a CPU"),
)
bf16 = pytest.param(torch.bfloat16, id="bf16")
