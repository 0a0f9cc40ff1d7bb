"""Forks processes that train together, as `accelerate launch` starts them, and one that is killed: PyTorch is imported
once for all of them.

    python tests/train_in_turn.py KILLED TOGETHER ...

KILLED: the options of a run that is killed once it has a checkpoint of step 2. TOGETHER: those of each run that two
processes train, one run after the other.
"""

import os
import runpy
import shlex
import signal
import socket
import sys
import time
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "standalone.py"))["load_pack"]()

from realigndiff.training.refl_train import ReflRun
from realigndiff.training.settings.files import parse
from realigndiff.training.settings.refl import ReflConfig


def fork(configs: list[ReflConfig], **environment: str) -> int:
    """Start a process that trains these runs, one after the other; its id."""
    if process := os.fork():
        return process
    os.environ |= environment
    for config in configs:
        ReflRun(config).train()
    os._exit(0)


killed, *together = (parse(ReflConfig, shlex.split(options)) for options in sys.argv[1:])
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
processes = [fork(together, RANK=rank, LOCAL_RANK=rank, **launched) for rank in "01"]
assert all(os.waitpid(process, 0)[1] == 0 for process in processes)

process = fork([killed])
while not Path(killed.output, "checkpoints/step-00000002.pt").exists() and not os.waitpid(process, os.WNOHANG)[0]:
    time.sleep(0.02)
os.kill(process, signal.SIGKILL)
os.waitpid(process, 0)
