"""The pack runs from a folder of any name, is light to import, safe to install, and can be built as a wheel."""

import fnmatch
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SKIPPED = (".*", "out", "build", "__pycache__", "*.egg-info")
SOURCES = [
    file
    for file in sorted(ROOT.rglob("*.py"))
    if not any(fnmatch.fnmatch(part, pattern) for part in file.relative_to(ROOT).parts for pattern in SKIPPED)
    and file.relative_to(ROOT).parts[0] != "tests"
]
SCRIPTS = [file.relative_to(ROOT) for file in SOURCES if '__name__ == "__main__"' in file.read_text("utf-8")]


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module", params=["ComfyUI-RealignDiff", "my nodes v1.2"])
def clone(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("custom_nodes") / request.param
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*SKIPPED, "weights"))
    return folder


def test_a_script_runs_from_a_folder_of_any_name(clone, tmp_path):
    script = "demo/run.py" if " " in clone.name else "evaluation/evaluate.py"
    done = python(str(clone / script), "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_every_script_names_its_package_first(script):
    text = (ROOT / script).read_text(encoding="utf-8")
    depth = len(script.parts) - 1
    wanted = f'(pathlib.Path(__file__).parents[{depth}] / "standalone.py"))["package_of"](__file__)'
    assert wanted in text
    first_import = re.search(r"^(?:import|from) (?!__future__)", text, re.M)
    assert first_import and text.index(wanted) < first_import.start()


def test_the_root_imports_neither_torch_nor_the_host(clone):
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("pack", {str(clone / "__init__.py")!r},
                                              submodule_search_locations=[{str(clone)!r}])
pack = importlib.util.module_from_spec(spec); sys.modules["pack"] = pack; spec.loader.exec_module(pack)
assert pack.WEB_DIRECTORY == "./web" and callable(pack.comfy_entrypoint)
heavy = {{"torch", "transformers", "diffusers", "numpy", "comfy", "comfy_api"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = python("-c", code, cwd=clone.parent)
    assert done.returncode == 0, done.stderr


def test_requirements_have_lower_bounds_only():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert wanted
    assert all(re.fullmatch(r"[a-z][a-z0-9-]*(>=[\d.]+)?", line) for line in wanted), wanted
    # load_default(size=…) of pillow and scaled_dot_product_attention(scale=…) of torch are not in older ones.
    assert {"pillow>=10.1", "torch>=2.1"} <= set(wanted)
    listed = re.search(r"^dependencies = \[(.*)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert re.findall(r'"([^"]+)"', listed.group(1)) == wanted


def test_only_the_folders_for_comfyui_import_comfyui():
    for file in SOURCES:
        place = file.relative_to(ROOT).as_posix()
        if not place.startswith(("nodes/", "attention/comfy/", "benchmarks/")):
            assert not re.search(
                r"^\s*(from|import) (comfy|comfy_api|folder_paths)\b", file.read_text("utf-8"), re.M
            ), place


def test_a_wheel_holds_every_package_and_all_that_they_read(tmp_path):
    """Built from a copy without .git, so that nothing is taken from version control or left in the tree."""
    pytest.importorskip("setuptools", minversion="70.1")
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*SKIPPED))
    done = python("-c", f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})", cwd=source)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = {name.removeprefix("realigndiff/") for name in wheel.namelist()}
        wheel.extractall(tmp_path / "installed")
    suffixes = {".py", ".json", ".toml", ".css", ".html", ".js", ".md", ".safetensors", ".jpg"}
    for folder in [file.parent for file in source.glob("*/__init__.py")] + [
        source / name for name in ("web", "locales")
    ]:
        if folder.name not in ("tests", "benchmarks"):
            needed = {file.relative_to(source).as_posix() for file in folder.rglob("*") if file.suffix in suffixes}
            assert needed <= packed | {"README.md", "demo/README.md"}, needed - packed
    code = f"""
import importlib, sys
sys.path.insert(0, {str(tmp_path / "installed")!r})
import realigndiff
assert realigndiff.__file__.startswith({str(tmp_path)!r})
for module in ("pipeline.realign", "rewards.loading", "demo.models", "training.refl_train"):
    importlib.import_module("realigndiff." + module)
"""
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_extras_are_the_requirements_files():
    extras = re.search(r"^training = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    lines = (ROOT / "requirements-train.txt").read_text(encoding="utf-8").splitlines()
    required = [line for line in lines if line and not line.startswith(("#", "-r"))]
    assert re.findall(r'"([^"]+)"', extras.group(1).replace("'", "")) == [line.replace('"', "") for line in required]


def test_a_script_that_lacks_a_package_says_how_to_install_it():
    """In one process, where torch is not to be had."""
    scripts = ["training/refl_train.py", "training/arl_train.py", "evaluation/evaluate.py", "demo/metrics.py"]
    code = f"""
import json, runpy, sys
sys.modules["torch"] = None
plain = sys.excepthook
for script in json.loads({json.dumps(json.dumps(scripts))}):
    sys.argv, sys.excepthook = [script], plain
    try:
        runpy.run_path(script, run_name="__main__")
    except ImportError as error:
        sys.excepthook(type(error), error, error.__traceback__)
"""
    done = python("-c", code, cwd=ROOT)
    assert done.stderr.splitlines() == [
        "refl_train: The package torch is not installed: pip install -r requirements-train.txt",
        "arl_train: The package torch is not installed: pip install -r requirements-train.txt",
        "evaluate: The package torch is not installed: pip install -r requirements.txt",
        "metrics: The package torch is not installed: pip install -r requirements.txt",
    ]


def test_what_else_fails_keeps_its_traceback_and_each_package_its_command(tmp_path, monkeypatch):
    standalone = runpy.run_path(str(ROOT / "standalone.py"))
    missing, command = standalone["missing_package"], standalone["command"]
    assert missing(ModuleNotFoundError("No module named 'PIL.Image'", name="PIL.Image")) == "pillow"
    wrapped = ModuleNotFoundError("Could not import module 'Blip2Model'.")
    wrapped.__cause__ = ModuleNotFoundError("No module named 'tokenizers'")
    assert missing(wrapped) == "tokenizers"
    assert missing(ModuleNotFoundError("No module named 'realigndiff.x'", name="realigndiff.x")) is None
    assert missing(ImportError("cannot import name 'x' from 'torch'", name="torch")) is None
    handled = ValueError("x")
    handled.__context__ = ModuleNotFoundError("No module named 'tomli'", name="tomli")
    assert missing(handled) is None
    script = ROOT / "scripts" / "realign.py"
    monkeypatch.chdir(tmp_path)
    assert command("diffusers", script).endswith("requirements-train.txt") and str(ROOT) in command("scipy", script)
    assert command("torchmetrics", script) == "pip install torchmetrics"
