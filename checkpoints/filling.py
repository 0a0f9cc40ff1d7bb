"""Tensors of a file into a model, each of them accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core.errors import RealignError, first_line
from .folders import differences, reading
from .kinds import looks_like
from .values import check_finite, not_finite

T = TypeVar("T", bound=nn.Module)


@contextmanager
def empty_weights() -> Iterator[None]:
    """Models made inside have parameters without memory or initialisation, which `fill` replaces; buffers are real."""
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_empty
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def fill(model: nn.Module, tensors: Mapping[str, Tensor], file: str | Path, wanted: str, dtype: torch.dtype) -> None:
    """Give a model the tensors, which have its names, as its parameters, then make it `dtype`.

    wanted: what the file should be, e.g. `a SAM segmenter`.

    Raises:
        RealignError: a parameter has no tensor, a tensor no parameter, or their shapes differ.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in tensors]
    left = [name for name in tensors if name not in own]
    other = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    _check(missing, left, other, file, wanted)
    check_numbers({name: tensor for name, tensor in tensors.items() if own[name].is_floating_point()}, file)
    check_finite(tensors.items(), file)
    model.load_state_dict(dict(tensors), strict=True, assign=True)
    check_fits(model.to(dtype).requires_grad_(False), file, dtype)


def from_tensors(
    kind: type[T],
    config_of: Callable[[Mapping[str, Tensor]], Any],
    converted: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    tensors: Mapping[str, Tensor],
    file: str | Path,
    wanted: str,
    dtype: torch.dtype,
    **options: Any,
) -> T:
    """A model of transformers from a file in its authors' layout.

    config_of: reads the model's sizes from the tensors' shapes.
    converted: gives the tensors the names of transformers' published folders. Which names the classes have inside
        differs between its versions; `from_pretrained` knows.
    wanted: what the file should be, e.g. `a SAM segmenter`. options: more of `kind`.

    Raises:
        RealignError: a tensor is missing, unknown, or of another shape.
    """
    try:
        config, renamed = config_of(tensors), converted(tensors)
        check_numbers(renamed, file)
        if not_finite(renamed.items()) is not None:
            check_finite((*tensors.items(), *renamed.items()), file)
        with reading():
            model, info = kind.from_pretrained(
                None,
                config=config,
                state_dict=renamed,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to be told of them
                **options,
            )
    except RealignError:
        raise
    except (LookupError, ArithmeticError, TypeError, ValueError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise RealignError(
            f"'{file}' is not {wanted} of a known size ({reason}): choose another file, or download it again."
        ) from error
    _check(*differences(model, info), file, wanted)
    return check_fits(model.to(dtype).requires_grad_(False), file, dtype)


def check_fits(model: T, file: str | Path, dtype: torch.dtype) -> T:
    """The model, whose weights were finite before they became `dtype`.

    Raises:
        RealignError: one is too large for half precision.
    """
    if dtype == torch.float16:
        check_finite(model.named_parameters(), file, " as float16: choose bf16 or fp32")
    return model


def check_numbers(tensors: Mapping[str, Tensor], file: str | Path) -> None:
    """Whether weights are floating point numbers; integers and complex ones are those of a quantised or other model.

    Raises:
        RealignError: one is not, and by its name no index either.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and not name.endswith(("_index", "_ids")):
            raise RealignError(
                f"'{name}' in '{file}' holds {str(tensor.dtype).removeprefix('torch.')} where floating point numbers "
                "are wanted: get the weights in fp32, fp16 or bf16."
            )


def _check(missing: list[str], left: list[str], other: list[str], file: str | Path, wanted: str) -> None:
    if missing or left or other:
        first = (missing or left or other)[0]
        raise RealignError(
            f"'{file}' is not {wanted} of a known size: {len(missing)} tensors are missing, {len(left)} unknown and "
            f"{len(other)} of another shape, '{first}' first; choose another file, or download it again."
        )


def wrong_file(file: str | Path, tensors: Mapping[str, Tensor], wanted: str) -> RealignError:
    """The error for a file that is whole, but some other model's."""
    kind = looks_like(tensors)
    if kind.endswith(" of transformers") and wanted.startswith(kind.removesuffix(" of transformers")):
        return RealignError(f"'{file}' looks like {kind}, which needs its folder: put its config.json beside it.")
    return RealignError(f"'{file}' looks like {kind}, but {wanted} is wanted: choose another file.")
