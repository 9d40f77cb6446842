"""Runs of the training stage: in this process, or as dvc starts it."""

import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from stages.lib.core.artifacts import write_jsonl
from stages.train import Params, train
from tests.project import ENVIRONMENT, run_at_start

SETTINGS = {
    "budget": {"unit": "steps", "amount": 12},
    "batch": 4,
    "micro_batch": 4,
    "learning_rate": 2e-2,
    "schedule": "linear",
    "warmup": 0,
    "max_tokens": 128,
    "format": "koalpaca",
    "end": None,
    "loss_on": "answers",
    "packing": False,
    "dtype": "fp32",
    "gradient_checkpointing": False,
    "attn_implementation": "sdpa",
    "adapter": None,
    "quantize": None,
    "deepspeed": None,
    "held_out_batch_tokens": 256,
}
LORA = {"r": 8, "alpha": 16, "dropout": 0.05, "modules": ["query_key_value", "dense"], "merge": False}
HELD_OUT = ({"instruction": "바다는 왜 짤까?", "output": "소금 때문입니다."},)
PLACES = {
    "samples": "samples.jsonl",
    "held_out": "held_out.jsonl",
    "base": "base",
    "checkpoints": "checkpoints",
    "model": "model",
    "training": "training.json",
    "training_parquet": "training.parquet",
}
"""Where each argument of the stage is, beside its samples."""


def params_of(changes, seed=1):
    return {"threads": 1, "train": SETTINGS | changes, "arms": {"ours": {"seed": seed, "method": "all"}}}


def settings(seed=1, **changes):
    return Params.model_validate(params_of(changes, seed))


def with_ids(rows):
    return [{"id": f"row{n}", "source": ("life", "faq")[n % 2]} | row for n, row in enumerate(rows)]


def prepare(folder, base, rows, held_out=HELD_OUT):
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "samples.jsonl", with_ids(rows))
    write_jsonl(folder / "held_out.jsonl", with_ids(held_out))
    (folder / "base").symlink_to(base)
    return folder


def train_here(folder, **changes):
    """Train in this process; the outputs are beside the rows."""
    train(settings(**changes), arm="ours", **{name: folder / place for name, place in PLACES.items()})
    return folder


def train_apart(folder, patch="", code=0, processes=1, environment=None, **changes):
    """Train as dvc would, after running a piece of code in every process; return the log."""
    YAML().dump(params_of(changes), folder / "params.yaml")
    flags = [word for name, place in PLACES.items() for word in (f"--{name}", str(folder / place))]
    command = [sys.executable, "-m", "stages.train", "--arm", "ours", *flags]
    paths = run_at_start(folder / "site", patch)
    variables = ENVIRONMENT | {"PYTHONPATH": paths, "PET_NPROC_PER_NODE": str(processes), "OMP_NUM_THREADS": "1"}
    variables |= environment or {}
    done = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, check=False, start_new_session=True
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "model").glob("*.safetensors"))}
