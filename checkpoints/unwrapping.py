"""Which of a file's contents are the weights, and which prefixes training scripts put before their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from .kinds import looks_like

WRAPPERS = (
    "model", "state_dict", "model_state_dict", "module", "net", "network", "weights", "params", "params_ema",
    "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "ema", "shadow", "shadow_params", "averaged_model",
)  # fmt: skip
"""Keys under which training scripts keep weights, the likeliest first; averages come after plain weights."""
OTHERS = (
    "optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "optim", "lr_scheduler", "lr_schedulers",
    "scheduler", "scaler", "amp", "callbacks", "loops", "hyper_parameters", "args", "config", "cfg", "opt", "meta",
    "message_hub", "rng_state", "_metadata",
)  # fmt: skip
"""Keys under which there are tensors that are no weights."""
AVERAGES = ("ema", "model_ema", "ema_model", "shadow", "averaged_model", "teacher")
PREFIXES = ("module", "model", "net", "network", "student", *AVERAGES)
"""Prefixes, before a dot, that training wrappers add to names."""
_NOISE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing add anywhere in names; no model's own names have it."""
_DEEPEST = 8
_MOST_MAPPINGS = 10_000
_LISTED = 8


@dataclass
class Weights:
    """A file's weights, and what was skipped."""

    tensors: dict[str, Tensor]
    place: tuple[str, ...] = ()  # the keys that lead to them; none if they are the file's top level
    skipped: list[str] = field(default_factory=list)  # the other contents, e.g. `epoch` or `args (Namespace)`
    prefixes: list[str] = field(default_factory=list)  # prefixes that were stripped from the names

    def report(self) -> str:
        """A sentence for the log on what was skipped; empty if nothing was."""
        if not self.skipped:
            return ""
        more = f" and {len(self.skipped) - _LISTED} more" if len(self.skipped) > _LISTED else ""
        weights = f"the weights under {' → '.join(self.place)}" if self.place else "the weights"
        return f"{weights} were read, and the rest was skipped: {', '.join(self.skipped[:_LISTED])}{more}."


def unwrap(content: Any, roots: Sequence[str] = ()) -> Weights:
    """The weights in a file's content, under their model's own names.

    Of several mappings with tensors, the one with most names of the wanted model is taken; among equals the one under
    the first key of `WRAPPERS`, so averages only if there is nothing else.
    roots: what the wanted model's names begin with. Without them, only an unknown model's names lose prefixes.
    """
    candidates = []
    for path, mapping in sorted(_mappings(content), key=lambda item: _rank(*item)):
        tensors = {name: value for name, value in mapping.items() if _is_named(name, value)}
        candidates.append(replace(_strip_prefixes(tensors, roots), place=path))
    if not candidates:
        return Weights({})
    best = max(candidates, key=lambda weights: sum(name.startswith(tuple(roots)) for name in weights.tensors))
    best.skipped = [*_beside(content, best.place), *best.skipped]
    return best


def _mappings(content: Any) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """(the keys that lead to it, mapping) of each mapping with named tensors; one that contains itself comes once."""
    queue: list[tuple[tuple[str, ...], Any]] = [((), content)]
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
    """A sort key: mappings under known keys first, then outer before inner ones."""
    if not path:
        wraps = any(key in WRAPPERS and isinstance(value, Mapping) for key, value in mapping.items())
        return (1, 0) if wraps else (0, 0)
    unknown = len(WRAPPERS)
    ranks = [WRAPPERS.index(key) if key in WRAPPERS else unknown for key in path]
    return (1 if unknown in ranks else 0, max(ranks), *ranks)


def _beside(content: Any, place: tuple[str, ...]) -> list[str]:
    """The other entries at each level on the way to the weights, and among them."""
    skipped = []
    for depth in range(len(place) + 1):
        among = depth == len(place)
        for key, value in content.items():
            if (among and isinstance(value, Tensor)) or (not among and key == place[depth]):
                continue
            if among and str(key).endswith(("_metadata", "_extra_state")):
                continue
            kind = type(value)
            plain = kind.__module__ in ("builtins", "collections", "torch") and kind.__name__ != "type"
            skipped.append(".".join(map(str, (*place[:depth], key))) + ("" if plain else f" ({kind.__name__})"))
        if not among:
            content = content[place[depth]]
    return skipped


def _strip_prefixes(tensors: Mapping[str, Tensor], roots: Sequence[str]) -> Weights:
    """The tensors under the model's names; of two with one name, the one with fewer prefixes, averages last."""
    clean = {name: _NOISE.sub("", name) for name in tensors}
    prefixes = _prefixes_of_known(clean, tuple(roots)) if roots else {}
    prefixes = prefixes if prefixes and not _hides_other_model(prefixes, clean) else _prefixes_of_unknown(clean)
    outside: list[str] = []
    if sum(map(bool, prefixes.values())) * 2 > len(prefixes):  # a tensor without the prefix belongs to something else
        outside = [name for name in tensors if name not in prefixes]
    full = {name: clean[name].removeprefix(prefixes.get(name, "")) for name in tensors}
    averages = {name for name, prefix in prefixes.items() if not set(AVERAGES).isdisjoint(prefix.split("."))}
    order = sorted(tensors, key=lambda name: (name in averages, len(clean[name])))
    places: dict[str, str] = {}
    for name in order:
        if name in prefixes or not outside:
            places.setdefault(full[name], name)
    kept = set(places.values())
    named = {full[name]: tensor for name, tensor in tensors.items() if name in kept}
    used = sorted({prefix for name in kept if (prefix := prefixes.get(name, ""))})
    return Weights(named, skipped=[name for name in tensors if name not in kept], prefixes=used)


def _hides_other_model(prefixes: Mapping[str, str], clean: Mapping[str, str]) -> bool:
    """Whether the names belong to another known model as they are, but not without the prefixes."""
    before = looks_like(clean.values())
    after = looks_like(clean[name].removeprefix(prefix) for name, prefix in prefixes.items())
    return after.startswith("an unknown") and not before.startswith("an unknown")


def _prefixes_of_known(clean: Mapping[str, str], roots: tuple[str, ...]) -> dict[str, str]:
    """{tensor: prefix, perhaps empty} of the wanted model's tensors; per tensor, because files may be mixed."""
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
    return prefixes or _common_prefix(clean, roots)


def _common_prefix(clean: Mapping[str, str], roots: tuple[str, ...]) -> dict[str, str]:
    """The same with any one to three words as the prefix, e.g. the attribute of a wrapper that holds the model."""
    for count in (1, 2, 3):
        starts = Counter(".".join(name.split(".")[:count]) + "." for name in clean.values())
        for start, _ in starts.most_common(2):
            inside = {name: start for name, full in clean.items() if full.startswith(start)}
            known = sum(clean[name][len(start) :].startswith(roots) for name in inside)
            if known * 2 > len(inside):
                return inside
    return {}


def _prefixes_of_unknown(clean: Mapping[str, str]) -> dict[str, str]:
    """{tensor: prefix} without knowing the wanted model: `module.` of any name, others only if all names have one."""
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
