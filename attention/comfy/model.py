"""Modulated attention in a ComfyUI MODEL, with any sampler node and beside any other patch.

`realign_model` adds three wrappers to a clone of the MODEL. The outer one begins a run: it makes a `SamplingRun` and
gives each conditioning a payload, so that they still share batches. The middle one counts the sampler's calls of the
model (`clock.py`), for each of which ComfyUI may call the network several times. The inner one, around each of these,
patches attention (`patches.py`) where it is modulated now, over whatever another pack has put there. Nothing is kept on
the MODEL or on a patch.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import comfy.model_management
from comfy.patcher_extension import WrappersMP

from ...core.errors import RealignError
from ..equation.settings import ModulationSettings
from .clock import EXTRA_CALLS, Clock
from .families import check_architecture, uncompiled
from .payload import KEY, Entry, Payload, complete
from .run import SamplingRun

logger = logging.getLogger(__name__)


def realign_model(model: Any, settings: ModulationSettings | None = None) -> Any:
    """A clone of the MODEL that re-weights attention by the regions in its CONDITIONINGs (eq. 7-9).

    The MODEL itself is left as it is. If this is applied twice, the last settings count.

    Raises:
        RealignError: the model belongs to no known family.
    """
    check_architecture(model, "Re-aligning")
    around_run = partial(_around_run, settings or ModulationSettings())
    return add_wrappers(model, KEY, around_run, _around_model, {WrappersMP.PREDICT_NOISE: _around_prediction})


def add_wrappers(model: Any, key: str, around_run: Any, around_model: Any, others: dict[str, Any] | None = None) -> Any:
    """A clone of the MODEL with all wrappers inside those of other packs, in the place of any of the same key."""
    patched = model.clone()
    wrappers = {WrappersMP.SAMPLER_SAMPLE: around_run, WrappersMP.APPLY_MODEL: around_model, **(others or {})}
    for kind, wrapper in wrappers.items():
        patched.remove_wrappers_with_key(kind, key)
        patched.add_wrapper_with_key(kind, key, wrapper)
    return patched


def begin_run(guider: Any, extra_args: dict, key: str, run: Any, default: Entry, keep_zeroed: bool = False) -> dict:
    """Give each conditioning of a sampler its entry, and its arguments what the run shares: new arguments."""
    guider.conds = {
        name: [complete(cond, key, default, keep_zeroed) for cond in conds] for name, conds in guider.conds.items()
    }
    options = extra_args["model_options"]
    options = {**options, "transformer_options": {**options.get("transformer_options", {}), key: run}}
    return {**extra_args, "model_options": options}


def _around_run(settings, executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
    """Around a sampler's whole run."""
    sampler = getattr(executor.class_obj, "sampler_function", None)
    extra_calls = EXTRA_CALLS.get(getattr(sampler, "__name__", ""), 0)
    clock = Clock(guider.model_patcher.get_model_object("model_sampling"), sigmas, extra_calls)
    run = SamplingRun(settings, clock, tuple(noise.shape[-2:]))
    extra_args = begin_run(guider, extra_args, KEY, run, Payload())
    payloads = [cond["model_conds"][KEY].cond for conds in guider.conds.values() for cond in conds]
    for sets, images in ((len(payload.images), len(noise)) for payload in payloads):
        if sets not in (0, 1, images):
            raise RealignError(
                f"There are regions for {sets} images but {images} images: connect those of this batch, or one set for "
                "all."
            )
    if not any(payload.active for payload in payloads):
        logger.info("RealignDiff: no conditioning has an active region, so sampling is plain.")

    def report(step, *results):
        clock.report(step)
        if callback is not None:
            callback(step, *results)

    return executor(guider, sigmas, extra_args, report, noise, *args, **kwargs)


def _around_prediction(executor, x, timestep, model_options=None, *args, **kwargs):
    """Around a sampler's call of the model: x [B, C, (T,) h, w] at sigma timestep [B], for all conditionings."""
    run = (model_options or {}).get("transformer_options", {}).get(KEY)
    if run is not None:
        run.clock.count_call(float(timestep[0]))
    return executor(x, timestep, model_options, *args, **kwargs)


def _around_model(
    executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, *args, **kwargs
):
    """Around a call of the model: x [chunks · B, C, (T,) h, w] at sigma t [chunks · B]."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    chunks = kwargs.pop(KEY, None)
    options = transformer_options or {}
    run = options.get(KEY)
    if run is not None and chunks and any(payload.active for payload in chunks):
        network = uncompiled(executor.class_obj.diffusion_model)
        sigma = float(t[0])  # read back from the device, before the call's first layer
        options = run.patch(options, network, x, sigma, c_crossattn, chunks, kwargs)
    return executor(x, t, c_concat, c_crossattn, control, options, *args, **kwargs)
