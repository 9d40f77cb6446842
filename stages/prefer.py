"""Train one arm further, to prefer the better answers of pairs (DPO), or as a placebo: half of the pairs are swapped.

    models/<arm>/, data/train/<arm>.parquet, data/preferences/<pairs>.parquet, data/held_out.jsonl
        -> models/<name>/, data/train/<name>.json, data/train/<name>.parquet, data/prefer/<name>.parquet
           (.checkpoints/prefer: of killed trainings)

A new adapter is trained on the arm's weights and merged into them. The margins of the held-out pairs say whether the
labels taught anything: those of placebos say how far a run drifts without them (docs/preferences.md).
"""

import logging
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from stages.lib.core.artifacts import (
    atomic,
    read_jsonl,
    read_table,
    remove,
    require_same_rows,
    write_json,
    write_table,
)
from stages.lib.core.errors import UserError
from stages.lib.core.params import Count, Positive, Section, Seed
from stages.lib.core.processes import barrier, rank, world
from stages.lib.core.runner import run
from stages.lib.models.loading import Dtype, LoadConfig, check_length, load_model, load_tokenizer, saved_in_4_bits
from stages.lib.models.lora import SETTINGS, Adapter, attach, merge_adapter, normalise_adapter_config
from stages.lib.scoring.fingerprint import MACHINE, Fingerprint, compute_fingerprint, hash_file, short_hash
from stages.lib.text.chat_format import Example, encode
from stages.lib.text.conversations import turns_of
from stages.lib.training.budget import Budget, presented
from stages.lib.training.held_out import HELD_OUT, answer_nll, require_finite_losses, scoring_config
from stages.lib.training.pairs import REFUSED, TOO_LONG, Pair, encode_pairs, swap_half
from stages.lib.training.trainer import (
    common_arguments,
    free_memory,
    logged_losses,
    prepare_tracker,
    require_devices,
    require_warmup,
    write_network,
)

log = logging.getLogger("stages")
LIB = Path(__file__).parent / "lib"
CODE = [
    Path(__file__),
    LIB / "models/loading.py",
    LIB / "models/lora.py",
    LIB / "text/chat_format.py",
    LIB / "text/dates.py",
    LIB / "text/hashing.py",
    LIB / "training/budget.py",
    LIB / "training/callbacks.py",
    LIB / "training/finite.py",
    LIB / "training/pairs.py",
    LIB / "training/preference.py",
    LIB / "training/trainer.py",
]
"""The source files that trained weights and their logged losses depend on."""
TEXTS = ("prompt", "chosen", "rejected")
MARGINS = pa.schema(
    [
        ("id", pa.string()),
        ("chosen_tokens", pa.int64()),
        ("rejected_tokens", pa.int64()),
        ("chosen_before", pa.float64()),
        ("chosen_after", pa.float64()),
        ("rejected_before", pa.float64()),
        ("rejected_after", pa.float64()),
        ("margin", pa.float64()),
        ("chosen_characters", pa.int64()),
        ("rejected_characters", pa.int64()),
    ]
)
"""Log-probabilities are summed over the tokens of an answer with its end, in nats."""


class LowRank(Section):
    r: Positive
    """Rank of the two matrices."""
    alpha: Positive
    """Their product is scaled by alpha / r."""
    modules: Annotated[list[str], Field(min_length=1)]
    """The linear layers to adapt, by the last part of their names: query_key_value, dense, ... in GPT-NeoX."""

    def adapter(self) -> Adapter:
        return Adapter(r=self.r, alpha=self.alpha, dropout=0.0, modules=self.modules, merge=True)


class Dpo(Section):
    beta: Annotated[float, Field(gt=0)]
    """How much a margin weighs: the higher, the less the network moves away from the arm's."""
    budget: Budget
    """What every preference is trained for, in steps, pairs (`rows`), tokens of both conversations, or epochs."""
    batch: Positive
    """Pairs of an optimiser step, over all devices."""
    micro_batch: Positive
    """Most pairs of a forward pass on one device. Fewer if a device's share of `batch` needs it."""
    learning_rate: float
    schedule: Literal["linear", "cosine", "constant"]
    """How the learning rate falls after the warmup."""
    warmup: Count
    """Steps over which the learning rate rises; at most the steps of the training."""
    max_tokens: Positive
    """Pairs whose longer conversation has more tokens are left out: a cut answer would be worth another label."""
    dtype: Dtype
    """Type of the computation and of the weights that are written; the adapter is trained in fp32."""
    gradient_checkpointing: bool
    """Whether to save memory by computing activations twice."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"]
    adapter: LowRank


class Preference(Section):
    arm: str
    """The arm to train further."""
    pairs: str
    """The entry of `fetch_preferences` to train on."""
    labels: Literal["given", "shuffled"]
    """`shuffled`: a placebo. In half of the pairs to train on, drawn by hash, the worse answer counts as the better."""
    seed: Seed
    """Seed of the order, of the adapter's first weights, and of the pairs that are swapped."""
    replicate: str | None = None
    """The preference that this one repeats with another seed, perhaps from another run of its arm; all other settings
    are equal."""


