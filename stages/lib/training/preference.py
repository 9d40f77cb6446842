"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) by trl, on pairs that we have tokenized.

    P pairs of a forward pass, T tokens of the longest conversation

The policy is a network with a new adapter; the reference is the same network with the adapter switched off.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from stages.lib.core.errors import UserError
from stages.lib.training.finite import Finite
from stages.lib.training.pairs import Pair

CHANCE = math.log(2)
"""The loss of a pair if policy and reference are equal."""
TOLERANCE = 1e-3
"""How far the first loss may be from CHANCE: sums of log-probabilities in bf16 are not exact."""


FILLER = Pair([0, 0], [], [])
"""Fills a step up to the number of pairs that all processes need. Its log-probabilities are sums of nothing."""


def to_dataset(steps: Sequence[Sequence[Pair]], batch: int) -> Dataset:
    """Return `batch` rows for every step: its pairs, which share its weight, and fillers, which have none."""
    rows = [
        (pair, weight)
        for step in steps
        for pair, weight in [(pair, batch / len(step)) for pair in step] + [(FILLER, 0.0)] * (batch - len(step))
    ]
    names = ("prompt_ids", "chosen_ids", "rejected_ids", "weight")
    return Dataset.from_list([dict(zip(names, (*pair, weight), strict=True)) for pair, weight in rows])


def collate_pairs(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the conversations [2P, T], the chosen ones first, and the weights of the pairs [P]."""
    batch: dict[str, torch.Tensor] = DataCollatorForPreference(pad_token_id=0)(rows)
    return batch | {"weights": torch.tensor([row["weight"] for row in rows])}


class PreferenceTrainer(Finite, DPOTrainer):
    """trl's, with our tokens, steps that are not full, and a check of the reference."""

    section = "dpo"

    def __init__(self, network: Any, arguments: dict[str, Any], pairs: Dataset, **others: Any) -> None:
        """`network` is a PeftModel with a new adapter; `arguments` are those of DPOConfig, `others` of DPOTrainer."""
        config = DPOConfig(**arguments, remove_unused_columns=False)
        super().__init__(network, args=config, train_dataset=pairs, data_collator=collate_pairs, **others)
        self.model.delete_adapter("ref")  # trl copies every adapter as a reference; ours is the network without it

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # trl's would tokenize texts

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the pairs' share of the mean loss over the pairs of the step; fillers add nothing."""
        weights = inputs.pop("weights")
        fillers = (weights == 0).float().mean().item()
        loss: torch.Tensor = super().compute_loss(model, inputs, *args, **kwargs) - fillers * CHANCE  # type: ignore[no-untyped-call]
        if self.state.global_step == 0:
            self.require_chance(loss.item(), 1 - fillers)
        weighed: torch.Tensor = loss * weights.max()
        return weighed

    def require_chance(self, loss: float, share: float) -> None:
        """Raise UserError unless the first loss, of this share of pairs, says that policy and reference are equal."""
        if share and math.isfinite(loss) and abs(loss / share - CHANCE) > TOLERANCE:
            raise UserError(
                f"the loss before the first step is {loss / share:.6f}, not ln 2 = {CHANCE:.6f}: the arm's network "
                "differs from the reference, or from itself in a second pass; try dpo.dtype: fp32, and then another "
                "dpo.attn_implementation"
            )


def switch_off_dropout(network: Any) -> None:
    """Set every dropout of the network to 0; trl does so for modules, but GPT-NeoX's attention has it as a number."""
    for part in [network.config, *network.modules()]:
        for name, value in list(vars(part).items()):
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
