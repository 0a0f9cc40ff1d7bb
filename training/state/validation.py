"""Checks the state of a run before it is written, and again before a run resumes from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoints import Unusable, step_of
from .provenance import KEY

NUMBERS = {"step": int, "bad": int, "best": (int, float), "best_step": int}
BASE = {*NUMBERS, "weights", "optimizer", "average", "scaler", "rewards", "config", KEY}
"""The keys of every run's state; a training script may add more."""
DEFAULTS = {"best_step": 0}  # the values of keys that older versions did not write
_LABELS = {"weights": "weights", "optimizer": "AdamW's moments", "average": "averaged weights"}


def check_settings(file: Path, state: Any) -> None:
    """Raise `Unusable` unless a checkpoint holds its settings and is of the step in its file's name."""
    if not isinstance(state, dict):
        raise Unusable("it is no state of a run")
    if not isinstance(state.get("config"), dict):
        raise Unusable("it lacks its run's settings")
    if not isinstance(state.get(KEY, {}), dict):
        raise Unusable("it does not say which prompts and models it was made of")
    if step_of(file) not in (-1, state.get("step")):
        raise Unusable(f"its step is {state.get('step')!r:.40}")


def check_state(state: Any, like: Mapping[str, Any]) -> None:
    """Raise `Unusable` unless a run can resume from `state`.

    like: the state of the run that is to resume, as it would write it; keys, shapes and dtypes must be the same.
    """
    try:
        _check(state, like)
    except Unusable:
        raise
    except Exception as error:  # the file may hold any nonsense
        raise Unusable(f"it is of another form ({type(error).__name__})") from error


def check_finite(state: Mapping[str, Any]) -> None:
    """Raise `Unusable` if a weight, one of AdamW's moments or the moving average is NaN or infinite."""
    for name, label in _LABELS.items():
        for tensor in _tensors(state.get(name)):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise Unusable(f"its {label} are not finite")


def _check(state: Any, like: Mapping[str, Any]) -> None:
    missing = [name for name in like if name not in state and name not in DEFAULTS and name != KEY]
    if missing:
        raise Unusable(f"it lacks {', '.join(missing)}")
    for name, kind in NUMBERS.items():
        value = state.get(name, DEFAULTS.get(name))
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
        average, expected = state["average"], dict(like["average"])
        _check_like(average["shadow_params"], expected.pop("shadow_params"), "averaged weights")
        _check_numbers(average, expected, "average")
    for name in like.keys() - BASE:
        if _kind(state[name]) != _kind(like[name]):
            raise Unusable(f"its {name} is {state[name]!r:.40}")
    if like["scaler"] is not None and state["config"].get("precision") == "fp16":
        _check_numbers(state["scaler"], like["scaler"], "loss scale")
    check_finite(state)


def _check_like(tensors: Sequence[Tensor], like: Sequence[Tensor], name: str) -> None:
    """Check for equal numbers of tensors, with equal shapes and dtypes."""
    if len(tensors) != len(like):
        raise Unusable(f"it has {len(tensors)} {name}, and the model {len(like)}")
    for one, other in zip(tensors, like, strict=True):
        if not isinstance(one, Tensor) or one.layout != torch.strided or one.is_meta:
            raise Unusable(f"one of its {name} is no tensor of numbers")
        if one.shape != other.shape or one.dtype != other.dtype:
            raise Unusable(f"one of its {name} is {_describe(one)}, and the model's is {_describe(other)}")


def _check_optimizer(state: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    """Check for two moments per weight; there are none before the first finite step."""
    moments, groups = state["optimizer"]["state"], state["optimizer"]["param_groups"]
    if [group["params"] for group in groups] != [group["params"] for group in like["optimizer"]["param_groups"]]:
        raise Unusable("AdamW's moments are of other weights")
    if not moments:
        if state["step"] > state["bad"] and state["scaler"] is None:
            raise Unusable("it lacks AdamW's moments")
        return
    if set(moments) != set(range(len(like["weights"]))):
        raise Unusable("it lacks AdamW's moments of some weights")
    for number, weight in enumerate(like["weights"]):
        entry = moments[number]
        if not 0 <= float(entry["step"]) <= state["step"]:
            raise Unusable(f"AdamW's count of steps is {float(entry['step']):g}")
        if not state["config"].get("optimizer_8bit"):
            _check_like([entry["exp_avg"], entry["exp_avg_sq"]], [weight, weight], "moments")
            if bool((entry["exp_avg_sq"] < 0).any()):
                raise Unusable("one of AdamW's second moments is negative")
        elif not any(tensor.shape == weight.shape for tensor in _tensors(entry)):  # which bitsandbytes nests
            raise Unusable(f"it lacks AdamW's moments of a weight of {_describe(weight)}")


def _check_numbers(values: Mapping[str, Any], like: Mapping[str, Any], name: str) -> None:
    for key, value in like.items():
        stored = values[key]
        if isinstance(stored, bool) != isinstance(value, bool) or not math.isfinite(stored):
            raise Unusable(f"the {name}'s {key} is {stored!r:.40}")


def _kind(value: Any) -> Any:
    return tuple(map(_kind, value)) if isinstance(value, (list, tuple)) else type(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
