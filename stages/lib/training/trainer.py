"""What every training has in common: its schedule, its arguments for the Trainer, its tracker and its weights."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.lib.core.errors import UserError
from stages.lib.core.processes import rank, world

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
"""Transformers' names; its `constant` ignores the warmup."""
TRACKERS = ("tensorboard", "wandb", "mlflow")


def require_devices(section: str, batch: int, every_gpu: bool = True) -> None:
    """Raise UserError if the processes cannot share the batch of `section`, or if one process would use several GPUs.

    `every_gpu`: whether the Trainer would use every GPU that it sees.
    """
    import torch

    if batch % world():
        raise UserError(
            f"params.yaml: {section}.batch ({batch}) cannot be shared equally among {world()} processes; it is "
            "the same for any number of devices, so use a number of processes that divides it"
        )
    gpus = torch.cuda.device_count()
    if gpus > 1 and world() == 1 and every_gpu:  # the Trainer would multiply the batch and the budget
        raise UserError(
            f"{gpus} GPUs are visible to one process; set PET_NPROC_PER_NODE={gpus} to train on all of them, or "
            "CUDA_VISIBLE_DEVICES=0"
        )


def require_warmup(section: str, settings: Any, steps: int) -> None:
    """Raise UserError if the budget ends before the warmup."""
    if settings.warmup > steps:
        raise UserError(
            f"params.yaml: {section}.warmup: {settings.warmup} steps, but the budget of {settings.budget.amount} "
            f"{settings.budget.unit} ends after {steps}; lower warmup, or raise {section}.budget.amount"
        )


def prepare_tracker(folder: Path, name: str) -> None:
    """Choose where a tracker writes what it logs of this training. Raises UserError if there is no such tracker."""
    require_tracker(tracker())
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard" / name))


def tracker() -> str:
    """Return where the Trainer sends losses while it trains; that changes no result, so it is not in params."""
    return os.environ.get("REPORT_TO", "none")


def require_tracker(name: str) -> None:
    if name not in ("none", *TRACKERS):
        raise UserError(f"REPORT_TO is {name}; expected none, {', '.join(TRACKERS)}")
    if name != "none" and find_spec(name) is None:
        raise UserError(f"REPORT_TO is {name}, which is not installed; `pip install {name}`, or unset REPORT_TO")


def rows_at_once(share: int, most: int) -> int:
    """Return the rows of a forward pass: the largest divisor of a device's share of a batch that is at most `most`."""
    return max(rows for rows in range(1, min(most, share) + 1) if share % rows == 0)


def common_arguments(settings: Any, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Return the arguments of TrainingArguments, and of what inherits from it, for a section of params.yaml."""
    import torch

    from stages.lib.training.callbacks import LOG_STEPS

    rows = rows_at_once(settings.batch // world(), settings.micro_batch)
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": settings.batch // (rows * world()),
        "train_sampling_strategy": "sequential",
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": SCHEDULES[settings.schedule],
        "warmup_steps": settings.warmup,
        "bf16": settings.dtype == "bf16",
        "fp16": settings.dtype == "fp16",
        "seed": seed,
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": LOG_STEPS,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # `Finite` stops instead
        "save_strategy": "no",  # `CheckpointCallback` decides
        "report_to": tracker(),
        "disable_tqdm": not sys.stderr.isatty(),
    }


def logged_losses(trainer: Any) -> list[dict[str, Any]]:
    """Return the step and the loss of every entry of the Trainer's log."""
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{"step": int(entry["step"]), "loss": entry["loss"]} for entry in losses]


def write_network(trainer: Any, folder: Path) -> None:
    """Gather the weights from all processes; the first writes them."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if rank() == 0:
        trainer.accelerator.unwrap_model(trainer.model_wrapped).save_pretrained(folder, state_dict=weights)


def free_memory() -> None:
    """Free the memory that training used."""
    import gc

    import torch
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # otherwise ZeRO-3 would also partition the next network
    gc.collect()
    torch.cuda.empty_cache()
