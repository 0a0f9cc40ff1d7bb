"""A trained file for other people: in half precision, under a title of its own, without the folders of your machine.

    python training/publish.py out/mine/best.safetensors mine.safetensors --title "Things where they belong"

Of the settings in the header, which `--config mine.safetensors` starts from, paths lose all but their last name.
"""

from __future__ import annotations

if not __package__:
    import pathlib
    import runpy

    __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

import argparse
import json
import sys
from pathlib import Path, PureWindowsPath

import torch

from ..core.errors import RealignError
from .config import METADATA_KEY
from .export import rewrite

PATHS = ("model", "captioner", "text_encoder", "output", "prompts", "held_out_prompts", "prior", "resume")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="what a run wrote: best.safetensors or last.safetensors")
    parser.add_argument("target", type=Path, help="the file to write; one of that name is replaced")
    parser.add_argument("--title", help="what LoRA managers show (the target's name by default)")
    options = parser.parse_args()
    try:
        publish(options.source, options.target, options.title)
    except RealignError as error:
        sys.exit(f"publish: {error}")
    print(f"{options.target}: {options.target.stat().st_size / 1e6:.1f} MB")


def publish(source: Path, target: Path, title: str | None = None) -> None:
    """Write the weights of `source` in half precision to `target`, its header cleaned and renamed.

    Raises:
        RealignError: a file cannot be read or written, or a weight does not fit into half precision.
    """
    named = {"modelspec.title": title or target.stem, "ss_output_name": target.stem}
    rewrite(source, target, lambda told: {**told, **named, **_without_folders(told)}, dtype=torch.float16)


def _without_folders(told: dict[str, str]) -> dict[str, str]:
    """The header's settings with the last names of paths only, whichever way these are written."""
    if METADATA_KEY not in told:
        return {}
    settings = json.loads(told[METADATA_KEY])
    names = {key: PureWindowsPath(settings[key]).name for key in PATHS if settings.get(key)}
    return {METADATA_KEY: json.dumps({**settings, **names})}


if __name__ == "__main__":
    main()
