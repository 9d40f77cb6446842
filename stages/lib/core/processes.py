"""The processes of a stage: how many there are, one run at a time, and none left behind."""

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from stages.lib.core.errors import UserError

log = logging.getLogger("stages")
LOCKS = Path(".checkpoints/locks")
PATIENCE = 60.0
"""Seconds to wait for another run of the stage to end."""
FOREVER = timedelta(days=7)
"""Timeout of the process group: one process may wait for all the work of another."""
ENDPOINT = "localhost:29400"
"""An example of where the processes of one machine meet."""
SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh"}


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def stay_single() -> None:
    """Forget the process group that a pod or a launcher has announced, because this stage shares no work."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


def relaunch_if_asked() -> None:
    """Replace this process with torchrun, which runs the stage in several processes, if its variables ask for that.

    Every option can be set as PET_<OPTION>: https://docs.pytorch.org/docs/stable/elastic/run.html. Raises UserError if
    restarts are asked for and the processes could not meet again.
    """
    asked = any(os.environ.get(name, "1") != "1" for name in ("PET_NPROC_PER_NODE", "PET_NNODES"))
    if asked and "TORCHELASTIC_RUN_ID" not in os.environ:
        require_c10d_to_restart()
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # otherwise c10d keeps its store, too
        module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
        os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", "-m", module, *sys.argv[1:]])


def require_c10d_to_restart() -> None:
    """Raise UserError if torchrun may restart processes, but would not give them a new store.

    In the old one they can find the addresses of the processes that died, and wait for them for days.
    """
    restarts, backend = os.environ.get("PET_MAX_RESTARTS", "0"), os.environ.get("PET_RDZV_BACKEND", "static")
    if restarts != "0" and backend != "c10d":
        raise UserError(
            f"PET_MAX_RESTARTS is {restarts} and PET_RDZV_BACKEND is {backend}, so processes that restart could wait "
            f"forever for those that died; set PET_RDZV_BACKEND=c10d PET_RDZV_ENDPOINT={ENDPOINT}, or no restarts"
        )


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group, and leave it together with the others."""
    if world() == 1:
        yield
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store = next(rendezvous("env://"))[0]
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"  # gradients on GPUs, the rest on CPUs
    dist.init_process_group(backend, timeout=FOREVER, store=store, rank=rank(), world_size=world())
    try:
        yield
    except UserError as error:
        with suppress(dist.DistError):  # the first process, which may hold the store, has said it and is gone
            if store.add(str(error), 1) == 1:
                raise
        sys.exit(1)
    arrive(store, "done")
    store.wait(["all done"], FOREVER)  # at a gloo barrier the first process to leave would cut off the last
    dist.destroy_process_group()
    arrive(store, "left")
    if rank() == 0:
        store.wait(["all left"], FOREVER)


def arrive(store: Any, place: str) -> None:
    """Count this process at a place; the last of all processes sets the key `all <place>`."""
    if store.add(place, 1) == world():
        store.set(f"all {place}", "")


def leave() -> None:
    """End the process at once: during the interpreter's own shutdown, threads of torch.distributed sometimes abort.

    Trackers send their last lines when Python exits, so in the first process, which has them, that comes before.
    """
    if rank() == 0:
        atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


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
    """End this process within a second of the end of the dvc or torchrun that started it, however that ended.

    Otherwise it would go on and overwrite the output of the next run. Outputs are whole or absent, so it is safe to end
    at any point.
    """
    agent = psutil.Process().parent() if "TORCHELASTIC_RUN_ID" in os.environ else None
    watched = [agent] if agent else []
    if "DVC_STAGE" in os.environ:
        watched.append(starter())
    if watched:
        threading.Thread(target=watch, args=(watched, agent), daemon=True).start()


def watch(parents: list[psutil.Process], agent: psutil.Process | None) -> None:
    """Wait for the end of one of these processes, and end this one; torchrun too, which would only start it again."""
    while all(map(is_alive, parents)):
        time.sleep(1)
    gone = next(parent for parent in parents if not is_alive(parent))
    log.error("stopped: process %d, which started this stage, is gone", gone.pid)
    if agent:
        with suppress(psutil.NoSuchProcess):
            agent.terminate()
    os._exit(1)


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # it may end between the two calls
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def starter() -> psutil.Process:
    """Return the first ancestor that is neither a shell nor torchrun."""
    ancestors = psutil.Process().parents()
    passed = (p for p in ancestors if p.name() not in SHELLS and "torch.distributed.run" not in p.cmdline())
    return next(passed, ancestors[-1])
