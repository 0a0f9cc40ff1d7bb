"""Lets a script of this pack run from a plain clone, in a folder of any name.

ComfyUI imports the pack under the name of its folder (`ComfyUI-RealignDiff`, with a dash, or anything else), so
inside the pack every import is relative. `python training/refl_train.py` has no package to be relative to: this
file gives it one (also in the processes that a script spawns). Each script begins with

    if not __package__:
        import pathlib, runpy
        __package__ = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["package_of"](__file__)

A script that lacks a package then ends with one sentence, which says how to install it, wherever it is imported.
"""

import importlib.util
import re
import sys
from pathlib import Path
from types import TracebackType

NAME = "realigndiff"
ROOT = Path(__file__).resolve().parent
REQUIREMENTS = ("requirements.txt", "requirements-train.txt")
NAMES = {"PIL": "pillow", "yaml": "pyyaml"}
"""What a package is called on the index where that differs from its import."""


def load_pack() -> None:
    """Import the pack's root as the package `realigndiff`, without putting its folder on `sys.path`."""
    if NAME in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None  # a file's spec always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


def package_of(script: str) -> str:
    """Load the pack and return the package name of `script`, e.g. `realigndiff.training`.

    Python put the script's own folder first on `sys.path`; it is taken off, so that no file of ours hides a library.
    What the terminal's encoding lacks is written escaped: a prompt in Chinese ends no script whose output is piped.
    """
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    folder = Path(script).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    load_pack()
    explain_missing_packages(Path(script))
    return ".".join((NAME, *folder.relative_to(ROOT).parts))


def explain_missing_packages(script: Path) -> None:
    """From now on the process ends with a sentence in place of a traceback where a package is missing; status 1."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        package = missing_package(error)
        if package is None:
            previous(kind, error, trace)
        else:
            print(f"{script.stem}: The package {package} is not installed: {command(package, script)}", file=sys.stderr)

    sys.excepthook = hook


def missing_package(error: BaseException | None) -> str | None:
    """What the package is called on the index whose absence raised the error; None where another thing did.

    transformers raises an error of its own over that of the package.
    """
    while isinstance(error, ImportError):
        named = re.match(r"No module named '([^']+)'", str(error))
        if isinstance(error, ModuleNotFoundError) and (module := error.name or (named and named[1])):
            top = module.partition(".")[0]
            return None if top == NAME else NAMES.get(top, top.replace("_", "-"))
        error = error.__cause__ or error.__context__
    return None


def command(package: str, script: Path) -> str:
    """The command that installs a package, with all others that the script needs where it is one of those."""
    listed = {name: (ROOT / name).read_text(encoding="utf-8") for name in REQUIREMENTS if (ROOT / name).is_file()}
    files = [name for name, text in listed.items() if re.search(rf"^{re.escape(package)}\b", text, re.M | re.I)]
    if not files:
        return f"pip install {package}"
    file = ROOT / (REQUIREMENTS[-1] if script.resolve().parent.name == "training" else files[0])
    shown = file.name if Path.cwd() == ROOT else str(file)
    return f"pip install -r {chr(34) + shown + chr(34) if ' ' in shown else shown}"
