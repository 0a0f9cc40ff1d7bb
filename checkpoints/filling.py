"""A file's tensors into a model, each of them accounted for: none missing, none left over, none of another shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import RealignError, first_line
from .folders import T, differences, quiet_loading
from .values import check_dtypes, check_finite, not_finite


@contextmanager
def empty_weights() -> Iterator[None]:
    """Models built inside have parameters without memory or initialisation, which `fill` replaces; buffers are real."""
    register = nn.Module.register_parameter

    def register_empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_empty
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def fill(model: nn.Module, tensors: Mapping[str, Tensor], file: str | Path, wanted: str, dtype: torch.dtype) -> None:
    """Make the tensors the model's parameters, by name, in `dtype`. wanted: for the message, e.g. `a SAM segmenter`."""
    state = model.state_dict()
    missing = [name for name in state if name not in tensors]
    unknown = [name for name in tensors if name not in state]
    reshaped = [name for name in state if name in tensors and state[name].shape != tensors[name].shape]
    _check_complete(missing, unknown, reshaped, file, wanted)
    check_dtypes({name: tensor for name, tensor in tensors.items() if state[name].is_floating_point()}, file)
    check_finite(tensors.items(), file)
    model.load_state_dict(dict(tensors), strict=True, assign=True)
    _as_dtype(model, file, dtype)


def from_tensors(
    kind: type[T],
    config_of: Callable[[Mapping[str, Tensor]], Any],
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    tensors: Mapping[str, Tensor],
    file: str | Path,
    wanted: str,
    dtype: torch.dtype,
    **options: Any,
) -> T:
    """A transformers model from a file in its authors' layout.

    config_of: reads the model's sizes from the tensors' shapes.
    convert: gives the tensors the names of published folders, which `from_pretrained` knows in every version.
    wanted: what the file should be, for the message, e.g. `a SAM segmenter`. options: passed to `kind.from_pretrained`.
    """
    try:
        config, converted = config_of(tensors), convert(tensors)
        check_dtypes(converted, file)
        if not_finite(converted.items()) is not None:
            check_finite((*tensors.items(), *converted.items()), file)
        with quiet_loading():
            model, info = kind.from_pretrained(
                None,
                config=config,
                state_dict=converted,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reports them
                **options,
            )
    except RealignError:
        raise
    except (LookupError, ArithmeticError, TypeError, ValueError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise RealignError(
            f"'{file}' is not {wanted} of a known size ({reason}): choose another file, or download it again."
        ) from error
    _check_complete(*differences(model, info), file, wanted)
    return _as_dtype(model, file, dtype)


def _as_dtype(model: Any, file: str | Path, dtype: torch.dtype) -> Any:
    """The model, frozen and in `dtype`; a RealignError if one of its finite weights is too large for float16."""
    model = model.to(dtype).requires_grad_(False)
    if dtype == torch.float16:
        check_finite(model.named_parameters(), file, " as float16: choose bf16 or fp32")
    return model


def _check_complete(missing: list[str], unknown: list[str], reshaped: list[str], file: str | Path, wanted: str) -> None:
    if missing or unknown or reshaped:
        first = (missing or unknown or reshaped)[0]
        raise RealignError(
            f"'{file}' is not {wanted} of a known size: {len(missing)} tensors are missing, {len(unknown)} unknown and "
            f"{len(reshaped)} of another shape, '{first}' first; choose another file, or download it again."
        )
