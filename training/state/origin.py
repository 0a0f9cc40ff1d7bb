"""What made a run's state, kept with it; and what of that differs when the run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...rewards.registry import models_of
from ..data.prompts import Prompts, fingerprint
from ..loop.models import fingerprints
from ..settings.arl import ranked
from ..settings.common import TrainingConfig
from .checkpoints import Unusable, check_same, refuse, step_of

KEY = "made_of"
"""Where a checkpoint holds what `origin_of` gives."""
PROMPTS = ("prompts", "prompt_column", "held_out", "held_out_prompts")
"""Settings that say which prompts there are; compared are these themselves."""
BEST = ("reward", "rollout_steps", "cfg", "evaluate_prompts", "ema", "llm", "llm_model")
"""Settings without which two rewards on held-out prompts cannot be compared."""
SILENT = (
    *("output", "resume", "log_with", "keep_last", "save_every", "sample_every"),
    *("evaluate_every", "gradient_checkpointing", "offload_captioner"),
)
"""Settings that change no weight."""

Values = Mapping[str, Any]
"""Settings, or what a state was made of, by name."""


class Changes(NamedTuple):
    """How a run that goes on differs from the one that wrote its checkpoint."""

    sentences: tuple[str, ...]
    """"learning_rate 1e-05, which was 0.0001"."""
    best_is_comparable: bool
    """Whether the best reward so far means the same as those to come."""


def origin_of(config: TrainingConfig, prompts: Prompts, held_out: Prompts, processes: int = 1) -> dict[str, Any]:
    """What this run's weights will be made of, besides its settings: the contents of prompts and models.

    Raises:
        RealignError: a model's file cannot be read.
    """
    return {
        "prompts": fingerprint(prompts.texts),
        "prompts_count": len(prompts.texts),
        "held_out": fingerprint(held_out.texts),
        "held_out_count": len(held_out.texts),
        "models": contents_of(config),
        "processes": processes,
    }


def contents_of(config: TrainingConfig) -> dict[str, str]:
    """The fingerprints of the model and of what judges its images.

    Raises:
        RealignError: a file of one cannot be read.
    """
    return fingerprints(config, ["model", *models_of(term.name for term in config.reward.terms)])


def check_settings(file: Path, state: Any) -> None:
    """That a checkpoint says which settings it was made with, and is of the step that its name says.

    Raises:
        Unusable: it does not.
    """
    if not isinstance(state, dict):
        raise Unusable("it is no state of a run")
    if not isinstance(state.get("config"), dict):
        raise Unusable("it lacks its run's settings")
    if not isinstance(state.get(KEY, {}), dict):
        raise Unusable("it does not say which prompts and models it was made of")
    if step_of(file) not in (-1, state.get("step")):
        raise Unusable(f"its step is {state.get('step')!r:.40}")


def changes(file: Path, state: Values, config: TrainingConfig, now: Values) -> Changes:
    """What differs from the run that wrote the checkpoint `state`; `now` is this run's `origin_of`.

    Raises:
        RealignError: it is another run: another model, other prompts, or another setting of `checkpoints.SAME`.
    """
    before, settings, made_of = state["config"], config.to_dict(), state.get(KEY, {})
    models, models_now = made_of.get("models", {}), now["models"]
    known = [name for name in models_now if name in models]
    check_same(file, {**before, **({"model": settings["model"]} if "model" in known else {})}, settings)
    if "model" in known and models["model"] != models_now["model"]:
        refuse(file, f"whose model had other weights than '{config.model.model}' has now", "give that")
    _check_prompts(file, before, settings, made_of, now)
    other = [name for name in known if models[name] != models_now[name]]
    moved = [name for name in models_now if name not in known and _differs(name, before, settings)]
    skipped = (*PROMPTS, *SILENT, *models_now, *(() if ranked(settings) else ("steps",)))
    plain = [name for name in settings if name not in skipped and _differs(name, before, settings)]
    sentences = [
        *(f"{name} {_shown(settings[name])}, which was {_shown(before[name])}" for name in (*plain, *moved)),
        *(f"other weights of the {name}" for name in other),
    ]
    if made_of.get("processes", now["processes"]) != now["processes"]:
        sentences.append(f"{now['processes']} processes, which were {made_of['processes']}")
    return Changes(tuple(sentences), not (other or moved or any(name in BEST for name in plain)))


def _check_prompts(file: Path, before: Values, settings: Values, made_of: Values, now: Values) -> None:
    """Refuse other prompts: trained ones could become held out, and the best so far would be of other prompts."""
    if "prompts" not in made_of:  # a checkpoint of an older version
        for name in ("held_out", "held_out_prompts"):
            if _differs(name, before, settings):
                refuse(file, f"whose {name} was {before[name]}, and now it is {settings[name]}")
        return
    for name, words in (("held_out", "held-out prompts"), ("prompts", "training prompts")):
        if made_of[name] != now[name]:
            count = f"{name}_count"
            causes = [f"{k} was {before[k]} and is {settings[k]} now" for k in PROMPTS if _differs(k, before, settings)]
            why = f", as {' and '.join(causes)}" if causes else ""
            order = ", or the same in another order" if made_of.get(count) == now[count] else ""
            refuse(file, f"with other {words}{order} ({made_of.get(count)}, and now {now[count]}{why})", "give those")


def _differs(name: str, before: Values, settings: Values) -> bool:
    return name in before and before[name] != settings[name]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
