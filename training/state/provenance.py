"""What a run's weights follow from: its settings, prompts and models; and how these differ when a run resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ...core.errors import RealignError
from ...core.fingerprint import fingerprint_of_texts
from ...core.prompt_files import Prompts
from ...rewards.registry import models_of
from ..loop.models import fingerprint_models
from ..settings import removed
from ..settings.arl import ranked
from ..settings.common import TrainingConfig

KEY = "made_of"  # the key under which a checkpoint stores its provenance
FIXED = ("model", "train", "rank", "alpha", "targets", "optimizer_8bit", "seed")
"""Settings that must not change when a run resumes."""
PROMPTS = ("prompts", "prompt_column", "held_out", "held_out_prompts")
"""Settings that select the prompts; the prompts themselves are compared."""
BEST = ("reward", "rollout_steps", "cfg", "evaluate_prompts", "ema", "llm", "llm_model")
"""Settings that must be equal for two held-out rewards to be comparable."""
SILENT = (
    *("output", "resume", "log_with", "keep_last", "save_every", "sample_every"),
    *("evaluate_every", "gradient_checkpointing", "offload_captioner"),
)
"""Settings that change no weight."""

Values = Mapping[str, Any]  # settings, or a provenance, by name


class Changes(NamedTuple):
    """How a resuming run differs from the one that wrote its checkpoint."""

    sentences: tuple[str, ...]  # "learning_rate 1e-05, which was 0.0001"
    best_is_comparable: bool  # whether the best reward so far means the same as those to come


def provenance(config: TrainingConfig, prompts: Prompts, held_out: Prompts, processes: int = 1) -> dict[str, Any]:
    """What this run's weights follow from besides its settings: the contents of prompts and models, JSON-ready."""
    return {
        "prompts": fingerprint_of_texts(prompts.texts),
        "prompts_count": len(prompts.texts),
        "held_out": fingerprint_of_texts(held_out.texts),
        "held_out_count": len(held_out.texts),
        "models": fingerprint_models(config, ["model", *models_of(term.name for term in config.reward.terms)]),
        "processes": processes,
    }


def compare(file: Path, state: Values, config: TrainingConfig, now: Values) -> Changes:
    """How this run differs from the one that wrote the checkpoint `file` with `state`.

    now: this run's `provenance`.
    """
    before, settings, made_of = state["config"], config.to_dict(), state.get(KEY, {})
    models, models_now = made_of.get("models", {}), now["models"]
    known = [name for name in models_now if name in models]
    check_fixed_settings(file, {**before, **({"model": settings["model"]} if "model" in known else {})}, settings)
    if "model" in known and models["model"] != models_now["model"]:
        _refuse(file, f"whose model had other weights than '{config.model.model}' has now", "give that")
    _check_prompts(file, before, settings, made_of, now)
    other = [name for name in known if models[name] != models_now[name]]
    moved = [name for name in models_now if name not in known and _differs(name, before, settings)]
    skipped = (*FIXED, *PROMPTS, *SILENT, *models_now, *(() if ranked(settings) else ("steps",)))
    plain = [name for name in settings if name not in skipped and _differs(name, before, settings)]
    sentences = [
        *(f"{name} {_quoted(settings[name])}, which was {_quoted(before[name])}" for name in (*plain, *moved)),
        *(f"other weights of the {name}" for name in other),
    ]
    if made_of.get("processes", now["processes"]) != now["processes"]:
        sentences.append(f"{now['processes']} processes, which were {made_of['processes']}")
    return Changes(tuple(sentences), not (other or moved or any(name in BEST for name in plain)))


def check_fixed_settings(file: Path, before: Values, now: Values) -> None:
    """Check the settings on which a checkpoint's weights and random numbers depend."""
    if before and ranked(before) != ranked(now):
        script = "arl_train.py" if ranked(before) else "refl_train.py"
        raise RealignError(f"The checkpoint {file} is of {script}: give another output, or set resume to never.")
    for name in FIXED:
        if before.get(name, now[name]) != now[name]:
            _refuse(file, f"whose {name} was {before[name]}, and now it is {now[name]}")
    if difference := removed.other_weights(before):
        _refuse(file, difference, "go on with the version that wrote it")


def _check_prompts(file: Path, before: Values, settings: Values, made_of: Values, now: Values) -> None:
    """Refuse other prompts: trained ones could become held out, and the best reward would be that of other prompts."""
    if "prompts" not in made_of:  # a checkpoint of an older version
        for name in ("held_out", "held_out_prompts"):
            if _differs(name, before, settings):
                _refuse(file, f"whose {name} was {_plain(before[name])}, and now it is {_plain(settings[name])}")
        return
    for name, label in (("held_out", "held-out prompts"), ("prompts", "training prompts")):
        if made_of[name] != now[name]:
            count = f"{name}_count"
            differing = [k for k in PROMPTS if _differs(k, before, settings)]
            causes = [f"{k} was {_plain(before[k])} and is {_plain(settings[k])} now" for k in differing]
            why = f", as {' and '.join(causes)}" if causes else ""
            order = ", or the same in another order" if made_of.get(count) == now[count] else ""
            _refuse(file, f"with other {label}{order} ({made_of.get(count)}, and now {now[count]}{why})", "give those")


def _refuse(file: Path, difference: str, mend: str = "set it back") -> NoReturn:
    raise RealignError(
        f"The checkpoint {file} is of a run {difference}: {mend}, give another output, or set resume to never."
    )


def _differs(name: str, before: Values, settings: Values) -> bool:
    return name in before and before[name] != settings[name]


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _quoted(value: Any) -> str:
    return _plain(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
