"""What is generated from the settings: `training/configs/*.toml` and the tables `docs/*_settings.md`."""

from __future__ import annotations

import inspect
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from .arl import ArlConfig
from .common import TrainingConfig
from .files import load, to_toml
from .refl import ReflConfig
from .schema import groups, help_text

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "training" / "configs"
HEAD = """\
# Settings of `{script}.py`

The settings of `training/{script}.py`. On the command line each setting is an option, such as
`--batch-size 2`, and wins over the file that `--config` names. A TOML file holds the settings that differ
from the defaults, in the groups below or without them; see `training/configs/{example}.toml`.
Write Windows paths in 'single quotes'. `--dry-run` prints what would be done.

`make docs` writes this page from `training/settings/`.
"""


class Program(NamedTuple):
    """A training program: its settings, their page in `docs/`, and its files in `training/configs`."""

    config: type[TrainingConfig]
    table: str
    files: tuple[str, ...]


PROGRAMS = {
    "refl_train": Program(ReflConfig, "training_settings.md", ("sd15", "sdxl", "demo")),
    "arl_train": Program(ArlConfig, "arl_settings.md", ("arl-sd15", "arl-demo")),
}


def generated() -> dict[Path, str]:
    """Each generated file with its text: the TOML files keep their head and values and get the comments of today."""
    texts = {}
    for script, program in PROGRAMS.items():
        head = HEAD.format(script=script, example=program.files[-1])
        texts[ROOT / "docs" / program.table] = head + _tables(program.config)
        for file in (CONFIGS / f"{name}.toml" for name in program.files):
            with file.open(encoding="utf-8") as lines:
                head = "".join(takewhile(lambda line: line.startswith("#"), lines))
            texts[file] = head + to_toml(load(program.config, file))
    return texts


def _tables(config: type[TrainingConfig]) -> str:
    lines = []
    for name, group in groups(config).items():
        lines += ["", f"## [{name}]", "", inspect.getdoc(group), "", "| setting | default | |", "|---|---|---|"]
        for setting, field in group.model_fields.items():
            default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
            text = help_text(field).replace("|", r"\|")
            lines.append(f"| `{setting}` | {default} | {text} |")
    return "\n".join(lines) + "\n"