class ArmSettings(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    seed: Seed
    replicate: str | None = None


class FetchedPairs(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    inputs: str


class Merged(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    merge: bool


class Scored(Section):
    """How `train` scores held-out rows."""

    model_config = Section.model_config | {"extra": "ignore"}
    max_tokens: Positive
    dtype: Literal["fp32", "bf16", "fp16"]
    quantize: Literal["nf4"] | None
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"]
    adapter: Merged | None
    held_out_batch_tokens: Positive


class Params(Section):
    threads: Positive
    portable: bool = False
    train: Scored
    arms: dict[str, ArmSettings]
    fetch_preferences: dict[str, FetchedPairs]
    prefer: dict[str, Preference]
    """Arms to train further on pairs, by the name of the model that results. A placebo has `labels: shuffled`."""
    dpo: Dpo
    """How every preference is trained."""

    @model_validator(mode="after")
    def check_names(self) -> "Params":
        taken = sorted(({"base", "hub"} | set(self.arms)) & set(self.prefer))
        if taken:
            raise ValueError(f"prefer.{taken[0]}: an arm has this name, or a folder in models/; rename the preference")
        for name, one in self.prefer.items():
            if one.arm not in self.arms:
                raise ValueError(f"prefer.{name}.arm: {one.arm!r} is not an arm; the arms are {', '.join(self.arms)}")
            if one.pairs not in self.fetch_preferences:
                known = ", ".join(self.fetch_preferences) or "nothing"
                raise ValueError(f"prefer.{name}.pairs: {one.pairs!r} is not in fetch_preferences, which has {known}")
        return self

    @model_validator(mode="after")
    def replicates_differ_only_in_their_seed(self) -> "Params":
        runs: dict[tuple[str, str, str, int], str] = {}
        for name, one in self.prefer.items():
            first = self.prefer.get(one.replicate or name)
            if first is None or (one.replicate and first.replicate):
                raise ValueError(
                    f"prefer.{name}.replicate: {one.replicate!r} is not a preference, or is itself a replicate"
                )
            different = [key for key in ("pairs", "labels") if getattr(one, key) != getattr(first, key)]
            if different:
                raise ValueError(
                    f"prefer.{name}: a replicate of {one.replicate} must have the same {' and '.join(different)}"
                )
            if len({self.arms[run.arm].replicate or run.arm for run in (one, first)}) > 1:
                raise ValueError(
                    f"prefer.{name}: a replicate of {one.replicate} must have the same arm, or another run of it"
                )
            twin = runs.setdefault((one.arm, one.pairs, one.labels, one.seed), name)
            if twin != name:
                raise ValueError(f"prefer.{name}: {twin} has the same arm, pairs, labels and seed: one run, not two")
        return self


def prefer(
    params: Params,
    name: str,
    arm_model: Path,
    arm_parquet: Path,
    pairs: Path,
    held_out: Path,
    checkpoints: Path,
    model: Path,
    training: Path,
    training_parquet: Path,
    prefer_parquet: Path,
) -> None:
    settings, one = params.dpo, params.prefer[name]
    require_merged(arm_model, one.arm)
    require_devices("dpo", settings.batch)
    prepare_tracker(checkpoints.parent, name)
    tokenizer = load_tokenizer(arm_model)
    base_losses, tests = read_held_out(tokenizer, arm_parquet, held_out, params.train.max_tokens)
    learned, judged = (
        read_usable_pairs(tokenizer, pairs, settings.max_tokens, held_out=held) for held in (False, True)
    )
    shown = swap_half(learned.pairs, learned.ids, one.seed) if one.labels == "shuffled" else learned.pairs
    course = plan_pairs(settings, shown, one.seed)
    checkpoints = checkpoints / short_hash(preference_fingerprint(params, name, pairs, arm_model))

    before = score_network(arm_model, judged.pairs, [], params)[0] if rank() == 0 else None
    barrier()
    with atomic(model) if rank() == 0 else nullcontext(model) as folder:
        done = run_preference(params, arm_model, course, one.seed, checkpoints, folder)
        if rank() > 0:
            return
        free_memory()
        normalise_adapter_config(folder)
        merge_adapter(folder, arm_model, LoadConfig(dtype=settings.dtype), params.threads)
        tokenizer.save_pretrained(folder)
        after, losses = score_network(folder, judged.pairs, tests, params)
        write_table(training_parquet, base_losses.assign(nll=losses), HELD_OUT)
        write_table(prefer_parquet, margins(judged, before, after, settings.beta), MARGINS)
        swapped = sum(one is not other for one, other in zip(learned.pairs, shown, strict=True))
        counts = learned.counts | {f"held_out_{key}": count for key, count in judged.counts.items()}
        write_json(training, done | counts | {"pairs_swapped": swapped})
    remove(checkpoints)


def require_merged(arm_model: Path, arm: str) -> None:
    """Raise UserError unless the folder has full weights: the reference of DPO is this network without an adapter."""
    if (arm_model / SETTINGS).is_file():
        raise UserError(
            f"{arm_model}: it has only an adapter, but a preference is trained on merged weights; set "
            f"train.adapter.merge: true, and `dvc repro train@{arm}`"
        )
    if saved_in_4_bits(arm_model):
        raise UserError(
            f"{arm_model}: its weights are in 4 bits, into which no adapter can be merged without a loss; set "
            f"train.quantize: null, fetch a base that is not quantized, and `dvc repro train@{arm}`"
        )


def read_held_out(
    tokenizer: Any, arm_parquet: Path, held_out: Path, max_tokens: int
) -> tuple[pd.DataFrame, list[Example]]:
    """Return the arm's table of held-out losses, and the same rows as tokens, as `train` scored them."""
    losses, rows = read_table(arm_parquet), read_jsonl(held_out)
    tests = encode(tokenizer, [turns_of(row) for row in rows], max_tokens)
    lengths = [sum(stop - start for start, stop in test.learned()) for test in tests]
    require_same_rows(
        arm_parquet=[f"{row.id} ({row.tokens} tokens)" for row in losses.itertuples()],
        held_out=[f"{row['id']} ({length} tokens)" for row, length in zip(rows, lengths, strict=True)],
    )
    return losses, tests


class Known(NamedTuple):
    """Pairs of data/preferences that fit."""

    ids: list[str]
    pairs: list[Pair]
    texts: pd.DataFrame
    counts: dict[str, int]
    """How many there are, and how many others were left out for what reason."""


def read_usable_pairs(tokenizer: Any, path: Path, max_tokens: int, held_out: bool) -> Known:
    """Return the usable pairs that are held out, or the others. Raises UserError if none of the others fits."""
    table = read_table(path, "id", "prompt", "chosen", "rejected", "held_out", "reason")
    texts = table[table["reason"].isna() & (table["held_out"] == held_out)].reset_index(drop=True)
    encoded = encode_pairs(tokenizer, list(zip(*(texts[name] for name in TEXTS), strict=True)), max_tokens)
    fits = [not isinstance(one, str) for one in encoded]
    counts = {f"pairs_{reason}": encoded.count(reason) for reason in (TOO_LONG, REFUSED)}
    pairs = [one for one in encoded if not isinstance(one, str)]
    what = "held-out pairs" if held_out else "pairs to train on"
    left_out = f"{encoded.count(TOO_LONG)} are too long and {encoded.count(REFUSED)} are refused by the template"
    log.info("%s: %d %s; %s", path, len(pairs), what, left_out)
    if not pairs:
        raise UserError(
            f"{path}: it has no {what} that fit: of {len(table)}, {len(texts)} are usable {what} (columns `reason` and "
            f"`held_out`), but {left_out}; raise dpo.max_tokens, or look at fetch_preferences and its held_out"
        )
    return Known(texts["id"][fits].tolist(), pairs, texts[fits], counts | {"pairs": len(pairs)})


class PairCourse(NamedTuple):
    """What a preference presents."""

    steps: list[list[Pair]]
    epochs: float


def plan_pairs(settings: Dpo, pairs: list[Pair], seed: int) -> PairCourse:
    """Return what to present under the budget; a pair counts as one row, and as the tokens of both conversations."""
    tokens = [sum(map(len, pair.conversations())) for pair in pairs]
    order = presented(settings.budget, [1] * len(pairs), tokens, settings.batch, seed)
    require_warmup("dpo", settings, len(order))
    return PairCourse([[pairs[number] for number in step] for step in order], sum(map(len, order)) / len(pairs))


def preference_fingerprint(params: Params, name: str, pairs: Path, arm_model: Path) -> Fingerprint:
    """Return what a checkpoint's training must have in common with this one."""
    state = params.model_dump(include=MACHINE) | {
        "processes": world(),
        "pairs": hash_file(pairs),
        "trl": version("trl"),
    }
    settings = {"preference": params.prefer[name].model_dump_json(), "settings": params.dpo.model_dump_json()}
    return compute_fingerprint(arm_model, state | settings, CODE)


def score_network(
    folder: Path, pairs: list[Pair], tests: list[Example], params: Params
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return, under the network in `folder`, the log-probabilities, in nats, of both answers of P pairs [P, 2], and the
    NLL of N held-out answers [N]. Raises UserError if one is not finite.
    """
    from stages.lib.scoring.log_likelihood import nll_sums

    settings = params.train  # as the arm was scored, or their losses could not be compared
    network = load_model(folder, scoring_config(settings), params.threads)
    check_length(network, max(settings.max_tokens, params.dpo.max_tokens), "dpo.max_tokens")
    ids = [conversation for pair in pairs for conversation in pair.conversations()]
    starts = [len(pair.prompt) for pair in pairs for _ in range(2)]
    sums = nll_sums(network, ids, starts, settings.held_out_batch_tokens, "pairs, batches") if pairs else np.zeros(0)
    losses = answer_nll(network, tests, settings.held_out_batch_tokens)
    require_finite_losses(folder, np.concatenate([sums, losses]), "dpo")
    return -sums.reshape(-1, 2), losses


def run_preference(
    params: Params, arm_model: Path, course: PairCourse, seed: int, checkpoints: Path, folder: Path
) -> dict[str, Any]:
    """Train, from the last checkpoint if there is one; write the adapter into `folder`; return steps and losses."""
    from transformers import PrinterCallback, set_seed

    from stages.lib.training.callbacks import CheckpointCallback, ThroughputCallback, newest
    from stages.lib.training.preference import PreferenceTrainer, to_dataset

    settings, steps = params.dpo, course.steps
    lengths = [[len(ids) for pair in step for ids in pair.conversations()] for step in steps]
    saved = newest(checkpoints)
    set_seed(seed)
    trainer = PreferenceTrainer(
        load_to_prefer(params, arm_model),
        common_arguments(settings, seed, len(steps), checkpoints)
        | {"beta": settings.beta, "gradient_checkpointing": settings.gradient_checkpointing},
        to_dataset(steps, settings.batch),
        processing_class=load_tokenizer(arm_model),  # trl changes its own
        callbacks=[CheckpointCallback(checkpoints), ThroughputCallback([sum(step) for step in lengths])],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(saved) if saved else None)
    write_network(trainer, folder)
    return {
        "steps": len(steps),
        "epochs": course.epochs,
        "tokens": sum(map(sum, lengths)),
        "token_pairs": sum(length**2 for step in lengths for length in step),
        "loss": logged_losses(trainer),
    }


def load_to_prefer(params: Params, arm_model: Path) -> Any:
    """Return the arm's network without dropout, because the reference would not be the policy, and a new adapter."""
    from stages.lib.training.preference import switch_off_dropout

    settings = params.dpo
    config = LoadConfig(dtype=settings.dtype, attn_implementation=settings.attn_implementation)
    network = load_model(arm_model, config, params.threads).train()
    switch_off_dropout(network)
    return attach(network, settings.adapter.adapter(), "dpo")


def margins(known: Known, before: Any, after: NDArray[np.float64], beta: float) -> dict[str, Any]:
    """Return the columns MARGINS: how much more likely the better answer became than the worse one did."""
    gain = after - before
    return {
        "id": known.ids,
        "chosen_tokens": [len(pair.chosen) for pair in known.pairs],
        "rejected_tokens": [len(pair.rejected) for pair in known.pairs],
        "chosen_before": before[:, 0],
        "chosen_after": after[:, 0],
        "rejected_before": before[:, 1],
        "rejected_after": after[:, 1],
        "margin": beta * (gain[:, 0] - gain[:, 1]),
        "chosen_characters": known.texts["chosen"].str.len(),
        "rejected_characters": known.texts["rejected"].str.len(),
    }


if __name__ == "__main__":
    run(prefer, Params, several=True)
