"""The prompts for training, and the held-out prompts for evaluation."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from ...core.embedded import DEMO
from ...core.errors import RealignError
from ...core.prompt_files import Prompts, read_prompts

if TYPE_CHECKING:
    from ..settings.common import TrainingConfig


def split(prompts: Prompts, held_out: float, seed: int) -> tuple[Prompts, Prompts]:
    """Split into (training, held out), by a hash of each text: equal texts are never on both sides.

    held_out: below 1 a share; whether a text is held out then depends on that text alone, so adding prompts never moves
        one into training. From 1 on the number of different texts, those with the lowest hashes; an added prompt with a
        lower hash then takes another's place.
    """
    keys = {text: _key(text) for text in prompts.texts}
    hashes = {key: _hash(key, seed) for key in keys.values()}
    if held_out < 1:
        selected = {key for key, value in hashes.items() if value < held_out}
    else:
        selected = set(sorted(hashes, key=lambda key: (hashes[key], key))[: int(held_out)])
    if len(selected) == len(hashes) or (held_out and not selected):
        side = "held out" if not selected else "left for training"
        raise RealignError(
            f"held_out is {held_out:g} of {len(hashes)} different prompts, so none is {side}; "
            "give another held_out, or more prompts."
        )
    training = tuple(text for text in prompts.texts if keys[text] not in selected)
    return Prompts(training, prompts.problems), Prompts(tuple(t for t in prompts.texts if keys[t] in selected))


def load_prompts(config: TrainingConfig) -> tuple[Prompts, Prompts]:
    """The prompts of a run: (training, held out). Prompts in both files are only evaluated on."""
    files = config.prompts
    prompts = _read(files.prompts, config, held_out=False)
    if not files.held_out_prompts:
        return split(prompts, files.held_out, config.run.seed)
    held_out = _read(files.held_out_prompts, config, held_out=True)
    keys = {_key(text) for text in held_out.texts}
    training = tuple(text for text in prompts.texts if _key(text) not in keys)
    if not training:
        raise RealignError(f"Every prompt in {files.prompts} is also in {files.held_out_prompts}; give other prompts.")
    left_out = len(prompts.texts) - len(training)
    note = f"{files.prompts}: not trained on, because also in {files.held_out_prompts}: {left_out} of its prompts."
    return Prompts(training, (*prompts.problems, *([note] if left_out else []))), held_out


def _read(path: str, config: TrainingConfig, held_out: bool) -> Prompts:
    if path != DEMO:
        return read_prompts(path, config.prompts.prompt_column)
    from ...demo.prompts import two_object_prompts

    return Prompts(tuple(text for text, _ in two_object_prompts(held_out)))


def _key(text: str) -> str:
    """The text without differences of case and spacing."""
    return " ".join(text.casefold().split())


def _hash(key: str, seed: int) -> float:
    """A hash, uniform in [0, 1) and equal on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:6], "big") / 2**48
