"""Forks processes that train together, as `accelerate launch` starts them, and one that is killed: PyTorch is imported
once for all of them.

    python tests/train_in_turn.py KILLED TOGETHER ...

KILLED: the options of a run that is killed while it writes its second checkpoint. TOGETHER: those of each run that two
processes train, one run after the other.
"""

import os
import runpy
import shlex
import signal
import socket
import sys
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "standalone.py"))["load_pack"]()

import torch
from realigndiff.training.refl_train import ReflRun
from realigndiff.training.settings.files import parse
from realigndiff.training.settings.refl import ReflConfig

save, saved = torch.save, []


def die_in_the_second(state: object, file: Path) -> None:
    """In the place of `torch.save`."""
    save(state, file)
    saved.append(file)
    if len(saved) == 2:
        os.truncate(file, file.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)


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
running = {fork(together, RANK=rank, LOCAL_RANK=rank, **launched) for rank in "01"}
while running:
    process, status = os.wait()
    running.discard(process)
    if status:
        for other in running:  # which would wait for it
            os.kill(other, signal.SIGKILL)
        sys.exit(f"A process ended with the status {status}.")

torch.save = die_in_the_second
assert os.waitpid(fork([killed]), 0)[1] == signal.SIGKILL
