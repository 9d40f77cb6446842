"""Several processes of a stage, one run at a time, none left behind."""

import os
import signal
import subprocess
import sys

import psutil
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from stages import embed, ppl
from stages.lib.core import processes
from stages.lib.core.errors import UserError
from stages.lib.core.processes import only_one
from tests.project import ENVIRONMENT, ROOT

SETTINGS = {
    "ppl": {"max_tokens": 128, "add_bos": False, "batch_tokens": 256, "dtype": "fp32"},
    "embed": {"max_tokens": 128, "pooling": "mean", "batch_tokens": 256, "dtype": "fp32"},
}


@pytest.fixture
def locks(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "LOCKS", tmp_path)
    return tmp_path


def test_a_stage_that_runs_already_is_waited_for_and_then_named(locks, monkeypatch, caplog):
    monkeypatch.setattr(processes, "PATIENCE", 1.0)
    with only_one("ppl"):
        with pytest.raises(UserError, match=rf"process {os.getpid()} is still running this stage"), only_one("ppl"):
            pass
        with only_one("embed"):
            pass
    assert f"waiting for process {os.getpid()}" in caplog.text


def test_the_lock_of_a_run_that_was_killed_is_free(locks, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.0)
    script = (
        f"import pathlib, time; from stages.lib.core import processes; processes.LOCKS = pathlib.Path({str(locks)!r}); "
    )
    script += "lock = processes.only_one('ppl'); lock.__enter__(); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(UserError, match=f"process {holder.pid} is still running this stage"), only_one("ppl"):
        pass
    holder.kill()
    holder.wait()
    with only_one("ppl"):
        pass


def test_a_stage_ends_when_the_dvc_that_started_it_is_killed():
    stage = (
        "from stages.lib.core.processes import *; import time; stop_when_orphaned(); print(os.getpid(), flush=True); "
    )
    stage += "time.sleep(60)"
    dvc = f"import subprocess; subprocess.run(['sh', '-c', '{sys.executable} -c \"{stage}\"; true'])"
    started = subprocess.Popen([sys.executable, "-c", dvc], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    orphan = psutil.Process(int(started.stdout.readline()))
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    orphan.wait(timeout=10)
    assert not orphan.is_running()


def run_here(stage, folder, model, raw):
    """Run a stage in this process; return its output."""
    module = {"ppl": ppl, "embed": embed}[stage]
    params = module.Params.model_validate({"threads": 1, stage: SETTINGS[stage]})
    getattr(module, stage)(params, raw, model, folder / ".checkpoints", folder / "out.parquet")
    return folder / "out.parquet"


def run_stage(stage, folder, model, raw, code=0, **environment):
    """Run a stage as dvc does; return its output and the log."""
    folder.mkdir(exist_ok=True)
    YAML().dump({"threads": 1, stage: SETTINGS[stage]}, folder / "params.yaml")
    names = {"ppl": ("scorer", "ppl"), "embed": ("encoder", "embeddings")}[stage]
    paths = {"raw": raw, names[0]: model, "checkpoints": ".checkpoints", names[1]: "out.parquet"}
    command = [
        sys.executable,
        "-m",
        f"stages.{stage}",
        *(w for name, path in paths.items() for w in (f"--{name}", path)),
    ]
    variables = ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return folder / "out.parquet", done.stderr


@pytest.mark.parametrize(("stage", "count"), [("ppl", 2), ("embed", 3)])
def test_several_processes_write_the_same_bytes_as_one(stage, count, tmp_path, write_raw, questions, lm, encoder):
    raw, model = write_raw([*questions, "A"]), {"ppl": lm, "embed": encoder}[stage]
    one = run_here(stage, tmp_path / "one", model, raw)
    several, log = run_stage(stage, tmp_path / "several", model, raw, PET_NPROC_PER_NODE=str(count))
    assert several.read_bytes() == one.read_bytes()
    assert log.count("41 to compute") == 1


DEATH = """
import os, pathlib, signal, time
from stages.lib.scoring import cache

def die(*_):
    while not list(pathlib.Path(".checkpoints").glob("*.parquet")):
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ.get("RANK") == "1":
    cache.keep_chunks = die
"""


def test_a_process_that_dies_fails_the_stage_and_the_others_work_is_kept(tmp_path, write_raw, questions, lm):
    raw = write_raw(questions)
    one = run_here("ppl", tmp_path / "one", lm, raw)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEATH)
    dying = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    out, _ = run_stage("ppl", tmp_path / "two", lm, raw, code=1, PET_NPROC_PER_NODE="2", PYTHONPATH=dying)
    assert not out.exists()
    kept = sum(len(pq.read_table(path)) for path in (tmp_path / "two" / ".checkpoints").glob("*.parquet"))
    assert 0 < kept < len(questions)
    out, log = run_stage("ppl", tmp_path / "two", lm, raw)
    assert f"{len(questions) - kept} to compute" in log
    assert out.read_bytes() == one.read_bytes()


ABORT = "import atexit, os; os.environ.get('RANK') == '1' and atexit.register(os.abort)"


def test_a_process_that_aborts_at_its_very_end_fails_nothing(tmp_path, write_raw, questions, lm):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(ABORT)
    aborting = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    out, _ = run_stage("ppl", tmp_path / "two", lm, write_raw(questions), PET_NPROC_PER_NODE="2", PYTHONPATH=aborting)
    assert len(pq.read_table(out)) == len(questions)


def test_a_mistake_in_params_is_one_line_before_torchrun_starts(tmp_path):
    (tmp_path / "params.yaml").write_text("threads: 0\n")
    flags = ("--raw", "raw", "--scorer", "model", "--checkpoints", "checkpoints", "--ppl", "out")
    command = [sys.executable, "-m", "stages.ppl", *flags]
    variables = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "PET_NPROC_PER_NODE": "2"}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ppl stopped: params.yaml")
    assert "torch" not in done.stderr
