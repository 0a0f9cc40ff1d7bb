"""A precision that this PyTorch lacks on a device ends in a sentence, before a model is read."""

import argparse
import re

import pytest
import torch
from realigndiff.cli import hardware
from realigndiff.core import precision
from realigndiff.core.errors import RealignError
from realigndiff.core.precision import DTYPES, checked_dtype, computes_in

CPU = torch.device("cpu")


@pytest.fixture
def failing(monkeypatch):
    """Makes convolutions in fp16 fail with a text."""
    convolve = torch.nn.functional.conv2d

    def fail_with(text):
        def conv2d(pixels, weight):
            if pixels.dtype == torch.float16:
                raise RuntimeError(text)
            return convolve(pixels, weight)

        monkeypatch.setattr(precision.functional, "conv2d", conv2d)
        computes_in.cache_clear()

    yield fail_with
    computes_in.cache_clear()


@pytest.fixture
def without_fp16(failing):
    """A PyTorch that has no kernels for fp16 on a CPU, as old ones have none."""
    failing("\"slow_conv2d_cpu\" not implemented for 'Half'")


def options(name):
    parser = argparse.ArgumentParser()
    hardware.add_arguments(parser)
    return parser.parse_args(["--device", "cpu", "--precision", name])


def test_fp16_where_pytorch_has_none_is_a_sentence_that_names_the_option(without_fp16):
    with pytest.raises(RealignError, match=r"^PyTorch .* cannot compute in fp16 on cpu: set --precision to fp32\.$"):
        hardware.device_and_dtype(options("fp16"))


@pytest.mark.parametrize(("name", "dtype"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")])
def test_what_pytorch_has_is_taken(without_fp16, name, dtype):
    assert hardware.device_and_dtype(options(name)) == (CPU, DTYPES[dtype])


def test_a_failure_of_another_kind_is_not_blamed_on_the_precision(failing):
    failing("out of memory")
    assert checked_dtype("fp16", CPU) == torch.float16


def test_the_answer_is_that_of_a_networks_layer():
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.Flatten(), torch.nn.LayerNorm(4)).half()
    try:
        layers(torch.ones(1, 3, 2, 2).half())
    except RuntimeError as error:
        assert re.search("not implemented for 'Half'", str(error))
        assert not computes_in(torch.float16, "cpu")
    else:
        assert computes_in(torch.float16, "cpu")
