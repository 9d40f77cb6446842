"""Trainers that stop at the step whose loss or gradient is not finite.

transformers' own replaces such a loss in its log by the mean of the others, and trains on with weights that are NaN.
"""

import math
from typing import Any

from transformers import Trainer

from stages.lib.core.errors import UserError


class Finite:
    """Comes before a Trainer in the bases of a class."""

    args: Any
    state: Any
    section = "train"
    """The section of params.yaml with the settings of the training."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self.require_finite("loss", loss)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[misc]
        if norm is not None and not self.args.fp16:  # in fp16 the scaler expects overflows, and leaves such a step out
            self.require_finite("norm of the gradient", norm)
        return norm

    def require_finite(self, what: str, value: Any) -> None:
        if math.isfinite(float(value)):
            return
        step, steps, section = self.state.global_step + 1, self.state.max_steps, self.section
        raise UserError(
            f"step {step} of {steps}: the {what} is {float(value)}; try a lower {section}.learning_rate, a longer "
            f"{section}.warmup, or {section}.dtype: fp32; if it is the first step, look at the model to train"
        )


class FiniteTrainer(Finite, Trainer):  # type: ignore[misc]
    """The Trainer of the stage `train`."""
