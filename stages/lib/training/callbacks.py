"""Callbacks of the Trainer: checkpoints to resume from after a kill with the same bits, and throughput in the log.

Every process writes its part of a checkpoint in place, so a checkpoint counts only once it has the mark, which is
written when all parts are there. Older checkpoints are removed after that.
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
"""Steps from one loss to the next; each is the mean of those since the last."""
CHECKPOINT_SECONDS = 600.0
"""Training between two checkpoints."""
MARK = "complete"


def newest(folder: Path) -> Path | None:
    """Return the last checkpoint that is whole."""
    return max((path.parent for path in folder.glob(f"checkpoint-*/{MARK}")), key=steps, default=None)


def steps(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Has the Trainer write a checkpoint every so often, and keeps the last.

    It does so where it logs a loss, for it would forget those since.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.since = folder, time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % args.logging_steps:
            return
        due = torch.tensor([time.monotonic() - self.since > CHECKPOINT_SECONDS], dtype=torch.int, device=args.device)
        control.should_save = bool(broadcast(due) if world() > 1 else due)  # the first process's clock decides

    def on_save(self, _args: Any, state: TrainerState, _control: Any, **_: Any) -> None:
        barrier()
        if rank() == 0:
            written = self.folder / f"checkpoint-{state.global_step}"
            (written / MARK).touch()
            for other in set(self.folder.glob("checkpoint-*")) - {written}:
                remove(other)
        self.since = time.monotonic()


class ThroughputCallback(TrainerCallback):  # type: ignore[misc]
    """Says a line wherever the Trainer logs a loss."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        """Presented in every step."""
        self.since, self.step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: TrainerState, _control: Any, **_: Any) -> None:
        self.since, self.step = time.monotonic(), state.global_step
        log.info("%d of %d steps are done, processes: %d", state.global_step, state.max_steps, args.world_size)

    def on_step_end(self, _args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_log |= state.global_step == state.max_steps  # else the last steps would have no loss

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
    """Return the bytes that this process has taken at most on its GPU, or takes now without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)
