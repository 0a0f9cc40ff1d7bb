"""Whether a run's state is all there and right: before it is written, and before a run goes on from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .checkpoints import Unusable

NUMBERS = {"step": int, "bad": int, "best": (int, float), "best_step": int}
BASE = {*NUMBERS, "weights", "optimizer", "average", "scaler", "rewards", "config", "made_of"}
"""What every run keeps; the rest is a script's own."""
OLDER = {"best_step": 0}
"""What older versions did not write, and what it was."""
_WORDS = {"weights": "weights", "optimizer": "AdamW's moments", "average": "averaged weights"}


def check(state: Any, like: Mapping[str, Any]) -> None:
    """That a run can go on from `state`.

    like: the state of the run that is to go on, as it would write it: the same keys, shapes and number formats are
        expected of `state`.

    Raises:
        Unusable: something is missing, of another shape, or not finite.
    """
    try:
        _check(state, like)
    except Unusable:
        raise
    except Exception as error:  # any nonsense may be in there
        raise Unusable(f"it is of another form ({type(error).__name__})") from error


def check_finite(state: Mapping[str, Any]) -> None:
    """That nothing in a state is NaN or infinite where it must not be.

    Raises:
        Unusable: something is.
    """
    for name in ("weights", "optimizer", "average"):
        if not all(map(_is_finite, _tensors(state.get(name)))):
            raise Unusable(f"its {_WORDS[name]} are not finite")


def _check(state: Any, like: Mapping[str, Any]) -> None:
    missing = [name for name in like if name not in state and name not in OLDER and name != "made_of"]
    if missing:
        raise Unusable(f"it lacks {', '.join(missing)}")
    for name, kind in NUMBERS.items():
        value = state.get(name, OLDER.get(name))
        if isinstance(value, bool) or not isinstance(value, kind) or math.isnan(value):
            raise Unusable(f"its {name} is {value!r:.40}")
        if name != "best" and value < 0:
            raise Unusable(f"its {name} is {value}")
    if state.get("best_step", 0) > state["step"]:
        raise Unusable(f"its best_step is {state['best_step']}, later than its step {state['step']}")
    if not all(isinstance(reward, (int, float)) for reward in state["rewards"]):
        raise Unusable("its rewards are no numbers")
    _check_like(state["weights"], like["weights"], "weights")
    _check_optimizer(state, like)
    if state["config"].get("ema") and like["average"] is not None:
        _check_average(state["average"], like["average"])
    for name in like.keys() - BASE:
        if _kind(state[name]) != _kind(like[name]):
            raise Unusable(f"its {name} is {state[name]!r:.40}")
    if like["scaler"] is not None and state["config"].get("precision") == "fp16":
        _check_numbers(state["scaler"], like["scaler"], "loss scale")
    check_finite(state)


def _check_like(tensors: Sequence[Tensor], like: Sequence[Tensor], name: str) -> None:
    """As many tensors, of the same shapes and number formats."""
    if len(tensors) != len(like):
        raise Unusable(f"it has {len(tensors)} {name}, and the model {len(like)}")
    for one, other in zip(tensors, like, strict=True):
        if not isinstance(one, Tensor) or one.layout != torch.strided or one.is_meta:
            raise Unusable(f"one of its {name} is no tensor of numbers")
        if one.shape != other.shape or one.dtype != other.dtype:
            raise Unusable(f"one of its {name} is {_form(one)}, and the model's is {_form(other)}")


def _check_optimizer(state: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    """Two moments of each weight; of none where no step was good yet."""
    kept, groups = state["optimizer"]["state"], state["optimizer"]["param_groups"]
    if [group["params"] for group in groups] != [group["params"] for group in like["optimizer"]["param_groups"]]:
        raise Unusable("AdamW's moments are of other weights")
    if not kept:
        if state["step"] > state["bad"] and state["scaler"] is None:
            raise Unusable("it lacks AdamW's moments")
        return
    if set(kept) != set(range(len(like["weights"]))):
        raise Unusable("it lacks AdamW's moments of some weights")
    for number, weight in enumerate(like["weights"]):
        own = kept[number]
        if not 0 <= float(own["step"]) <= state["step"]:
            raise Unusable(f"AdamW's count of steps is {float(own['step']):g}")
        if not state["config"].get("optimizer_8bit"):
            _check_like([own["exp_avg"], own["exp_avg_sq"]], [weight, weight], "moments")
            if bool((own["exp_avg_sq"] < 0).any()):
                raise Unusable("one of AdamW's second moments is negative")
        elif not any(tensor.shape == weight.shape for tensor in _tensors(own)):  # which bitsandbytes nests
            raise Unusable(f"it lacks AdamW's moments of a weight of {_form(weight)}")


def _check_average(average: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    _check_like(average["shadow_params"], like["shadow_params"], "averaged weights")
    _check_numbers(average, {name: value for name, value in like.items() if name != "shadow_params"}, "average")


def _check_numbers(values: Mapping[str, Any], like: Mapping[str, Any], name: str) -> None:
    for key, value in like.items():
        kept = values[key]
        if isinstance(kept, bool) != isinstance(value, bool) or not math.isfinite(kept):
            raise Unusable(f"the {name}'s {key} is {kept!r:.40}")


def _kind(value: Any) -> Any:
    return tuple(map(_kind, value)) if isinstance(value, (list, tuple)) else type(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _each(value.values())
    elif isinstance(value, (list, tuple)):
        yield from _each(value)


def _each(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        yield from _tensors(value)


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
