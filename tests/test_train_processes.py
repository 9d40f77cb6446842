"""Training in several processes, and training that is killed: the same losses, the same bits."""

import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from pydantic import ValidationError

from stages import train as stage
from stages.lib.core.artifacts import read_json, read_table
from stages.lib.core.errors import UserError
from stages.lib.text import chat_format
from stages.lib.training import callbacks, trainer
from tests.project import ROOT
from tests.test_processes import restarting
from tests.training import LORA, prepare, settings, train_apart, train_here, weights
from tools.wire import closure, path_of

EVERY_STEP = "from stages.lib.training import callbacks; callbacks.LOG_STEPS = 1\n"
TWENTY = {"budget": {"unit": "steps", "amount": 20}, "micro_batch": 2}
ZERO = {
    "zero_optimization": {"stage": 2},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
}
GATHER = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or shutil.which("ninja") is None,
    reason="DeepSpeed compiles its CPU operators, which needs g++ and ninja",
)


@pytest.fixture
def folder(tmp_path, base, rows):
    return prepare(tmp_path / "ours", base, rows[:21], rows[30:])


@pytest.fixture
def alone(tmp_path, base, rows):
    return prepare(tmp_path / "alone", base, rows[:21], rows[30:])


def check_against_one_process(folder, alone, monkeypatch, log, tolerance=1e-5):
    """Compare twenty losses, over epochs whose last step is not full."""
    assert "0 of 20 steps are done, processes: 2" in log
    monkeypatch.setattr(callbacks, "LOG_STEPS", 1)
    one, two = (read_json(path / "training.json") for path in (train_here(alone, **TWENTY), folder))
    assert [entry["step"] for entry in two["loss"]] == list(range(1, 21))
    print("largest difference", max(abs(m["loss"] - t["loss"]) for m, t in zip(two["loss"], one["loss"], strict=True)))
    for mine, theirs in zip(two["loss"], one["loss"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=tolerance)
    assert two | {"loss": []} == one | {"loss": []}
    held = [read_table(path / "training.parquet")["nll"].tolist() for path in (folder, alone)]
    assert held[0] == pytest.approx(held[1], rel=1e-3)
    assert not list((folder / "checkpoints").glob("*"))


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(folder, alone, monkeypatch):
    log = train_apart(folder, EVERY_STEP, processes=2, **TWENTY)
    check_against_one_process(folder, alone, monkeypatch, log)
    assert log.count("loss 5.9") == 1  # only the first process logs


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("zero", [{"stage": 2}, GATHER, {"stage": 2} | OFFLOAD, GATHER | OFFLOAD], ids=str)
def test_two_processes_under_deepspeed_have_the_losses_of_one(zero, folder, alone, monkeypatch):
    deepspeed = ZERO | {"zero_optimization": zero}
    log = train_apart(folder, EVERY_STEP, processes=2, deepspeed=deepspeed, **TWENTY)
    own_adam = "offload_optimizer" in zero  # DeepSpeed's optimiser for CPUs rounds differently
    check_against_one_process(folder, alone, monkeypatch, log, tolerance=1e-4 if own_adam else 1e-5)


@pytest.mark.slow
@needs_compiler
def test_deepspeed_trains_an_adapter_in_one_process_without_a_launcher(folder, alone):
    train_apart(folder, adapter=LORA | {"dropout": 0.0}, deepspeed=ZERO | {"zero_optimization": GATHER})
    train_here(alone, adapter=LORA | {"dropout": 0.0})
    held = [read_table(path / "training.parquet")["nll"].tolist() for path in (folder, alone)]
    assert held[0] == pytest.approx(held[1], rel=1e-3)


KILL = """
import os, signal
from stages.lib.training import callbacks
from transformers import Trainer

def killed_at(owner, name, step):
    before = getattr(owner, name)
    def method(self, *args, **kwargs):
        state = self.state if isinstance(self, Trainer) else args[1]
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(self, *args, **kwargs)
    setattr(owner, name, method)

callbacks.CHECKPOINT_SECONDS = 0
callbacks.LOG_STEPS = 2
"""
BETWEEN = "killed_at(callbacks.CheckpointCallback, 'on_step_end', 7)"
WRITING = "killed_at(Trainer, '_save_optimizer_and_scheduler', 8)"
UNMARKED = "killed_at(callbacks.CheckpointCallback, 'on_save', 8)"
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("moment", "adapter"),
    [
        pytest.param(BETWEEN, None, marks=slow, id="between two, all weights"),
        pytest.param(WRITING, None, id="half a checkpoint, all weights"),
        pytest.param(UNMARKED, None, marks=slow, id="a checkpoint without its mark, all weights"),
        pytest.param(BETWEEN, LORA, marks=slow, id="between two, adapter"),
        pytest.param(WRITING, LORA, marks=slow, id="half a checkpoint, adapter"),
        pytest.param(UNMARKED, LORA, marks=slow, id="a checkpoint without its mark, adapter"),
    ],
)
def test_a_training_that_is_killed_resumes_to_the_same_bits(moment, adapter, folder, alone, caplog, monkeypatch):
    train_apart(folder, KILL + moment, code=-9, adapter=adapter)
    assert not (folder / "model").exists()
    (written,) = (folder / "checkpoints").iterdir()
    assert callbacks.newest(written).name == "checkpoint-6"
    assert (written / "checkpoint-8").exists() == (moment != BETWEEN)
    caplog.set_level("INFO", logger="stages")
    monkeypatch.setattr(callbacks, "LOG_STEPS", 2)
    train_here(folder, adapter=adapter)
    assert "6 of 12 steps are done" in caplog.text
    train_here(alone, adapter=adapter)
    assert weights(folder) == weights(alone)
    assert (folder / "training.json").read_bytes() == (alone / "training.json").read_bytes()
    assert not written.exists()


