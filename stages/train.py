"""Fine-tune the base model on one arm.

    data/samples/<arm>.jsonl, data/held_out.jsonl, models/hub/base
        -> models/<arm>/, data/train/<arm>.json, data/train/<arm>.parquet

Full fine-tuning with the Trainer of transformers; the loss is on answers only. Every arm gets the same budget.
"""

import logging
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import model_validator

from stages.lib.artifacts import atomic, read_jsonl, write_json, write_table
from stages.lib.models import Dtype, check_length, load_model, load_tokenizer
from stages.lib.params import Count, Positive, Section
from stages.lib.prompt import Example, encode
from stages.lib.stage import run
from stages.lib.stop import Stop

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("stages")
HELD_OUT = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("tokens", pa.int64()),
        ("nll_base", pa.float64()),
        ("nll", pa.float64()),
    ]
)
IGNORED = -100
"""The label that transformers leaves out of the loss."""


class Budget(Section):
    unit: Literal["steps", "epochs"]
    """Optimiser steps are one number for all arms; epochs give a larger arm more training."""
    amount: Positive


class Train(Section):
    budget: Budget
    batch: Positive
    """Rows of an optimiser step."""
    micro_batch: Positive
    """Rows of a forward pass; divides `batch`."""
    learning_rate: float
    schedule: Literal["linear", "cosine", "constant"]
    warmup: Count
    max_tokens: Positive
    dtype: Dtype
    held_out_batch_tokens: Positive

    @model_validator(mode="after")
    def micro_batch_divides(self) -> "Train":
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch ({self.micro_batch}) does not divide batch ({self.batch})")
        return self


class ArmSeed(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    seed: int


class Params(Section):
    threads: Positive
    train: Train
    arms: dict[str, ArmSeed]


def train(
    params: Params, arm: str, samples: Path, held_out: Path, base: Path, model: Path, report: Path, losses: Path
) -> None:
    settings, rows, held = params.train, read_jsonl(samples), read_jsonl(held_out)
    tokenizer = load_tokenizer(base)
    if tokenizer.eos_token_id is None:
        raise Stop(f"{base}: the tokenizer has no eos token, so an answer could not end; set one in its config")
    network = load_model(base, "AutoModelForCausalLM", "fp32", params.threads)
    check_length(network, settings.max_tokens, "train.max_tokens")
    examples = encode(tokenizer, *columns(rows), settings.max_tokens)
    usable = [example for example in examples if len(example.ids) > example.start]
    tests = encode(tokenizer, *columns(held), settings.max_tokens)
    if not usable:
        raise Stop(
            f"{samples}: train.max_tokens ({settings.max_tokens}) leaves no answer token in any of {len(rows)} rows"
        )

    before = answer_nll(network, tests, settings)
    history = fit(network, usable, settings, params.arms[arm].seed)
    after = answer_nll(network.eval(), tests, settings)

    tokens = [len(test.ids) - test.start for test in tests]
    held_rows = pd.DataFrame({"id": [r["id"] for r in held], "source": [r["source"] for r in held], "tokens": tokens})
    write_table(losses, held_rows.assign(nll_base=before, nll=after), HELD_OUT)
    write_json(report, summary(history, examples, len(usable)))
    with atomic(model) as scratch:
        network.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)


def columns(rows: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    return [row["instruction"] for row in rows], [row["output"] for row in rows]


def answer_nll(network: "PreTrainedModel", tests: list[Example], settings: Train) -> NDArray[np.float64]:
    """Return the summed negative log-likelihood, in nats, of every held-out answer [N]."""
    from stages.lib.scoring import nll_sums

    starts = [test.start for test in tests]
    return nll_sums(network, [t.ids for t in tests], starts, settings.held_out_batch_tokens, "held-out loss, batches")


def fit(network: "PreTrainedModel", examples: list[Example], settings: Train, seed: int) -> list[dict[str, float]]:
    """Train in place; return the log of the Trainer."""
    import torch
    from transformers import Trainer, set_seed

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        fillers = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
        return {
            name: torch.tensor([row[name] + [filler] * (longest - len(row[name])) for row in rows])
            for name, filler in fillers.items()
        }

    set_seed(seed)
    with tempfile.TemporaryDirectory() as nothing_is_saved:
        trainer = Trainer(
            model=network,
            args=arguments(settings, seed, nothing_is_saved),
            train_dataset=[to_features(example) for example in examples],
            data_collator=collate,
        )
        trainer.train()
    history: list[dict[str, float]] = trainer.state.log_history
    return history


def to_features(example: Example) -> dict[str, list[int]]:
    labels = [IGNORED] * example.start + example.ids[example.start :]
    return {"input_ids": example.ids, "attention_mask": [1] * len(example.ids), "labels": labels}


def arguments(settings: Train, seed: int, folder: str) -> Any:
    import torch
    from transformers import TrainingArguments

    steps = settings.budget.unit == "steps"
    found = TrainingArguments(
        output_dir=folder,
        max_steps=settings.budget.amount if steps else -1,
        num_train_epochs=1 if steps else settings.budget.amount,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.batch // settings.micro_batch,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,
        bf16=settings.dtype == "bf16",
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        include_num_input_tokens_seen="non_padding",
        logging_steps=10,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
    )
    if found.n_gpu > 1:  # the Trainer would multiply the batch, and with it the budget
        raise Stop(f"train uses one GPU, and {found.n_gpu} are visible; set CUDA_VISIBLE_DEVICES=0")
    return found


def summary(history: list[dict[str, float]], examples: list[Example], usable: int) -> dict[str, Any]:
    """Return what happened, without times."""
    steps = [entry for entry in history if "loss" in entry]
    return {
        "rows": len(examples),
        "rows_without_answer": len(examples) - usable,
        "steps": int(history[-1]["step"]),
        "epochs": history[-1]["epoch"],
        "tokens": int(history[-1]["num_input_tokens_seen"]),
        "loss": [{"step": int(entry["step"]), "loss": entry["loss"]} for entry in steps],
    }


if __name__ == "__main__":
    run(train, Params)
