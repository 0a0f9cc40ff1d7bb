"""Lets a script of this pack run from a plain clone, in a folder of any name.

ComfyUI imports the pack under the name of its folder (`ComfyUI-RealignDiff`, with a dash, or anything else), so
inside the pack every import is relative. `python training/refl_train.py` has no package to be relative to: this
file gives it one (also in the processes that a script spawns). Each script begins with

    if not __package__:
        import pathlib, runpy
        __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)
"""

import importlib.util
import sys
from pathlib import Path

NAME = "realigndiff"
ROOT = Path(__file__).resolve().parent


def load_pack() -> None:
    """Import the pack's root as the package `realigndiff`, without putting its folder on `sys.path`."""
    if NAME in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


def package_of(script: str) -> str:
    """Load the pack and return the package name of `script`, e.g. `realigndiff.training`.

    Python put the script's own folder first on `sys.path`; it is taken off, so that no file of ours hides a library.
    What the terminal's encoding lacks is written escaped: a prompt in Chinese ends no script whose output is piped.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    folder = Path(script).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    load_pack()
    return ".".join((NAME, *folder.relative_to(ROOT).parts))
