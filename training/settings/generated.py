"""What is generated from the settings: `training/configs/*.toml` and the tables `docs/*_settings.md`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .arl import ArlConfig
from .common import TrainingConfig
from .files import load, to_toml
from .refl import ReflConfig
from .schema import groups, help_text

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "training" / "configs"


class Program(NamedTuple):
    """A training program."""

    config: type[TrainingConfig]
    table: str
    """The page of its settings in `docs/`."""
    title: str
    files: Mapping[str, str]
    """Its files in `training/configs`, each with its first line."""


PROGRAMS = {
    "refl_train": Program(
        ReflConfig,
        "training_settings.md",
        "Settings of training",
        {
            "sd15": "Stable Diffusion 1.5 with the paper's settings, where the paper gives them: the defaults.",
            "sdxl": "Stable Diffusion XL with LoRA. Not measured: a place to start from.",
            "demo": "The demo world's small models on two CPU cores.",
        },
    ),
    "arl_train": Program(
        ArlConfig,
        "arl_settings.md",
        "Settings of reward-ranked learning",
        {
            "arl-sd15": "Stable Diffusion 1.5 with the settings of the paper's first version, where it gives them.",
            "arl-demo": "Reward-ranked learning of the demo world's small models on two CPU cores.",
        },
    ),
}


def generated() -> dict[Path, str]:
    """Each generated file with its text: the TOML files keep their values and get the comments of today."""
    files = {}
    for script, program in PROGRAMS.items():
        configs = {name: load(program.config, CONFIGS / f"{name}.toml") for name in program.files}
        files[ROOT / "docs" / program.table] = _table(script, program, configs)
        for name, config in configs.items():
            run = f"python training/{script}.py --config training/configs/{name}.toml"
            files[CONFIGS / f"{name}.toml"] = to_toml(config, f"{program.files[name]}\n\n    {run}")
    return files


def _table(script: str, program: Program, configs: Mapping[str, TrainingConfig]) -> str:
    lines = [
        f"# {program.title}",
        "",
        f"The settings of `training/{script}.py`. On the command line each setting is an option, such as",
        "`--batch-size 2`, and wins over the file that `--config` names. A TOML file holds the settings that differ",
        f"from the defaults, in the groups below or without them; see `training/configs/{list(configs)[-1]}.toml`.",
        "Write Windows paths in 'single quotes'. `--dry-run` prints what would be done.",
        "",
        "`make docs` writes this page from `training/settings/`.",
    ]
    defaults = {"default": program.config(), **configs}
    for group, model in groups(program.config).items():
        columns = {name: getattr(config, group) for name, config in defaults.items()}
        lines += [
            "",
            f"## [{group}]",
            "",
            inspect.getdoc(model),
            "",
            f"| setting | {' | '.join(columns)} | |",
            f"|---|{'---|' * len(columns)}---|",
        ]
        for name, field in model.model_fields.items():
            default, *others = (getattr(column, name) for column in columns.values())
            cells = [_cell(default), *("" if value == default else _cell(value) for value in others)]
            text = help_text(field).replace("|", r"\|")
            lines.append(f"| `{name}` | {' | '.join(cells)} | {text} |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, tuple) else str(value)
