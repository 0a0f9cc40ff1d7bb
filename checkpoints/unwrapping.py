"""Which of the things in a file are the weights, and what training scripts put before their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .kinds import looks_like

WRAPPERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "params_ema",
    "model_ema",
    "ema_model",
    "state_dict_ema",
    "ema_state_dict",
    "ema",
    "shadow",
    "shadow_params",
    "averaged_model",
)
"""Keys under which training scripts keep weights, the likelier ones first; averages come after what they are of."""
OTHERS = (
    "optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "optim", "lr_scheduler", "lr_schedulers",
    "scheduler", "scaler", "amp", "callbacks", "loops", "hyper_parameters", "args", "config", "cfg", "opt", "meta",
    "message_hub", "rng_state", "_metadata",
)  # fmt: skip
"""Keys under which there are none, though there may be tensors."""
AVERAGES = ("ema", "model_ema", "ema_model", "shadow", "averaged_model", "teacher")
PREFIXES = ("module", "model", "net", "network", "student", *AVERAGES)
"""What a name may begin with, before a dot, because of what a model was trained in."""
_NOISE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing add to names, anywhere in them; no model has it otherwise."""
_DEEPEST = 8
_MOST_MAPPINGS = 10_000
_LISTED = 8


@dataclass
class Weights:
    """The weights of a file, and what was left out."""

    tensors: dict[str, Tensor]
    place: tuple[str, ...] = ()
    """The keys under which they are; none where the file holds nothing else."""
    skipped: list[str] = field(default_factory=list)
    """What else there is, e.g. `epoch` or `args (Namespace)`."""
    prefixes: list[str] = field(default_factory=list)
    """What was taken off the names."""

    def report(self) -> str:
        """A sentence on what was skipped, without the file's name; empty where nothing was."""
        if not self.skipped:
            return ""
        more = f" and {len(self.skipped) - _LISTED} more" if len(self.skipped) > _LISTED else ""
        read = f"the weights under {' → '.join(self.place)}" if self.place else "the weights"
        return f"{read} were read, and the rest was skipped: {', '.join(self.skipped[:_LISTED])}{more}."


def unwrapped(found: Any, roots: Sequence[str] = ()) -> Weights:
    """The weights in what a file holds, under the names that their model has for them.

    roots: how the names of the wanted model begin. Without them, a prefix is taken off where all names have one, and
        never from names by which a model is known (`kinds.looks_like`).

    Of several mappings with tensors, the one with most names of the wanted model is taken; of equal ones, that under
    the first key of `WRAPPERS`, so averages only where there is nothing else.
    """
    best: Weights | None = None
    most = -1
    for path, mapping in sorted(_mappings(found), key=lambda item: _rank(*item)):
        weights = _named({name: value for name, value in mapping.items() if _is_named(name, value)}, roots)
        known = sum(name.startswith(tuple(roots)) for name in weights.tensors) if roots else 0
        if known > most:
            most, best = known, weights
            best.place = path
    if best is None:
        return Weights({})
    best.skipped = [*_beside(found, best.place), *best.skipped]
    return best


def _mappings(found: Any) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """The mappings that hold tensors by name, each with the keys that lead to it. One that contains itself is visited
    once."""
    queue: list[tuple[tuple[str, ...], Any]] = [((), found)]
    seen: set[int] = set()
    for path, value in queue:
        if not isinstance(value, Mapping) or id(value) in seen or len(seen) >= _MOST_MAPPINGS:
            continue
        seen.add(id(value))
        if any(_is_named(name, inner) for name, inner in value.items()):
            yield path, value
        if len(path) < _DEEPEST:
            queue += [
                ((*path, key), inner)
                for key, inner in value.items()
                if isinstance(key, str) and isinstance(inner, Mapping) and key not in OTHERS
            ]


