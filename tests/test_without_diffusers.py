"""In ComfyUI there is no diffusers: what its nodes use must not need it."""

import subprocess
import sys
from pathlib import Path

import pytest

STANDALONE = Path(__file__).parents[1] / "standalone.py"


@pytest.mark.parametrize("module", ["pipeline.realign", "pipeline.panel", "pipeline.overlay"])
def test_a_module_for_every_host_is_imported_without_diffusers(module):
    code = f"""
import importlib, runpy, sys
sys.modules["diffusers"] = None  # makes every import of it fail
runpy.run_path({str(STANDALONE)!r})["load_pack"]()
importlib.import_module("realigndiff.{module}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
