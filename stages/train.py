"""Fine-tune the base model on one arm.

    data/samples/<arm>.jsonl, data/held_out.jsonl, models/hub/base
        -> models/<arm>/, data/train/<arm>.json, data/train/<arm>.parquet (.checkpoints/train: of killed trainings)

Uses transformers' Trainer on all weights or on an adapter, in one or more processes. Every arm gets the same budget.
"""

import logging
import os
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import field_validator, model_validator

from stages.lib.core.artifacts import atomic, read_json, read_jsonl, remove, write_json, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import Count, Positive, Section, Seed
from stages.lib.core.processes import barrier, rank, world
from stages.lib.core.runner import run
from stages.lib.models.loading import LoadConfig, check_length, held_in_4_bits, load_tokenizer, saved_in_4_bits
from stages.lib.models.lora import Adapter, attach, load_network, merge_adapter, normalise_adapter_config
from stages.lib.scoring.fingerprint import MACHINE, Fingerprint, compute_fingerprint, hash_file, short_hash
from stages.lib.text.chat_format import Example, FormatName, encode, format_file, set_format
from stages.lib.text.conversations import turns_of
from stages.lib.training.budget import Budget, presented
from stages.lib.training.held_out import HELD_OUT, answer_nll, require_finite_losses, scoring_config
from stages.lib.training.trainer import (
    common_arguments,
    free_memory,
    logged_losses,
    prepare_tracker,
    require_devices,
    require_warmup,
    rows_at_once,
    write_network,
)

log = logging.getLogger("stages")
LIB = Path(__file__).parent / "lib"
CODE = [
    Path(__file__),
    LIB / "models/loading.py",
    LIB / "models/lora.py",
    LIB / "text/bos.py",
    LIB / "text/chat_format.py",
    LIB / "text/conversations.py",
    LIB / "text/dates.py",
    LIB / "training/budget.py",
    LIB / "training/callbacks.py",
    LIB / "training/collate.py",
    LIB / "training/finite.py",
    LIB / "training/trainer.py",
]
"""The source files that trained weights and their logged losses depend on."""


class Train(Section):
    budget: Budget
    batch: Positive
    """Rows of an optimiser step, over all devices; packs if rows are packed."""
    micro_batch: Positive
    """Most rows of a forward pass on one device. Fewer if a device's share of `batch` needs it."""
    learning_rate: float
    schedule: Literal["linear", "cosine", "constant"]
    """How the learning rate falls after the warmup."""
    warmup: Count
    """Steps over which the learning rate rises; at most the steps of the training."""
    max_tokens: Positive
    """A row, prompt and answer together, is cut at this many tokens."""
    format: FormatName
    """The text around the turns of a conversation: a file in stages/lib/text/formats; `tokenizer`: the base's own chat
    template."""
    end: str | None
    """The token that ends an answer, such as `<|im_end|>`, which becomes the tokenizer's eos token; null: the base's
    eos token. With `format: tokenizer`, the base's template decides what ends an answer."""
    loss_on: Literal["answers", "all"]
    """`all`: prompts are learned too."""
    packing: bool
    """Whether rows share sequences of `max_tokens`; no row sees another."""
    dtype: Literal["fp32", "bf16", "fp16"]
    """Type of the computation; weights that are trained are kept in fp32."""
    gradient_checkpointing: bool
    """Whether to save memory by computing activations twice."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"]
    adapter: Adapter | None
    """Train a LoRA adapter instead of all weights."""
    quantize: Literal["nf4"] | None
    """Hold the base model in 4 bits; needs an adapter."""
    deepspeed: dict[str, Any] | None
    """DeepSpeed's own configuration; null trains without it."""
    held_out_batch_tokens: Positive
    """Most tokens of a batch when held-out answers are scored."""

    @model_validator(mode="after")
    def check_combinations(self) -> "Train":
        if self.budget.unit == "steps" and self.warmup > self.budget.amount:
            raise ValueError(f"warmup ({self.warmup}) is longer than the budget of {self.budget.amount} steps")
        if self.quantize and (self.adapter is None or self.deepspeed is not None):
            raise ValueError("quantize: 4-bit weights cannot be trained; set an adapter, and deepspeed: null")
        return self

    @field_validator("deepspeed")
    @classmethod
    def check_deepspeed(cls, config: dict[str, Any] | None) -> dict[str, Any] | None:
        ours = sorted({"train_batch_size", "optimizer", "scheduler"} & set(config or {}))
        if ours:
            raise ValueError(f"leave out {', '.join(ours)}: other keys of `train` set this")
        zero = (config or {}).get("zero_optimization", {})
        if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
            raise ValueError("stage 3 needs stage3_gather_16bit_weights_on_model_save: true, or no model is saved")
        return config