def _is_named(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _rank(path: tuple[str, ...], mapping: Mapping[Any, Any]) -> tuple[int, ...]:
    """Lower for a mapping that is likelier the weights: under known keys, then the outermost."""
    if not path:
        wraps = any(key in WRAPPERS and isinstance(value, Mapping) for key, value in mapping.items())
        return (1, 0) if wraps else (0, 0)
    unknown = len(WRAPPERS)
    ranks = [WRAPPERS.index(key) if key in WRAPPERS else unknown for key in path]
    return (1 if unknown in ranks else 0, max(ranks), *ranks)


def _beside(found: Any, place: tuple[str, ...]) -> list[str]:
    """What else stands at each level on the way to the weights, and among them."""
    skipped = []
    for depth in range(len(place) + 1):
        for key, value in found.items():
            if (depth < len(place) and key == place[depth]) or (depth == len(place) and isinstance(value, Tensor)):
                continue
            if depth == len(place) and isinstance(key, str) and key.endswith(("_metadata", "_extra_state")):
                continue
            kind = type(value)
            plain = kind.__module__ in ("builtins", "collections", "torch") and kind.__name__ != "type"
            skipped.append(".".join(map(str, (*place[:depth], key))) + ("" if plain else f" ({kind.__name__})"))
        if depth < len(place):
            found = found[place[depth]]
    return skipped


def _named(tensors: Mapping[str, Tensor], roots: Sequence[str]) -> Weights:
    """The tensors under the model's names; of two for one name, that with fewer prefixes, averages last."""
    clean = {name: _NOISE.sub("", name) for name in tensors}
    prefixes = _of_known(clean, tuple(roots)) if roots else {}
    prefixes = prefixes if prefixes and not _hides(prefixes, clean) else _of_all(clean)
    outside: list[str] = []
    if sum(map(bool, prefixes.values())) * 2 > len(prefixes):  # what lacks the prefix is not of the model that has it
        outside = [name for name in tensors if name not in prefixes]
    full = {name: clean[name].removeprefix(prefixes.get(name, "")) for name in tensors}
    order = sorted(tensors, key=lambda name: (_averaged(prefixes.get(name, "")), len(clean[name])))
    places: dict[str, str] = {}
    for name in order:
        if name in prefixes or not outside:
            places.setdefault(full[name], name)
    kept = set(places.values())
    named = {full[name]: tensor for name, tensor in tensors.items() if name in kept}
    used = sorted({prefix for name in kept if (prefix := prefixes.get(name, ""))})
    return Weights(named, skipped=[name for name in tensors if name not in kept], prefixes=used)


def _hides(prefixes: Mapping[str, str], clean: Mapping[str, str]) -> bool:
    """Whether the names are another known model's as they are, and would not be without the prefixes."""
    before = looks_like(clean.values())
    after = looks_like(clean[name].removeprefix(prefix) for name, prefix in prefixes.items())
    return after.startswith("an unknown") and not before.startswith("an unknown")


def _averaged(prefix: str) -> bool:
    return any(part in AVERAGES for part in prefix.split("."))


def _of_known(clean: Mapping[str, str], roots: tuple[str, ...]) -> dict[str, str]:
    """{tensor: prefix, perhaps empty} of those that are the wanted model's; per tensor, as files may be mixed."""
    prefixes = {}
    for name, rest in clean.items():
        prefix = ""
        while not rest.startswith(roots):
            part, dot, after = rest.partition(".")
            if not dot or part not in PREFIXES:
                break
            prefix, rest = f"{prefix}{part}.", after
        if rest.startswith(roots):
            prefixes[name] = prefix
    return prefixes or _common(clean, roots)


def _common(clean: Mapping[str, str], roots: tuple[str, ...]) -> dict[str, str]:
    """As `_of_known`, with whatever one to three words before the model's names, as of an attribute that holds it."""
    for count in (1, 2, 3):
        starts = Counter(".".join(name.split(".")[:count]) + "." for name in clean.values())
        for start, _ in starts.most_common(2):
            inside = {name: start for name, full in clean.items() if full.startswith(start)}
            known = sum(clean[name][len(start) :].startswith(roots) for name in inside)
            if known * 2 > len(inside):
                return inside
    return {}


def _of_all(clean: Mapping[str, str]) -> dict[str, str]:
    """{tensor: prefix}, where the wanted model is not known: `module.` of any, others where all names have one."""
    prefixes = dict.fromkeys(clean, "")

    def rest(name: str) -> str:
        return clean[name].removeprefix(prefixes[name])

    for _ in range(_DEEPEST):
        if not looks_like(map(rest, clean)).startswith("an unknown"):
            break
        words = {name: rest(name).partition(".") for name in clean}
        if not all(dot and word in PREFIXES for word, dot, _ in words.values()):
            parallel = {name for name, (word, dot, _) in words.items() if dot and word == "module"}
            words = {name: words[name] for name in parallel}
        if not words:
            break
        for name, (word, _, _) in words.items():
            prefixes[name] += f"{word}."
    return prefixes
