"""How a training goes, on the log: loss, tokens a second, memory."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

log = logging.getLogger("stages")
EVERY = 10
"""Steps from one loss to the next; each is the mean of those since the last."""


class Pace(TrainerCallback):  # type: ignore[misc]
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
