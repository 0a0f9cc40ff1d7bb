"""In ComfyUI there is no diffusers: what its nodes use must not need it."""

import subprocess
import sys
from pathlib import Path

STANDALONE = Path(__file__).parents[1] / "standalone.py"
MODULES = ["pipeline.realign", "drawing.panel", "drawing.attention_map", "rewards.gate"]


def test_the_modules_for_every_host_are_imported_without_diffusers():
    code = f"""
import importlib, runpy, sys
sys.modules["diffusers"] = None  # makes every import of it fail
runpy.run_path({str(STANDALONE)!r})["load_pack"]()
for module in {MODULES}:
    importlib.import_module(f"realigndiff.{{module}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
