"""The loss of held-out answers, under a network before or after training."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.lib.core.errors import UserError
from stages.lib.models.loading import LoadConfig
from stages.lib.text.chat_format import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel


HELD_OUT = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("tokens", pa.int64()),
        ("nll_base", pa.float64()),
        ("nll", pa.float64()),
    ]
)


def scoring_config(settings: Any) -> LoadConfig:
    """Return how to load a network for scoring, from the section `train`: the same for all arms and preferences.

    Full weights that were trained are in fp32. An adapter's base is in `dtype`, and in 4 bits unless the adapter is
    merged into full weights. Flash attention is not used, because it does not accept fp32 and its result for a row
    depends on its neighbours.
    """
    merged = settings.adapter is not None and settings.adapter.merge
    attention = settings.attn_implementation
    return LoadConfig(
        dtype=settings.dtype if settings.adapter else "fp32",
        quantize=None if merged else settings.quantize,
        attn_implementation="sdpa" if attention == "flash_attention_2" else attention,
    )


def answer_nll(network: "PreTrainedModel", tests: Sequence[Example], budget: int) -> NDArray[np.float64]:
    """Return the summed NLL, in nats, of the answers of every held-out row [N].

    An answer is scored after the conversation before it. Batches have at most `budget` tokens.
    """
    from stages.lib.scoring.log_likelihood import nll_sums

    parts = [(number, test.ids[:stop], start) for number, test in enumerate(tests) for start, stop in test.learned()]
    sums = np.zeros(len(tests))
    if parts:
        numbers, ids, starts = zip(*parts, strict=True)
        np.add.at(sums, list(numbers), nll_sums(network, ids, starts, budget, "held-out loss, batches"))
    return sums


def require_finite_losses(folder: Path, losses: NDArray[np.float64], section: str) -> None:
    """Raise UserError unless the losses [N] of the network in `folder` are finite; `section` of params trained it."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise UserError(
            f"{folder}: the loss of {len(bad)} of {len(losses)} held-out answers is not finite, of the first in line "
            f"{bad[0] + 1}: {losses[bad[0]]}; try {section}.dtype: fp32, or a lower {section}.learning_rate"
        )
