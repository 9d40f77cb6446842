"""Run one stage: params, arguments, log, errors."""

import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stages.lib.core.errors import Stop
from stages.lib.core.params import read_params
from stages.lib.core.processes import joined, only_one, rank, relaunch_if_asked, stop_when_orphaned, world

log = logging.getLogger("stages")

# Nothing but `fetch*` may reach for the network. Libraries read these when they are imported, which is one reason why
# stages import torch and its kin inside functions; the other is that a mistake in params should not wait for them.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
}
ALWAYS = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
IN_A_LOG = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_MININTERVAL": "5",  # a bar is a line every so often
}


def run(stage: Callable[..., None], model: type[BaseModel], offline: bool = True, several: bool = False) -> None:
    """Call `stage(params, *arguments)` as dvc.yaml wires it; exit 1 with one message on `Stop`.

    `several`: the stage shares its work out where torchrun starts it in several processes.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO if rank() == 0 else logging.WARNING)
    os.environ.update(ALWAYS | (OFFLINE if offline else {}) | ({} if sys.stderr.isatty() else IN_A_LOG))
    started = time.monotonic()
    try:
        params, words = read_params(model), arguments(stage, sys.argv[1:])
        if several:
            relaunch_if_asked()
        with under_dvc(), joined():
            stage(params, *words)
    except Stop as stop:
        log.error("%s stopped: %s", stage.__name__, stop)
        sys.exit(1)
    log.info("%s: done in %.1f s", stage.__name__, time.monotonic() - started)
    if world() > 1:
        leave()


def leave() -> None:
    """End the process without the interpreter's own end, in which threads of torch.distributed abort now and then."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


@contextmanager
def under_dvc() -> Iterator[None]:
    """Where dvc runs the stage: one run at a time, and none that outlives its dvc."""
    name = os.environ.get("DVC_STAGE")
    if name is None:
        yield
        return
    stop_when_orphaned()
    with only_one(name) if rank() == 0 else nullcontext():
        yield


def arguments(stage: Callable[..., None], words: list[str]) -> list[Any]:
    """Return the command line's words as the types that the stage's signature gives them."""
    wanted = list(inspect.signature(stage).parameters.values())[1:]
    if len(words) != len(wanted):
        names = " ".join(parameter.name for parameter in wanted)
        raise Stop(f"wanted the arguments {names}, got {' '.join(words) or 'none'}; see dvc.yaml")
    return [Path(w) if p.annotation is Path else w for p, w in zip(wanted, words, strict=True)]
