"""What a model of settings says about each setting, and where a setting of a name belongs."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Container, Mapping
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ...core.errors import RealignError

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most"}


def groups(config: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The groups of a model of settings, by name, in their order."""
    return {name: cast(type[BaseModel], field.annotation) for name, field in config.model_fields.items()}


def fields(config: type[BaseModel]) -> dict[str, FieldInfo]:
    """All settings by name, in the order of their groups."""
    return {name: field for group in groups(config).values() for name, field in group.model_fields.items()}


def split_help(field: FieldInfo) -> tuple[str, str]:
    """The first sentence of the help text, without the full stop, and the rest."""
    first, _, rest = " ".join((field.description or "").split()).partition(". ")
    return first.rstrip("."), rest


def help_text(field: FieldInfo) -> str:
    """The whole help text, with the range."""
    first, rest = split_help(field)
    bounds = [f"{word} {getattr(at, key)}" for key, word in BOUNDS.items() for at in field.metadata if hasattr(at, key)]
    return f"{first} ({', '.join(bounds)}). {rest}".replace(" ()", "").rstrip()


def in_groups(
    config: type[BaseModel], values: Mapping[str, Any], removed: Container[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Settings by name, in groups or without, sorted into their groups; and those in `removed`. Others are refused."""
    home = {name: group for group, model in groups(config).items() for name in model.model_fields}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and name not in config.model_fields:
            raise RealignError(f"there is no group [{name}]; did you mean [{nearest(name, config.model_fields)}]?")
        flat |= value if isinstance(value, Mapping) else {name: value}
    known, old = {}, {}
    for name, value in flat.items():
        if name not in home and name not in removed:
            raise RealignError(f"there is no setting {name!r}; did you mean {nearest(name, home)!r}?")
        place = known.setdefault(home[name], {}) if name in home else old
        place[name] = tuple(value) if isinstance(value, list) else value
    return known, old


def nearest(name: str, names: Collection[str]) -> str:
    """The name that is most like it, or whose initials it is (`lr`)."""
    initials = {"".join(word[0] for word in full.split("_")): full for full in names if "_" in full}
    return initials.get(name) or difflib.get_close_matches(name, names, n=1, cutoff=0)[0]


def sentence(error: ValidationError) -> str:
    """The first of pydantic's errors as one sentence with the setting's name and its value."""
    first = error.errors()[0]
    name = first["loc"][1] if len(first["loc"]) > 1 else ""
    if first["type"] == "value_error":
        cause = first.get("ctx", {})["error"]
        return f"{name} is {cause}" if name else str(cause)
    return f"{name} is {first['input']!r}; {first['msg'].replace('Input', 'it').replace('tuple', 'list')}."
