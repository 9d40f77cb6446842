"""Checkpoints of a training, to go on from after a kill with the same bits.

A checkpoint is written in place, by every process its part, so it counts only once it bears the mark, which is
written when all parts are there. Older ones go after that.
"""

import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.lib.core.artifacts import remove
from stages.lib.core.processes import barrier, rank, world

SECONDS = 600.0
"""Training between two checkpoints."""
MARK = "complete"


def newest(folder: Path) -> Path | None:
    """Return the last checkpoint that is whole."""
    return max((path.parent for path in folder.glob(f"checkpoint-*/{MARK}")), key=steps, default=None)


def steps(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Has the Trainer write a checkpoint every so often, and keeps the last.

    It does so where it logs a loss, for it would forget those since.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.since = folder, time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % args.logging_steps:
            return
        due = torch.tensor([time.monotonic() - self.since > SECONDS], dtype=torch.int, device=args.device)
        control.should_save = bool(broadcast(due) if world() > 1 else due)  # the first process's clock decides

    def on_save(self, _args: Any, state: TrainerState, _control: Any, **_: Any) -> None:
        barrier()
        if rank() == 0:
            written = self.folder / f"checkpoint-{state.global_step}"
            (written / MARK).touch()
            for other in set(self.folder.glob("checkpoint-*")) - {written}:
                remove(other)
        self.since = time.monotonic()
