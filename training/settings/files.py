"""Settings from the command line, TOML files and headers of weights; older files hold them without groups."""

from __future__ import annotations

import dataclasses
import json
from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from ...core.errors import RealignError
from .common import TrainingConfig
from .removed import REMOVED
from .schema import fields, groups, help_text, split_help

Config = TypeVar("Config", bound=TrainingConfig)

METADATA_KEY = "realigndiff.config"
"""Where the header of a `.safetensors` file that we write holds the JSON of its run's settings."""
OF_ONE_RUN = ("output", "resume", "dry_run")
"""Settings that are not taken from such a header: a run that begins from it would go on with the finished one."""


def parse(config: type[Config], argv: Sequence[str] | None = None, description: str | None = None) -> Config:
    """The settings that a command line gives; see `parse_command`."""
    return parse_command(config, argv, description)[0]


def parse_command(
    config: type[Config], argv: Sequence[str] | None = None, description: str | None = None
) -> tuple[Config, bool]:
    """The settings in `--config FILE`, replaced by each `--setting value`; and whether there is `--dry-run`.

    argv: the words after the script's name; by default the process's. description: the text above the help.
    Raises a RealignError where a file or setting is wrong; tyro exits where an option is.
    """
    try:
        import tyro
    except ModuleNotFoundError as error:
        raise RealignError("The package tyro is not installed: pip install -r requirements-train.txt.") from error
    early = ArgumentParser(usage="see --help", add_help=False, allow_abbrev=False, argument_default=SUPPRESS)
    early.add_argument("--config", action="append", dest="files", default=[])  # whose values are defaults for tyro
    for name, (fine, _) in REMOVED.items():
        if name not in (*fields(config), "dry_run"):
            kind: dict[str, Any] = {"action": BooleanOptionalAction} if fine is False else {"type": type(fine)}
            early.add_argument(f"--{name.replace('_', '-')}", f"--{name}", **kind)
    old, rest = early.parse_known_args(argv)
    files = vars(old).pop("files")
    if len(files) > 1:
        raise RealignError(f"--config is given {len(files)} times; give it once.")
    base = load(config, files[0]) if files else config()
    given = tyro.cli(_options(base), args=rest, description=description, config=(tyro.conf.OmitArgPrefixes,))
    return config(**{name: vars(getattr(given, name)) for name in groups(config)}, **vars(old)), given.dry_run


def _options(base: TrainingConfig) -> type:
    """A dataclass for tyro with the values of `base` as defaults, in groups; `config` checks the values, not this."""
    from tyro.conf import arg

    parts = []
    for name, group in groups(type(base)).items():
        options = [
            (option, Annotated[field.annotation, arg(help=help_text(field))], getattr(getattr(base, name), option))
            for option, field in group.model_fields.items()
        ]
        parts.append((name, dataclasses.make_dataclass(name, options, namespace={"__doc__": group.__doc__})))
    config = arg(metavar="FILE", help="Settings to begin with: a .toml file, or a .safetensors file that a run wrote.")
    dry_run = arg(help="Print what would be done, with sizes and files, and do nothing.")
    first = [("config", Annotated[str, config], ""), ("dry_run", Annotated[bool, dry_run], False)]
    return dataclasses.make_dataclass("Options", [*parts, *first])


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


def to_toml(config: TrainingConfig) -> str:
    """The settings that differ from the defaults as TOML, each with a comment."""
    import tomlkit

    document = tomlkit.document()
    for group, changed in config.model_dump(exclude_defaults=True).items():
        table = tomlkit.table()
        for name, value in changed.items():
            table.add(name, _toml(value).comment(f"{split_help(fields(type(config))[name])[0]}."))
        document.add(tomlkit.nl()).add(group, table)
    return document.as_string()


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
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        text = file.read_bytes().decode("utf-8-sig")
        return tomlkit.parse(text).unwrap()
    except UnicodeDecodeError as error:
        raise RealignError(f"{file} is not UTF-8; save it as UTF-8.") from error
    except (TOMLKitError, ValueError) as error:
        hint = " (write Windows paths in 'single quotes')" if "\\" in text else ""
        raise RealignError(f"{file} is not TOML: {error}{hint}.") from error


def from_header(file: Path) -> dict[str, Any]:
    """The settings in the header of a file that a run wrote, without `OF_ONE_RUN`; a RealignError if it has none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            values = json.loads((opened.metadata() or {}).get(METADATA_KEY, "null"))
    except (SafetensorError, OSError) as error:
        raise RealignError(f"{file} could not be read as safetensors: {error}.") from error
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise RealignError(f"{file} has no settings in its header ({METADATA_KEY}, a JSON object); give a .toml file.")
    return {name: value for name, value in values.items() if name not in OF_ONE_RUN}
