"""The processes of a stage: how many there are, one run at a time, and none left behind."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from stages.lib.core.errors import UserError

log = logging.getLogger("stages")
LOCKS = Path(".checkpoints/locks")
PATIENCE = 60.0
"""Seconds to wait for another run of the stage to end."""
FOREVER = timedelta(days=7)
"""Timeout of the process group: one process may wait for all the work of another."""
SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh"}


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def relaunch_if_asked() -> None:
    """Replace this process with torchrun, which runs the stage in several processes, if its variables ask for that.

    Every option can be set as PET_<OPTION>: https://docs.pytorch.org/docs/stable/elastic/run.html.
    """
    asked = any(os.environ.get(name, "1") != "1" for name in ("PET_NPROC_PER_NODE", "PET_NNODES"))
    if asked and "TORCHELASTIC_RUN_ID" not in os.environ:
        module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
        os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", "-m", module, *sys.argv[1:]])


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group, and leave it together with the others."""
    if world() == 1:
        yield
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store = next(rendezvous("env://"))[0]  # torchrun holds it, so it outlives every process of the stage
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"  # gradients on GPUs, the rest on CPUs
    dist.init_process_group(backend, timeout=FOREVER, store=store, rank=rank(), world_size=world())
    yield
    if store.add("done", 1) == world():  # at a gloo barrier the first process to leave would cut off the last
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
    """Hold the stage's lock; wait a while for another run of the stage. Raises UserError if that run does not end."""
    LOCKS.mkdir(parents=True, exist_ok=True)
    lock = FileLock(LOCKS / name.replace("/", "_"))
    holder = Path(f"{lock.lock_file}.pid")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("waiting for process %s, which is still running this stage", pid_in(holder))
        try:
            lock.acquire(timeout=PATIENCE, poll_interval=0.5)
        except Timeout:
            raise UserError(
                f"process {pid_in(holder)} is still running this stage; wait for it or kill it, then run again"
            ) from None
    try:
        holder.write_text(str(os.getpid()), encoding="ascii")
        yield
    finally:
        lock.release()


def pid_in(holder: Path) -> str:
    return holder.read_text(encoding="ascii") if holder.is_file() else "unknown"


def stop_when_orphaned() -> None:
    """End this process within a second of the end of the dvc that started it, however dvc ended.

    Otherwise it would go on and overwrite the output of the next run. Outputs are whole or absent, so it is safe to end
    at any point.
    """
    parent = starter()

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):  # the parent may end between the two calls
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
