"""Run one stage: command line, params, log, errors."""

import argparse
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel

from stages.lib.core.errors import UserError
from stages.lib.core.params import read_params
from stages.lib.core.processes import (
    leave,
    only_one,
    process_group,
    rank,
    relaunch_if_asked,
    stay_single,
    stop_when_orphaned,
    world,
)

log = logging.getLogger("stages")

CHECKPOINTS = Path(".checkpoints")
"""Where the stages of dvc.yaml keep what they have done."""

# Only `fetch*` may use the network. Libraries read these variables when they are imported. That is one reason why
# stages import torch and other slow libraries inside functions; the other is that an error in params shows at once.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
}
ALWAYS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait slow each other down; results are the same
}
IN_A_LOG = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_MININTERVAL": "5",  # seconds, so that a progress bar does not flood the log
}


def run(stage: Callable[..., None], model: type[BaseModel], offline: bool = True, several: bool = False) -> None:
    """Call `stage(params, **arguments)` with the flags of the command line; on UserError print one message and exit 1.

    `several`: the stage can share its work among the processes that torchrun starts.
    """
    if not several:
        stay_single()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO if rank() == 0 else logging.WARNING)
    os.environ.update(ALWAYS | (OFFLINE if offline else {}) | ({} if sys.stderr.isatty() else IN_A_LOG))
    started = time.monotonic()
    try:
        arguments, params = parse_arguments(stage, sys.argv[1:]), read_params(model)
        if "checkpoints" in arguments:
            arguments["checkpoints"] = checkpoints_folder(arguments["checkpoints"])
        if several:
            relaunch_if_asked()
        stop_when_orphaned()
        with one_run(), process_group():
            stage(params, **arguments)
    except UserError as error:
        log.error("%s stopped: %s", stage.__name__, error)
        sys.exit(1)
    log.info("%s: done in %.1f s", stage.__name__, time.monotonic() - started)
    if world() > 1:
        leave()


@contextmanager
def one_run() -> Iterator[None]:
    """If dvc runs the stage, allow one run at a time."""
    name = os.environ.get("DVC_STAGE")
    with only_one(name) if name and rank() == 0 else nullcontext():
        yield


def checkpoints_folder(path: Path) -> Path:
    """Return the folder for what a killed stage has done: in `path`, or on the disk that CHECKPOINTS names.

    It never stands in dvc.yaml or params.yaml, because it changes no output. Raises UserError if that disk is missing.
    """
    disk = os.environ.get("CHECKPOINTS")
    if not disk or not path.is_relative_to(CHECKPOINTS):
        return path
    if not Path(disk).is_dir():
        raise UserError(
            f"CHECKPOINTS is {disk}, which is no folder here; mount its disk, create it, or unset CHECKPOINTS"
        )
    return Path(disk) / path.relative_to(CHECKPOINTS)


class Parser(argparse.ArgumentParser):
    """An argument parser whose error is one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; usage: {self.format_usage().removeprefix('usage:').strip()}; see dvc.yaml")


def parse_arguments(stage: Callable[..., None], words: list[str]) -> dict[str, Any]:
    """Return the value of every flag, by name: `--raw data/raw.parquet` for the parameter `raw: Path`.

    Raises UserError if a flag is missing, misspelt or given twice.
    """
    parameters = list(inspect.signature(stage).parameters.values())[1:]
    parser = Parser(
        prog=f"python -m stages.{stage.__name__}", usage=usage(parameters), add_help=False, allow_abbrev=False
    )
    for parameter in parameters:
        kind = str if parameter.annotation is str else Path
        is_required = parameter.default is parameter.empty
        default = None if is_required else parameter.default
        parser.add_argument(f"--{parameter.name}", type=kind, required=is_required, default=default)
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    twice = sorted({flag for flag in flags if flags.count(flag) > 1})
    if twice:
        parser.error(f"{', '.join(twice)} is given more than once")
    return vars(parser.parse_args(words))


def usage(parameters: list[inspect.Parameter]) -> str:
    """Return the flags with their values, optional ones in brackets."""
    flags = [(f"--{one.name} {one.name.upper()}", one.default is one.empty) for one in parameters]
    return " ".join(flag if is_required else f"[{flag}]" for flag, is_required in flags)
