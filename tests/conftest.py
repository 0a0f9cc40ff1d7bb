"""Loads the pack under the name `realigndiff`, so that tests import from it whatever its folder is called."""

import pathlib
import runpy

runpy.run_path(str(pathlib.Path(__file__).parents[1] / "standalone.py"))["load_pack"]()
