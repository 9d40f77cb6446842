"""Runs of the stage `prefer`, in this process, on an arm that differs from a base only in its chat template."""

import os
import signal
import subprocess
import sys

from ruamel.yaml import YAML

from stages.fetch_preferences import PREFERENCES
from stages.lib.core.artifacts import write_jsonl, write_table
from stages.lib.models.loading import load_tokenizer
from stages.lib.text.bos import added_bos
from stages.lib.text.chat_format import chat_template, encode
from stages.lib.text.conversations import turns_of
from stages.lib.training import callbacks
from stages.lib.training.held_out import HELD_OUT
from stages.prefer import Params, prefer
from tests.project import ENVIRONMENT, ROOT
from tests.training import with_ids

DPO = {
    "beta": 0.1,
    "budget": {"unit": "steps", "amount": 6},
    "batch": 4,
    "micro_batch": 2,
    "learning_rate": 2e-2,
    "schedule": "linear",
    "warmup": 0,
    "max_tokens": 128,
    "dtype": "fp32",
    "gradient_checkpointing": False,
    "attn_implementation": "sdpa",
    "adapter": {"r": 4, "alpha": 8, "modules": ["query_key_value", "dense"]},
}
PLACES = {
    "arm_model": "arm",
    "arm_parquet": "arm.parquet",
    "pairs": "pairs.parquet",
    "held_out": "held_out.jsonl",
    "checkpoints": "checkpoints/prefer",
    "model": "model",
    "training": "training.json",
    "training_parquet": "training.parquet",
    "prefer_parquet": "prefer.parquet",
}
"""Where each argument of the stage is."""


def preference(**changes):
    return {"arm": "ours", "pairs": "polite", "labels": "given", "seed": 1} | changes


def params_with(prefer, **dpo):
    return {
        "threads": 1,
        "train": {
            "max_tokens": 128,
            "dtype": "fp32",
            "quantize": None,
            "attn_implementation": "sdpa",
            "adapter": None,
            "held_out_batch_tokens": 256,
        },
        "arms": {"ours": {"seed": 1}, "ours_2": {"seed": 2, "replicate": "ours"}, "others": {"seed": 1}},
        "fetch_preferences": {"polite": {"inputs": "data"}},
        "prefer": prefer,
        "dpo": DPO | dpo,
    }


def polite_pairs(rows, held_out=4):
    """Return a pair for each row; the last ones are held out."""
    return [
        {
            "id": f"pair{number}",
            "prompt": row["instruction"],
            "chosen": row["output"],
            "rejected": row["output"].replace("입니다", "이다"),
            "held_out": number >= len(rows) - held_out,
            "reason": None,
        }
        for number, row in enumerate(rows)
    ]


def write_pairs(path, pairs):
    write_table(path, {name: [pair[name] for pair in pairs] for name in PREFERENCES.names}, PREFERENCES)


def prepare_arm(folder, pairs, held_out):
    """Make an arm of the model in `folder`/arm; write its table of held-out losses, and the pairs."""
    chat = load_tokenizer(folder / "arm")
    chat.chat_template = chat_template("koalpaca", begins_with_bos=bool(added_bos(chat)))
    chat.save_pretrained(folder / "arm")
    rows = with_ids(held_out)
    write_jsonl(folder / "held_out.jsonl", rows)
    tests = encode(chat, [turns_of(row) for row in rows], 128)
    tokens = [sum(stop - start for start, stop in test.learned()) for test in tests]
    columns = {"id": [row["id"] for row in rows], "source": [row["source"] for row in rows], "tokens": tokens}
    write_table(folder / "arm.parquet", columns | {"nll_base": [9.0] * len(rows), "nll": [8.0] * len(rows)}, HELD_OUT)
    write_pairs(folder / "pairs.parquet", pairs)
    return folder


def prefer_here(folder, out=None, one=None, **dpo):
    """Run the stage; the outputs are in `out`, beside links to the inputs."""
    out = out or folder
    params = Params.model_validate(params_with({"x": one or preference()}, **dpo))
    prefer(params, name="x", **paths_of(folder, out))
    return out


def paths_of(folder, out):
    inputs = ("arm_model", "arm_parquet", "pairs", "held_out")
    return {name: (folder if name in inputs else out) / place for name, place in PLACES.items()}


def prefer_apart(folder, out, processes, **dpo):
    """Run the stage as dvc would; return the log."""
    out.mkdir(exist_ok=True)
    YAML().dump(params_with({"x": preference()}, **dpo), out / "params.yaml")
    flags = [word for name, path in paths_of(folder, out).items() for word in (f"--{name}", str(path))]
    variables = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "PET_NPROC_PER_NODE": str(processes), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stages.prefer", "--name", "x", *flags]
    done = subprocess.run(command, cwd=out, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def prefer_killed(folder, out, step):
    """Run the stage in a forked process that is killed at the end of a step; every other step writes a checkpoint."""
    child = os.fork()
    if child == 0:
        before = callbacks.CheckpointCallback.on_step_end

        def die(self, args, state, control, **others):
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)
            before(self, args, state, control, **others)

        callbacks.CheckpointCallback.on_step_end = die
        prefer_here(folder, out)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
