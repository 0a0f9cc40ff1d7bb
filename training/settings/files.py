"""Settings from the command line, from TOML files and from the headers of weights, and back into these.

Each function that reads takes the dataclass that it is to make, such as `ReflConfig`. As a script this file makes what
is generated from these: the comments in `training/configs/*.toml` and the tables `docs/training_settings.md` and
`docs/arl_settings.md`. After a change of a setting, or of a value in one of the TOML files:

    python training/settings/files.py --write
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "standalone.py"))["package_of"](__file__)

import argparse
import dataclasses
import difflib
import inspect
import json
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

from ...core.errors import RealignError
from .arl import ArlConfig
from .kinds import Kind, documentation, kinds
from .refl import ReflConfig

Settings = TypeVar("Settings")
"""A dataclass as `training/settings/kinds.py` describes it."""

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "training" / "configs"
METADATA_KEY = "realigndiff.config"
"""Where the header of a `.safetensors` file that we write holds the JSON of its run's settings."""
OF_ONE_RUN = ("output", "resume", "dry_run")
"""Settings that are not taken from such a header: a run that begins from it would go on with the finished one."""
REFL = {
    "sd15": "Stable Diffusion 1.5 with the paper's settings, where the paper gives them.",
    "sdxl": "Stable Diffusion XL with LoRA. Not measured: a place to start from.",
    "demo": "The demo world's small models on two CPU cores.",
}
"""The files in `training/configs` for `refl_train.py`, each with its first line."""
ARL = {
    "arl-sd15": "Stable Diffusion 1.5 with the settings of the paper's first version, where it gives them.",
    "arl-demo": "Reward-ranked learning of the demo world's small models on two CPU cores.",
}
"""Those for `arl_train.py`."""


def parse(settings: type[Settings], argv: Sequence[str] | None = None, description: str | None = None) -> Settings:
    """The settings that a command line gives: those of `--config FILE`, and over them each `--setting value`.

    argv: the words after the script's name; the process's own by default. description: the text above the help; by
    default the dataclass's own.

    Raises:
        RealignError: a file, a setting or a value is wrong.
    """
    try:
        import tyro
    except ModuleNotFoundError as error:
        raise RealignError("The package tyro is not installed: pip install -r requirements-train.txt.") from error
    argv = list(sys.argv[1:] if argv is None else argv)
    file = _config_file(argv)
    config = settings() if file is None else load(settings, file)
    # tyro takes each value as text, so that a wrong one is told in the same words as one in a file
    options = {
        "config": ("FILE", "Settings to begin with: a .toml file, or a .safetensors file that a run wrote.", ""),
        **{
            name: (_metavar(kind), documentation(settings)[name].text, _shown(getattr(config, name)))
            for name, kind in kinds(settings).items()
        },
    }
    types = {tuple: tuple[str, ...]}
    fields = [
        (name, Annotated[types.get(type(shown), type(shown)), tyro.conf.arg(metavar=metavar, help=text)], shown)
        for name, (metavar, text, shown) in options.items()
    ]
    given, unknown = tyro.cli(
        dataclasses.make_dataclass("Options", fields),
        args=argv,
        description=description or inspect.getdoc(settings),
        return_unknown_args=True,
    )
    if unknown:
        _refuse(unknown[0], options)
    return from_dict(settings, {name: _from_text(kind, getattr(given, name)) for name, kind in kinds(settings).items()})


def load(settings: type[Settings], file: str | Path) -> Settings:
    """The settings in a TOML file, or in the header of a `.safetensors` file that a run wrote.

    Raises:
        RealignError: the file or one of its settings is wrong; names the file.
    """
    file = Path(file)
    if not file.is_file():
        raise RealignError(f"There is no file {str(file)!r}; give a .toml file, such as training/configs/sd15.toml.")
    values = from_header(file) if file.suffix.lower() == ".safetensors" else _from_toml(file)
    return from_dict(settings, values, str(file))


def to_dict(config: Any) -> dict[str, Any]:
    """The settings as JSON-ready values."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(config).items()}


def from_dict(settings: type[Settings], values: Mapping[str, Any], source: str | None = None) -> Settings:
    """The settings in `values`, the defaults where it has none. source: the file they come from, for messages.

    Raises:
        RealignError: there is no such setting, or a value is wrong.
    """
    prefix, known = "" if source is None else f"{source}: ", kinds(settings)
    for name in values:
        if name not in known:
            raise RealignError(f"{prefix}there is no setting {name!r}; did you mean {_nearest(name, known)!r}?")
    try:
        return settings(**{name: _value(known[name], value) for name, value in values.items()})
    except RealignError as error:
        raise RealignError(f"{prefix}{error}") from error


def to_toml(config: Any, title: str = "") -> str:
    """The settings as TOML, each under its comment."""
    lines = [f"# {title}"] if title else []
    for name, doc in documentation(type(config)).items():
        if doc.section:
            lines += ["", f"# ---- {doc.section} ----"]
        lines += ["", *textwrap.wrap(doc.text, 110, initial_indent="# ", subsequent_indent="# ")]
        lines.append(f"{name} = {_toml(getattr(config, name))}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _from_toml(file: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
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
    """The settings in the header of a file that a run wrote, but those of that one run.

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


