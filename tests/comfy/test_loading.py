"""The pack loads at once and everywhere: whatever is slow or may be missing is imported when a node needs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from realigndiff.tests.comfy.client import Client
from realigndiff.tests.comfy.schemas import GOLDEN

ROOT = Path(__file__).parents[2]
OPTIONAL = ("diffusers", "openai", "peft", "segment_anything", "groundingdino")
SLOW = {"transformers", "diffusers", "openai", "huggingface_hub", "scipy", "pandas", "matplotlib"}
MISSING = f"""
from importlib.machinery import PathFinder

find = PathFinder.find_spec


def find_but(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in {OPTIONAL} else find(name, path, target)


PathFinder.find_spec = classmethod(find_but)
"""
"""A sitecustomize for a Python in which the optional packages are not installed."""
IMPORTED = f"""
import asyncio, json, runpy, sys

checkout, base = sys.argv[1:]
sys.path.insert(0, checkout)
sys.argv = ["comfy", "--cpu", "--base-directory", base]
import comfy.options

comfy.options.enable_args_parsing()
import comfy_api.latest
import nodes

for name in [name for name in sys.modules if name.partition(".")[0] in {SLOW}]:
    del sys.modules[name]  # ComfyUI has imported it for itself; now it shows who else does
before = set(sys.modules)
runpy.run_path({str(ROOT / "standalone.py")!r})["load_pack"]()
import realigndiff

extension = asyncio.run(realigndiff.comfy_entrypoint())
for node in asyncio.run(extension.get_node_list()):
    node.GET_NODE_INFO_V1()
print(json.dumps([*{{name.partition(".")[0] for name in set(sys.modules) - before}}]))
"""
"""Prints the packages that are imported when ComfyUI has started and loads the pack."""


@pytest.fixture(scope="module")
def missing(tmp_path_factory):
    """The environment of a Python without the optional packages."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "sitecustomize.py").write_text(MISSING, encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def bare(serve, missing):
    """A ComfyUI on that Python."""
    return serve(missing)


@pytest.fixture
def visitor(bare):
    """A client of it."""
    connected = Client(bare.url)
    yield connected
    connected.close()


class TestWithoutOptionalPackages:
    @pytest.mark.parametrize("name", OPTIONAL)
    def test_they_really_are_missing(self, missing, name):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], env={**os.environ, **missing}, capture_output=True, text=True
        )
        assert f"No module named '{name}'" in done.stderr

    def test_all_nodes_are_there(self, bare, visitor):
        assert set(json.loads(GOLDEN.read_text(encoding="utf-8"))) <= set(visitor.json("/object_info"))
        assert not re.search(rf"IMPORT FAILED.*{bare.folder}", bare.log())

    @pytest.mark.parametrize("name", ["two_stage", "drawn_regions"])
    def test_an_example_runs(self, visitor, name):
        graph = json.loads((ROOT / "tests" / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        assert visitor.run(graph).status == "success"

    def test_asking_a_server_says_what_to_install(self, visitor):
        server = {"provider": "OpenAI-compatible server", "base_url": "http://127.0.0.1:9/v1", "model": "any"}
        run = visitor.run(
            {
                "llm": {"class_type": "RealignLLM", "inputs": {**server, "timeout": 5}},
                "tags": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "circle"}},
                "out": {
                    "class_type": "RealignLikelihoods",
                    "inputs": {"prompt": "a red circle", "tags": ["tags", 0], "llm": ["llm", 0]},
                },
            }
        )
        assert "run `pip install openai` in ComfyUI's Python" in run.error["exception_message"]


class TestLoading:
    def test_it_takes_less_than_three_tenths_of_a_second(self, server):
        (seconds,) = re.findall(rf"([\d.]+) seconds: \S*{server.folder}", server.log())
        assert float(seconds) < 0.3

    def test_it_imports_nothing_slow(self, comfy, tmp_path):
        checkout = Path(comfy.__path__[0]).parent
        done = subprocess.run(
            [sys.executable, "-c", IMPORTED, checkout, tmp_path], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        imported = set(json.loads(done.stdout.splitlines()[-1]))
        assert "realigndiff" in imported and not imported & SLOW
