"""Settings from the command line, from TOML files and from the headers of weights, and back into these.

Each function takes the class to make, such as `ReflConfig`. Files may hold settings in groups or, as those of older
versions, without.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic.fields import FieldInfo

from ...core.errors import RealignError
from .common import TrainingConfig
from .removed import REMOVED
from .schema import choices, fields, groups, help_text, kind, nearest, summary

Config = TypeVar("Config", bound=TrainingConfig)

METADATA_KEY = "realigndiff.config"
"""Where the header of a `.safetensors` file that we write holds the JSON of its run's settings."""
OF_ONE_RUN = ("output", "resume", "dry_run")
"""Settings that are not taken from such a header: a run that begins from it would go on with the finished one."""
OPTIONS = {
    "config": ("FILE", "", "Settings to begin with: a .toml file, or a .safetensors file that a run wrote."),
    "dry_run": ("", False, "Print what would be done, with sizes and files, and do nothing."),
}
"""The options that are no settings: metavar, default, help."""


def parse(config: type[Config], argv: Sequence[str] | None = None, description: str | None = None) -> Config:
    """The settings that a command line gives; see `parse_command`."""
    return parse_command(config, argv, description)[0]


def parse_command(
    config: type[Config], argv: Sequence[str] | None = None, description: str | None = None
) -> tuple[Config, bool]:
    """The settings that a command line gives, and whether it has `--dry-run`.

    The settings are those of `--config FILE`, and over them each `--setting value`.

    argv: the words after the script's name; by default the process's. description: the text above the help; by default
    the class's docstring.

    Raises:
        RealignError: a file, a setting or a value is wrong.
    """
    try:
        import tyro
    except ModuleNotFoundError as error:
        raise RealignError("The package tyro is not installed: pip install -r requirements-train.txt.") from error
    argv = list(sys.argv[1:] if argv is None else argv)
    file = _config_file(argv)
    base = config() if file is None else load(config, file)
    given, unknown = tyro.cli(
        _command_line(base),
        args=argv,
        description=description or inspect.getdoc(config),
        return_unknown_args=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    texts = {name: text for group in groups(config) for name, text in vars(getattr(given, group)).items()}
    values = {name: _from_text(kind(field), texts[name]) for name, field in fields(config).items()}
    return config(**values, **_removed_options(unknown, [*fields(config), *OPTIONS])), given.dry_run


def load(config: type[Config], file: str | Path) -> Config:
    """The settings in a TOML file, or in the header of a `.safetensors` file that a run wrote.

    Raises:
        RealignError: the file or one of its settings is wrong; names the file.
    """
    file = Path(file)
    if not file.is_file():
        raise RealignError(f"There is no file {str(file)!r}; give a .toml file, such as training/configs/sd15.toml.")
    values = from_header(file) if file.suffix.lower() == ".safetensors" else _from_toml(file)
    try:
        return config(**values)
    except RealignError as error:
        raise RealignError(f"{file}: {error}") from error


def to_toml(config: TrainingConfig, title: str = "") -> str:
    """The settings that differ from the defaults as TOML, each with a comment."""
    import tomlkit

    document, defaults = tomlkit.document(), type(config)()
    for name in groups(type(config)):
        values, default = getattr(config, name), getattr(defaults, name)
        if values == default:
            continue
        table = tomlkit.table()
        for setting, field in type(values).model_fields.items():
            if getattr(values, setting) != getattr(default, setting):
                table.add(setting, _toml(getattr(values, setting)).comment(summary(field, limits=False)))
        document.add(tomlkit.nl()).add(name, table)
    return "".join(f"# {line}".rstrip() + "\n" for line in title.splitlines()) + document.as_string()


def _toml(value: Any) -> Any:
    import tomlkit

    if isinstance(value, str):
        return tomlkit.string(value, literal="'" not in value)
    if isinstance(value, tuple):
        array = tomlkit.array().multiline(len(value) > 4)
        array.extend(map(_toml, value))
        return array
    return tomlkit.item(value)


def _from_toml(file: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RealignError(f"{file} is not UTF-8; save it as UTF-8.") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = " (write Windows paths in 'single quotes')" if "\\" in text else ""
        raise RealignError(f"{file} is not TOML: {error}{hint}.") from error


def from_header(file: Path) -> dict[str, Any]:
    """The settings in the header of a file that a run wrote, without those of that one run.

    Raises:
        RealignError: there are none, or the file is no safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            text = (opened.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise RealignError(f"{file} could not be read as safetensors: {error}.") from error
    if text is None:
        raise RealignError(f"{file} has no settings of a run in its header ({METADATA_KEY}); give a .toml file.")
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise RealignError(f"{file}: the settings in its header ({METADATA_KEY}) are not a JSON object.")
    return {name: value for name, value in values.items() if name not in OF_ONE_RUN}


# The command line. tyro takes each value as text, so that a wrong one gives the same sentence as one in a file.


def _command_line(base: TrainingConfig) -> type:
    """A dataclass for tyro: a group of options for each group of settings, with the values of `base` as defaults."""
    parts = [(name, *_option(*option)) for name, option in OPTIONS.items()]
    for name, group in groups(type(base)).items():
        options = [
            (setting, *_option(_metavar(field), getattr(getattr(base, name), setting), help_text(field)))
            for setting, field in group.model_fields.items()
        ]
        made = dataclasses.make_dataclass(name, options, frozen=True)
        made.__doc__ = inspect.getdoc(group)
        parts.append((name, made, made()))
    return dataclasses.make_dataclass("Options", parts)


def _option(metavar: str, default: Any, text: str) -> tuple[Any, Any]:
    import tyro

    if not isinstance(default, bool | tuple):
        default = number(default)
    type_ = tuple[str, ...] if isinstance(default, tuple) else type(default)
    return Annotated[type_, tyro.conf.arg(metavar=metavar, help=text)], default


def _config_file(argv: Sequence[str]) -> str | None:
    """The `--config FILE` or `--config=FILE`; the rest is tyro's."""
    files = [after for word, after in pairwise(argv) if word == "--config"]
    files += [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    if len(files) > 1:
        raise RealignError(f"--config is given {len(files)} times; give it once.")
    return files[0] if files else None


def _removed_options(words: Sequence[str], options: Collection[str]) -> dict[str, Any]:
    """The options among words unknown to tyro that older versions had.

    Raises:
        RealignError: a word is none of these.
    """
    values: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("-") and not word[1:2].isdigit():
            option, equals, value = word.partition("=")
            name = option.strip("-").replace("-", "_")
            no, name = name.startswith("no_"), name.removeprefix("no_")
            if name not in REMOVED:
                like = nearest(name, options).replace("_", "-")
                raise RealignError(f"There is no option {option}; did you mean --{like}?")
            values[name] = current = [value] if equals else ["false"] if no else []
        elif values:
            current.append(word)
        else:
            raise RealignError(
                f"The command line holds {word!r}, which belongs to no option; put text with spaces in quotes."
            )
    return {name: _any_value(given) for name, given in values.items()}


def _any_value(words: Sequence[str]) -> Any:
    """The value of an option whose kind is not known any more; an option without one was a flag."""
    if len(words) > 1:
        return list(words)
    text = words[0] if words else "true"
    try:
        return json.loads(text)
    except ValueError:
        return text


def _metavar(field: FieldInfo) -> str:
    if choices(field):
        return "{" + ",".join(choices(field)) + "}"
    return {str: "TEXT", int: "INT", float: "NUMBER", tuple: "[TEXT ...]"}.get(kind(field), "")


def _from_text(kind: type, given: Any) -> Any:
    """A value of the command line; what cannot be read as a number stays text, which the settings then refuse."""
    try:
        return kind(given) if kind in (int, float) else given
    except ValueError:
        return given


def number(value: Any) -> str:
    """A value as people write it: 1e-5, not 1e-05."""
    return f"{value!r}".replace("e-0", "e-") if isinstance(value, float) else f"{value}"