def _config_file(argv: Sequence[str]) -> str | None:
    """The last `--config FILE` or `--config=FILE`; the rest is tyro's."""
    files = [after for word, after in pairwise(argv) if word == "--config"]
    files += [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    if len(files) > 1:
        raise RealignError(f"--config is given {len(files)} times; give it once.")
    return files[0] if files else None


def _refuse(word: str, options: Collection[str]) -> None:
    if not word.startswith("-"):
        raise RealignError(
            f"The command line holds {word!r}, which belongs to no option; put text with spaces in quotes."
        )
    option = word.partition("=")[0]
    nearest = _nearest(option.strip("-").replace("-", "_"), options).replace("_", "-")
    raise RealignError(f"There is no option {option}; did you mean --{nearest}?")


def _nearest(name: str, names: Collection[str]) -> str:
    """The name that is most like it, or of which it is the initials (`lr`)."""
    initials = {"".join(word[0] for word in full.split("_")): full for full in names if "_" in full}
    if name in initials:
        return initials[name]
    return difflib.get_close_matches(name, names, n=1, cutoff=0)[0]


def _value(kind: Kind, given: Any) -> Any:
    """A value of TOML or JSON, which write a float without its point and have no tuples."""
    if kind.type is float and type(given) is int and abs(given) <= sys.float_info.max:
        return float(given)
    return tuple(given) if isinstance(given, list) else given


def _metavar(kind: Kind) -> str:
    if kind.choices:
        return "{" + ",".join(kind.choices) + "}"
    return {str: "TEXT", int: "INT", float: "NUMBER", tuple: "[TEXT ...]"}.get(kind.type, "")


def _shown(value: Any) -> str | bool | tuple[str, ...]:
    return value if isinstance(value, bool | tuple) else _number(value)


def _from_text(kind: Kind, given: str | bool | tuple[str, ...]) -> Any:
    """A value of the command line; what cannot be read as a number stays text, which the dataclass then refuses."""
    if kind.type not in (int, float):
        return given
    try:
        return kind.type(given)
    except ValueError:
        return given


def _number(value: Any) -> str:
    return f"{value!r}".replace("e-0", "e-") if isinstance(value, float) else f"{value}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        line = "[" + ", ".join(map(_toml, value)) + "]"
        return line if len(line) <= 100 else "[\n" + "".join(f"    {_toml(item)},\n" for item in value) + "]"
    if isinstance(value, str):
        return f"'{value}'" if "'" not in value else json.dumps(value, ensure_ascii=False)
    return _number(value)


# What is generated


def generated() -> dict[Path, str]:
    """The shipped TOML files, with the values that they have now, and the tables of the documentation."""
    return {
        **_of_a_script("refl_train", ReflConfig, REFL, "training_settings.md", "Settings of training"),
        **_of_a_script("arl_train", ArlConfig, ARL, "arl_settings.md", "Settings of reward-ranked learning"),
    }


def _of_a_script(
    script: str, settings: type[Settings], shipped: Mapping[str, str], table: str, title: str
) -> dict[Path, str]:
    configs = {name: load(settings, CONFIGS / f"{name}.toml") for name in shipped}
    files = {ROOT / "docs" / table: _table(settings, configs, script, title)}
    for name, config in configs.items():
        run = f"python training/{script}.py --config training/configs/{name}.toml"
        files[CONFIGS / f"{name}.toml"] = to_toml(config, f"{shipped[name]}\n#\n#     {run}")
    return files


def _table(settings: type[Settings], configs: Mapping[str, Settings], script: str, title: str) -> str:
    lines = [
        f"# {title}",
        "",
        f"Of `training/{script}.py`; made from `training/*settings.py` and `training/configs/*.toml` by",
        "`python training/settings/files.py --write`: edit those. Defaults are those of the first column, the paper's",
        "where it gives a value. On the command line each setting is an option, such as `--batch-size 2`; it",
        "wins over the file that `--config` names. A file may leave settings out. In TOML write Windows paths in",
        "'single quotes'.",
    ]
    for name, doc in documentation(settings).items():
        if doc.section:
            lines += [
                "",
                f"## {doc.section}",
                "",
                f"| setting | {' | '.join(configs)} | |",
                f"|---|{'---|' * len(configs)}---|",
            ]
        values = " | ".join(_cell(getattr(config, name)) for config in configs.values())
        lines.append(f"| `{name}` | {values} | {doc.text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, tuple) else _number(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the files; otherwise say which are out of date")
    options = parser.parse_args()
    try:
        files = generated()
    except RealignError as error:
        sys.exit(f"config: {error}")
    old = [file for file, text in files.items() if not file.is_file() or file.read_text(encoding="utf-8") != text]
    for file in old:
        if options.write:
            file.write_text(files[file], encoding="utf-8", newline="\n")
        print(f"{'written' if options.write else 'out of date'}: {file.relative_to(ROOT).as_posix()}")
    if old and not options.write:
        sys.exit(1)


if __name__ == "__main__":
    main()
