"""Callbacks of the Trainer: checkpoints from which a killed training resumes to the same bits, and throughput.

Every process writes its part of a checkpoint in place. So a checkpoint is complete only if it contains MARK, which is
written when all parts are there; after that, older checkpoints are removed.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils import broadcast
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.lib.core.artifacts import remove
from stages.lib.core.processes import barrier, rank, world

log = logging.getLogger("stages")
LOG_STEPS = 10
"""Steps between two logged losses; each is the mean over the steps since the one before."""
CHECKPOINT_SECONDS = 600.0
"""Time between two checkpoints."""
MARK = "complete"
"""Empty file in a complete checkpoint."""


def newest(folder: Path) -> Path | None:
    """Return the last complete checkpoint."""
    return max((path.parent for path in folder.glob(f"checkpoint-*/{MARK}")), key=steps_done, default=None)


def steps_done(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Makes the Trainer write a checkpoint every CHECKPOINT_SECONDS, and keeps the last one.

    Only at steps where the Trainer logs a loss, because a checkpoint does not contain the losses since the last log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.since = folder, time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % args.logging_steps:
            return
        due = torch.tensor([time.monotonic() - self.since > CHECKPOINT_SECONDS], dtype=torch.int, device=args.device)
        control.should_save = bool(broadcast(due) if world() > 1 else due)  # the first process decides for all

    def on_save(self, _args: Any, state: TrainerState, _control: Any, **_: Any) -> None:
        barrier()
        if rank() == 0:
            written = self.folder / f"checkpoint-{state.global_step}"
            (written / MARK).touch()
            for other in set(self.folder.glob("checkpoint-*")) - {written}:
                remove(other)
        self.since = time.monotonic()


class ThroughputCallback(TrainerCallback):  # type: ignore[misc]
    """Logs a line of loss, throughput and memory whenever the Trainer logs a loss."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        """Tokens that each step presents."""
        self.since, self.step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: TrainerState, _control: Any, **_: Any) -> None:
        self.since, self.step = time.monotonic(), state.global_step
        log.info("%d of %d steps are done, processes: %d", state.global_step, state.max_steps, args.world_size)

    def on_step_end(self, _args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_log |= state.global_step == state.max_steps  # so that the last steps have a loss too

    def on_log(self, _args: Any, state: TrainerState, _control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" not in logs:
            return
        seconds, done = time.monotonic() - self.since, sum(self.tokens[self.step : state.global_step])
        log.info(
            "step %d of %d: loss %.4f, %s tokens/s, %.1f GB",
            state.global_step, state.max_steps, logs["loss"], f"{done / seconds:,.0f}", memory() / 1e9,
        )  # fmt: skip
        self.since, self.step = time.monotonic(), state.global_step


def memory() -> int:
    """Return the most bytes that this process has used on its GPU; without a GPU, the bytes that it uses now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)
