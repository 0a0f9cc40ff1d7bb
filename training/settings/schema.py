"""What a model of settings says about each setting, in words, and where a setting of a name belongs."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Container, Mapping
from typing import Any, Literal, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ...core.errors import RealignError

NOUNS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list of texts",
}


def groups(config: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The groups of a model of settings, by name, in their order."""
    return {name: cast(type[BaseModel], field.annotation) for name, field in config.model_fields.items()}


def fields(config: type[BaseModel]) -> dict[str, FieldInfo]:
    """All settings by name, in the order of their groups."""
    return {name: field for group in groups(config).values() for name, field in group.model_fields.items()}


def kind(field: FieldInfo) -> type:
    """The Python type of a setting: str, int, float, bool or tuple."""
    origin = get_origin(field.annotation)
    return str if origin is Literal else origin or cast(type, field.annotation)


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values that a setting may have, if it has a fixed list of them."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def allowed_range(field: FieldInfo) -> str:
    """ "from 0 to 1", "at least 1", "above 0", or nothing."""
    bounds = {
        name: getattr(bound, name) for bound in field.metadata for name in ("ge", "gt", "le") if hasattr(bound, name)
    }
    if "ge" in bounds and "le" in bounds:
        return f"from {bounds['ge']} to {bounds['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most"}
    return " and ".join(f"{words[name]} {bound}" for name, bound in bounds.items())


def expected(field: FieldInfo) -> str:
    """What to give: "a whole number of at least 1", "lora or unet"."""
    if choices(field):
        return " or ".join(choices(field))
    limits = allowed_range(field)
    return f"{NOUNS[kind(field)]} {'of ' if limits.startswith('at') else ''}{limits}".strip()


def summary(field: FieldInfo, *, limits: bool = True) -> str:
    """The first sentence of the help text, with the range or without."""
    first = (field.description or "").partition(". ")[0].rstrip(".")
    return f"{first} ({allowed_range(field)})." if limits and allowed_range(field) else f"{first}."


def help_text(field: FieldInfo) -> str:
    """The whole help text."""
    return f"{summary(field)} {(field.description or '').partition('. ')[2]}".rstrip()


def in_groups(
    config: type[BaseModel], values: Mapping[str, Any], removed: Container[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Settings by name, in groups or without, sorted into their groups; and those in `removed`.

    Raises:
        RealignError: there is no such setting or group.
    """
    home = {name: group for group, model in groups(config).items() for name in model.model_fields}
    known, sorted_values, old = groups(config), {}, {}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, BaseModel):
            flat |= dict(value)
        elif isinstance(value, Mapping):
            if name not in known:
                raise RealignError(f"there is no group [{name}]; did you mean [{nearest(name, known)}]?")
            flat |= value
        else:
            flat[name] = value
    for name, value in flat.items():
        if name in home:
            sorted_values.setdefault(home[name], {})[name] = tuple(value) if isinstance(value, list) else value
        elif name in removed:
            old[name] = value
        else:
            raise RealignError(f"there is no setting {name!r}; did you mean {nearest(name, home)!r}?")
    return sorted_values, old


def nearest(name: str, names: Collection[str]) -> str:
    """The name that is most like it, or whose initials it is (`lr`)."""
    initials = {"".join(word[0] for word in full.split("_")): full for full in names if "_" in full}
    return initials.get(name) or difflib.get_close_matches(name, names, n=1, cutoff=0)[0]


def sentence(config: type[BaseModel], error: ValidationError) -> str:
    """The first of pydantic's errors as one sentence with the setting's name, its value and what to give."""
    first = error.errors()[0]
    name = str(first["loc"][1]) if len(first["loc"]) > 1 else ""
    if first["type"] == "value_error":
        cause = first.get("ctx", {})["error"]
        return f"{name} is {cause}" if name else str(cause)
    field, value = fields(config)[name], first["input"]
    if kind(field) is tuple and len(first["loc"]) > 2:
        value = [value]
    return f"{name} is {value!r}; give {expected(field)}."
