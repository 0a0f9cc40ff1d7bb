"""A process, or one of several, that trains several runs one after the other; each argument holds a run's options."""

import runpy
import shlex
import sys
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "standalone.py"))["load_pack"]()

from realigndiff.training.refl_train import ReflRun
from realigndiff.training.settings.files import parse
from realigndiff.training.settings.refl import ReflConfig

for options in sys.argv[1:]:
    ReflRun(parse(ReflConfig, shlex.split(options))).train()