class ArmSeed(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    seed: Seed


class Params(Section):
    threads: Positive
    """CPU threads of each process: their number changes the last bits of every sum."""
    portable: bool = False
    """Whether to compute the same bits on every x86-64 CPU with AVX2. Takes two to four times as long there; a GPU's
    kernels stay as they are."""
    train: Train
    arms: dict[str, ArmSeed]


def train(
    params: Params,
    arm: str,
    samples: Path,
    held_out: Path,
    base: Path,
    checkpoints: Path,
    model: Path,
    training: Path,
    training_parquet: Path,
) -> None:
    settings, seed, held = params.train, params.arms[arm].seed, read_jsonl(held_out)
    require_machine(settings)
    require_trainable(base, settings)
    prepare_tracker(checkpoints.parent, arm)
    tokenizer = load_tokenizer(base)
    set_format(tokenizer, settings.format, settings.end, base)
    tests = encode_rows(tokenizer, held_out, held, settings)
    examples = encode_rows(tokenizer, samples, read_jsonl(samples), settings)
    usable = [example for example in to_learn(examples, settings.loss_on) if example.learned()]
    if not usable:
        raise UserError(
            f"{samples}: train.max_tokens ({settings.max_tokens}) leaves no answer token in any of {len(examples)} rows"
        )
    course = plan(settings, usable, seed)
    checkpoints = checkpoints / short_hash(training_fingerprint(params, arm, samples, base))

    before = held_out_nll(base, base, tests, params) if rank() == 0 else None
    barrier()
    with atomic(model) if rank() == 0 else nullcontext(model) as folder:
        done = run_training(params, base, course, seed, checkpoints, folder)
        if rank() > 0:
            return
        finish_model(params, base, folder)
        tokenizer.save_pretrained(folder)
        stop_at(end_ids(examples), folder)
        after = held_out_nll(folder, base, tests, params)
        tokens = [sum(stop - start for start, stop in test.learned()) for test in tests]
        rows = pd.DataFrame({"id": [r["id"] for r in held], "source": [r["source"] for r in held], "tokens": tokens})
        write_table(training_parquet, rows.assign(nll_base=before, nll=after), HELD_OUT)
        write_json(training, done | count_rows(examples, tests))
    remove(checkpoints)


def training_fingerprint(params: Params, arm: str, samples: Path, base: Path) -> Fingerprint:
    """Return what a checkpoint's training must have in common with this one."""
    settings = params.train
    inputs = {"rows": hash_file(samples), "format": hash_file(format_file(settings.format)), "arm": arm}
    machine = params.model_dump(include=MACHINE)
    state = machine | {"seed": params.arms[arm].seed, "processes": world()}
    return compute_fingerprint(base, inputs | state | {"settings": settings.model_dump_json()}, CODE)


def encode_rows(tokenizer: Any, path: Path, rows: list[dict[str, Any]], settings: Train) -> list[Example]:
    """Return the rows of a file as tokens. Raises UserError if the chat template refuses all of them."""
    examples = encode(tokenizer, [turns_of(row) for row in rows], settings.max_tokens)
    refusals = Counter(example.refused for example in examples if example.refused)
    if refusals:
        reasons = ", ".join(f"{count}: {reason}" for reason, count in refusals.most_common(3))
        told = (
            f"{path}: the chat template of train.format: {settings.format} refuses {refusals.total()} rows ({reasons})"
        )
        if refusals.total() == len(rows):
            raise UserError(f"{told}, which is all of them; use another format")
        log.warning("%s; they are left out", told)
    if rewritten := sum(example.rewritten for example in examples):
        log.warning("%s: only the last answer of %d rows is used: the template rewrites earlier ones", path, rewritten)
    return examples


def to_learn(examples: list[Example], loss_on: str) -> list[Example]:
    if loss_on == "answers":
        return examples
    return [example._replace(answers=[(0, len(example.ids))]) for example in examples]


def count_rows(examples: list[Example], tests: list[Example]) -> dict[str, int]:
    """Return how many rows there were, and how many the chat template refused or rewrote or `max_tokens` cut."""
    return {
        "rows": len(examples),
        "rows_refused": sum(bool(example.refused) for example in examples),
        "rows_without_answer": sum(not example.learned() and not example.refused for example in examples),
        "rows_last_answer": sum(example.rewritten for example in examples),
        "rows_cut": sum(example.cut for example in examples),
        "held_out_refused": sum(bool(test.refused) for test in tests),
        "held_out_last_answer": sum(test.rewritten for test in tests),
        "held_out_cut": sum(test.cut for test in tests),
    }


def end_ids(examples: list[Example]) -> set[int]:
    """Return the tokens that end the answers."""
    return {example.ids[example.answers[-1][1] - 1] for example in examples if example.answers and not example.cut}


def stop_at(ends: set[int], folder: Path) -> None:
    """Make generation stop at these ends too. An adapter has no such settings, because it uses those of its base."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    settings = read_json(path)
    known = settings.get("eos_token_id")
    known = known if isinstance(known, list) else [known] * (known is not None)
    if not ends <= set(known):
        settings.pop("_from_model_config", None)  # with it, transformers would take the end from config.json
        write_json(path, settings | {"eos_token_id": known + sorted(ends - set(known))})


def training_load_config(settings: Train) -> LoadConfig:
    """Return how to load the network for training: weights to train in fp32, a base under an adapter in `dtype`."""
    dtype = settings.dtype if settings.adapter else "fp32"
    return LoadConfig(dtype=dtype, quantize=settings.quantize, attn_implementation=settings.attn_implementation)


def held_out_nll(folder: Path, base: Path, tests: list[Example], params: Params) -> NDArray[np.float64]:
    """Return the summed NLL, in nats, of the answers of every held-out row [N] under the network in `folder`.

    Raises UserError if one is not finite.
    """
    settings = params.train
    network = load_network(folder, base, scoring_config(settings), params.threads)
    check_length(network, settings.max_tokens, "train.max_tokens")
    losses = answer_nll(network, tests, settings.held_out_batch_tokens)
    require_finite_losses(folder, losses, "train")
    return losses


class Course(NamedTuple):
    """What a training presents."""

    steps: list[list[list[Example]]]
    """The packs of every step."""
    epochs: float


def plan(settings: Train, examples: list[Example], seed: int) -> Course:
    """Return what to present under the budget. Raises UserError if the budget ends before the warmup."""
    from stages.lib.training.collate import pack, tokens

    packs = pack(examples, settings.max_tokens) if settings.packing else [[example] for example in examples]
    order = presented(settings.budget, [len(p) for p in packs], [tokens(p) for p in packs], settings.batch, seed)
    require_warmup("train", settings, len(order))
    return Course([[packs[number] for number in step] for step in order], sum(map(len, order)) / len(packs))


def run_training(
    params: Params, base: Path, course: Course, seed: int, checkpoints: Path, folder: Path
) -> dict[str, Any]:
    """Train, from the last checkpoint if there is one; write the network into `folder`; return steps and losses."""
    from transformers import PrinterCallback, set_seed

    from stages.lib.training.callbacks import CheckpointCallback, ThroughputCallback, newest
    from stages.lib.training.collate import flattened, padded, token_pairs, tokens
    from stages.lib.training.finite import FiniteTrainer

    settings, steps = params.train, course.steps
    spent = [sum(map(tokens, step)) for step in steps]
    arguments = trainer_arguments(settings, seed, len(steps), checkpoints)  # ZeRO-3 needs it before a network is loaded
    saved = newest(checkpoints)
    set_seed(seed)
    trainer = FiniteTrainer(
        model=load_for_training(params, base, saved),
        args=arguments,
        train_dataset=[pack for step in steps for pack in step + [[]] * (settings.batch - len(step))],
        data_collator=flattened if settings.packing else padded,
        callbacks=[CheckpointCallback(checkpoints), ThroughputCallback(spent)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(saved) if saved else None)
    write_network(trainer, folder)
    return {
        "steps": len(steps),
        "epochs": course.epochs,
        "tokens": sum(spent),
        "token_pairs": sum(token_pairs(step, packs_together(settings)) for step in steps),
        "loss": logged_losses(trainer),
    }


def packs_together(settings: Train) -> int | None:
    """Return how many packs attention is computed across, on one device: the report is the same on any number of them.

    None if attention stays inside rows.
    """
    if not settings.packing or settings.attn_implementation == "flash_attention_2":
        return None
    return rows_at_once(settings.batch, settings.micro_batch)


def load_for_training(params: Params, base: Path, saved: Path | None) -> Any:
    """Return the network to train, with the weights of the checkpoint if there is one.

    The Trainer loads adapters itself. But it does not load the head of a GPT-NeoX, because that is saved under another
    name than it has in memory (huggingface/transformers issue 43701).
    """
    settings = params.train
    weights = (not settings.adapter and saved) or base
    network = load_network(weights, base, training_load_config(settings), params.threads).train()
    check_length(network, settings.max_tokens, "train.max_tokens")
    return attach(network, settings.adapter) if settings.adapter else network


def require_machine(settings: Train) -> None:
    """Raise UserError if the params need something that this machine lacks, before any work is lost."""
    import torch

    require_devices("train", settings.batch, every_gpu=settings.deepspeed is None)
    if settings.dtype == "fp16" and not torch.cuda.is_available():
        raise UserError("params.yaml: train.dtype: fp16 needs a GPU; bf16 and fp32 do not")


def require_trainable(base: Path, settings: Train) -> None:
    """Raise UserError if the base is in 4 bits and the params ask for more than an adapter on it."""
    held_in_4_bits(training_load_config(settings), base)
    adapter = settings.adapter
    if saved_in_4_bits(base) and (adapter is None or adapter.merge or settings.deepspeed is not None):
        raise UserError(
            f"{base} was saved in 4 bits: such weights can neither be trained nor take in an adapter; set "
            "train.adapter with merge: false, and train.deepspeed: null"
        )


def trainer_arguments(settings: Train, seed: int, steps: int, folder: Path) -> Any:
    from transformers import TrainingArguments

    if settings.deepspeed is not None and world() == 1:  # it reads a launcher's variables
        os.environ |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
        }
    return TrainingArguments(
        **common_arguments(settings, seed, steps, folder),
        average_tokens_across_devices=True,
        deepspeed=settings.deepspeed,
        **({"gradient_checkpointing": True} if settings.gradient_checkpointing else {}),  # transformers 6 renames it
    )


def finish_model(params: Params, base: Path, folder: Path) -> None:
    """Free the memory that training used, and turn the folder into models/<arm>: merge its adapter if asked to."""
    free_memory()
    if params.train.adapter:
        normalise_adapter_config(folder)
    if params.train.adapter and params.train.adapter.merge:
        merge_adapter(folder, base, scoring_config(params.train), params.threads)


if __name__ == "__main__":
    run(train, Params, several=True)