@slow
def test_a_training_whose_process_dies_is_started_again_and_ends_with_the_same_bytes(folder, alone):
    death = (
        KILL + "if os.environ.get('RANK') == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n    " + BETWEEN
    )
    settings = {"processes": 2, "micro_batch": 2}
    log = train_apart(folder, death, environment=restarting(), **settings)
    assert "failed (exitcode: -9)" in log
    assert "6 of 12 steps are done, processes: 2" in log
    train_apart(alone, "from stages.lib.training import callbacks\ncallbacks.LOG_STEPS = 2", **settings)
    for name in ("training.json", "training.parquet", "model/model.safetensors"):
        assert (folder / name).read_bytes() == (alone / name).read_bytes(), name


class InterruptionError(Exception):
    pass


def test_a_checkpoint_of_another_training_is_left_alone(folder, caplog, monkeypatch):
    monkeypatch.setattr(callbacks, "LOG_STEPS", 2)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(callbacks, "CHECKPOINT_SECONDS", 0)
        interrupted.setattr(stage, "write_network", Mock(side_effect=InterruptionError))
        with pytest.raises(InterruptionError):
            train_here(folder)
    (written,) = (folder / "checkpoints").iterdir()
    assert callbacks.newest(written).name == "checkpoint-12"
    caplog.set_level("INFO", logger="stages")
    for changes in ({"learning_rate": 1e-2}, {"seed": 2}):
        caplog.clear()
        train_here(folder, **changes)
        assert "0 of 12 steps are done" in caplog.text
        assert callbacks.newest(written).name == "checkpoint-12"
    caplog.clear()
    train_here(folder)
    assert "12 of 12 steps are done" in caplog.text


def test_the_fingerprint_of_a_training_has_everything_that_it_reads(tmp_path, folder, base, monkeypatch):
    formats, model = (shutil.copytree(path, tmp_path / path.name) for path in (chat_format.FORMATS, base))
    monkeypatch.setattr(chat_format, "FORMATS", formats)

    def find(**changes):
        return stage.training_fingerprint(settings(**changes), "ours", folder / "samples.jsonl", model)

    def changed(now):
        return {name for name in before if now[name] != before[name]}

    before = find()
    assert find() == before
    assert changed(find(seed=2)) == {"seed"}
    assert changed(find(warmup=1)) == {"settings"}
    for path, part in (
        (folder / "samples.jsonl", "rows"),
        (formats / "koalpaca.jinja", "format"),
        (model / "model.safetensors", "weights"),
        (model / "tokenizer.json", "tokenizer"),
    ):
        before = find()
        path.write_bytes(path.read_bytes() + b" ")
        assert changed(find()) == {part}


def test_the_fingerprint_of_a_training_covers_every_module_that_changes_its_weights():
    about_it = {f"core.{name}" for name in ("artifacts", "errors", "params", "processes", "progress", "runner")}
    of_the_finished_model = {f"scoring.{name}" for name in ("attention", "batching", "fingerprint", "log_likelihood")}
    of_the_finished_model |= {"training.held_out"}
    without_effect = {f"stages.lib.{name}" for name in about_it | of_the_finished_model}
    modules = closure("stages.train")
    assert without_effect <= modules
    assert {path.relative_to(ROOT) for path in stage.CODE} == {path_of(name) for name in modules - without_effect}


def test_the_fingerprint_of_a_training_changes_with_every_file_of_its_code(tmp_path, folder, base, monkeypatch):
    copies = [Path(shutil.copy(path, tmp_path / path.name)) for path in stage.CODE]
    monkeypatch.setattr(stage, "CODE", copies)
    for path in copies:
        before = stage.training_fingerprint(settings(), "ours", folder / "samples.jsonl", base)
        path.write_text(path.read_text() + "\nadded = 1\n")
        now = stage.training_fingerprint(settings(), "ours", folder / "samples.jsonl", base)
        assert {name for name in before if now[name] != before[name]} == {"code"}


def test_processes_that_do_not_divide_the_batch_are_refused(monkeypatch, folder):
    monkeypatch.setattr(trainer, "world", lambda: 3)
    with pytest.raises(UserError, match=r"train\.batch \(4\) cannot be shared equally among 3 processes"):
        train_here(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ZERO | {"train_batch_size": "auto"}, "leave out train_batch_size"),
        (ZERO | {"optimizer": {}, "scheduler": {}}, "leave out optimizer, scheduler"),
        (ZERO | {"zero_optimization": {"stage": 3}}, "stage3_gather_16bit_weights_on_model_save"),
    ],
)
def test_deepspeed_may_not_set_what_other_params_set(config, message):
    with pytest.raises(ValidationError, match=message):
        settings(deepspeed=config)
