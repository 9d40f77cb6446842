"""The processes of a stage: how many, one run at a time, and none left behind."""

import fcntl
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TextIO

import psutil

from stages.lib.core.errors import Stop

log = logging.getLogger("stages")
LOCKS = Path(".checkpoints/locks")
PATIENCE = 60.0
"""Seconds to wait for another run of the stage."""
FOREVER = timedelta(days=7)
"""One process may wait for the work of another."""
SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh"}


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def relaunch_if_asked() -> None:
    """Become torchrun, which starts this stage several times, where its variables in the environment ask for it.

    https://docs.pytorch.org/docs/stable/elastic/run.html: every option can be set as PET_<OPTION>.
    """
    asked = any(os.environ.get(name, "1") != "1" for name in ("PET_NPROC_PER_NODE", "PET_NNODES"))
    if asked and "TORCHELASTIC_RUN_ID" not in os.environ:
        module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
        os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", "-m", module, *sys.argv[1:]])


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes, and leave together."""
    if world() == 1:
        yield
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store = next(rendezvous("env://"))[0]  # torchrun's, so it outlives any of the processes
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"  # gradients meet on GPUs, all else on CPUs
    dist.init_process_group(backend, timeout=FOREVER, store=store, rank=rank(), world_size=world())
    yield
    if store.add("done", 1) == world():  # at a barrier of gloo the first to leave would cut off the last
        store.set("all done", "")
    store.wait(["all done"], FOREVER)
    dist.destroy_process_group()


def barrier() -> None:
    """Wait for the other processes."""
    if world() > 1:
        import torch.distributed as dist

        dist.barrier()


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Hold the stage's lock; wait a while for another run of it. Raises Stop that names the run that does not end."""
    LOCKS.mkdir(parents=True, exist_ok=True)
    with (LOCKS / name.replace("/", "_")).open("a+", encoding="ascii") as file:
        if not take(file.fileno()):
            log.warning("waiting for process %s, which still runs this stage", holder(file))
        until = time.monotonic() + PATIENCE
        while not take(file.fileno()):
            if time.monotonic() > until:
                raise Stop(f"process {holder(file)} still runs this stage; wait for it or kill it, then run again")
            time.sleep(0.5)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(file: TextIO) -> str:
    file.seek(0)
    return file.read() or "unknown"


def take(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def stop_when_orphaned() -> None:
    """End this process a second after the dvc that started it is gone, however that ended.

    Else it would go on, and write over the output of the run that follows. What a stage writes is whole or absent, so
    it can end anywhere.
    """
    parent = starter()

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):  # it may go between the two questions
            while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
                time.sleep(1)
        log.error("stopped: process %d, which started this stage, is gone", parent.pid)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def starter() -> psutil.Process:
    """Return the first ancestor that is neither a shell nor torchrun."""
    ancestors = psutil.Process().parents()
    passed = (p for p in ancestors if p.name() not in SHELLS and "torch.distributed.run" not in p.cmdline())
    return next(passed, ancestors[-1])
