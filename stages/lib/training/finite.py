"""A Trainer that stops at the step whose loss or gradient is not finite.

transformers' own replaces such a loss in its log by the mean of the others, and trains on with weights that are NaN.
"""

import math
from typing import Any

from transformers import Trainer

from stages.lib.core.errors import UserError


class FiniteTrainer(Trainer):  # type: ignore[misc]
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        self.require_finite("loss", loss)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None and not self.args.fp16:  # in fp16 the scaler expects overflows, and leaves such a step out
            self.require_finite("norm of the gradient", norm)
        return norm

    def require_finite(self, what: str, value: Any) -> None:
        if math.isfinite(float(value)):
            return
        step, steps = self.state.global_step + 1, self.state.max_steps
        raise UserError(
            f"step {step} of {steps}: the {what} is {float(value)}; try a lower train.learning_rate, a longer "
            "train.warmup, or train.dtype: fp32; if it is the first step, look at the base model"
        )
