"""Several processes of a stage, one run at a time, none left behind."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from stages import embed, ppl, rate
from stages.lib.core import processes
from stages.lib.core.errors import UserError
from stages.lib.core.processes import only_one
from tests import test_rate as rating
from tests.project import ENVIRONMENT, ROOT, run_at_start

SETTINGS = {
    "ppl": {"max_tokens": 128, "add_bos": False, "batch_tokens": 256, "dtype": "fp32"},
    "embed": {"max_tokens": 128, "pooling": "mean", "batch_tokens": 256, "dtype": "fp32"},
    "rate": rating.SETTINGS | {"judge": "likelihood"},
}
NAMES = {"ppl": ("scorer", "ppl"), "embed": ("encoder", "embeddings"), "rate": ("model", "ratings")}
"""What a stage calls its model and its output."""
UNREAD = {"rate": ["leaks", "duplicates", "ledger"]}


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
    stage = "from stages.lib.core.processes import *; stop_when_orphaned(); print(os.getpid(), flush=True); "
    dvc = f"import subprocess; subprocess.run(['sh', '-c', '{sys.executable} -c \"{stage}time.sleep(60)\"; true'])"
    variables = ENVIRONMENT | {"DVC_STAGE": "ppl"}
    started = subprocess.Popen([sys.executable, "-c", dvc], cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)
    orphan = psutil.Process(int(started.stdout.readline()))
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    orphan.wait(timeout=10)
    assert not orphan.is_running()


def start(script, folder, *words, **environment):
    """Start a script that prints process ids once it is ready; return it and them."""
    variables = ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | environment
    started = subprocess.Popen(
        [sys.executable, "-c", script, *words],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return started, started.stdout.readline().split()


AGENT = """
import os, subprocess, sys
variables = os.environ | {"TORCHELASTIC_RUN_ID": "one"}
worker = "from stages.lib.core.processes import *; stop_when_orphaned(); print(os.getpid(), flush=True); time.sleep(60)"
for attempt in range(2):
    command = [sys.executable, "-c", worker]
    workers = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE) for _ in range(2)]
    if attempt == 0:
        print(os.getpid(), *(one.stdout.readline().decode().strip() for one in workers), flush=True)
    [one.wait() for one in workers]
"""
"""Starts two processes, and starts them again as torchrun does."""
DVC = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {AGENT!r}, 'torch.distributed.run'])"


def test_processes_end_when_the_torchrun_that_started_them_is_killed(tmp_path):
    agent, pids = start(AGENT, tmp_path, "torch.distributed.run")
    _, *workers = [psutil.Process(int(pid)) for pid in pids]
    agent.kill()
    agent.wait()
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_a_torchrun_whose_dvc_is_killed_ends_too_and_starts_nothing_again(tmp_path):
    dvc, pids = start(DVC, tmp_path, DVC_STAGE="ppl")
    processes = [psutil.Process(int(pid)) for pid in pids]
    dvc.kill()
    dvc.wait()
    assert psutil.wait_procs(processes, timeout=10)[1] == []


POD = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def test_a_stage_that_shares_no_work_ignores_the_process_group_of_its_pod(tmp_path, jsonl):
    (tmp_path / "sources/life").mkdir(parents=True)
    (tmp_path / "sources/life/life.jsonl").write_bytes(jsonl([{"instruction": "한국의 수도는?", "output": "서울"}]))
    sources = [
        {"name": "life", "instruction": ["instruction"], "output": "output", "source": None, "encoding": "utf-8"}
    ]
    drop = {"empty": True, "duplicate": None, "max_characters": None, "min_korean": None, "min_korean_output": None}
    drop |= {"foreign_script": False, "broken_characters": False, "max_unreadable": 0}
    held_out = {"sources": [], "share": 0.0, "max_rows": 0, "seed": 1}
    YAML().dump({"merge": {"sources": sources, "drop": drop, "held_out": held_out}}, tmp_path / "params.yaml")
    flags = "--sources sources --raw raw.parquet --held_out held_out.jsonl --dropped dropped.parquet"
    command = [sys.executable, "-m", "stages.merge", *flags.split()]
    variables = ENVIRONMENT | POD | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 rows read" in done.stderr  # a second process of a group would log no more than warnings
    assert (tmp_path / "raw.parquet").is_file()


def paths_of(stage, folder, model, raw):
    """Return the path of each flag."""
    own = dict(zip(NAMES[stage], (model, folder / "out.parquet"), strict=True))
    unread = {name: folder / name for name in UNREAD.get(stage, [])}
    return {"raw": raw, "checkpoints": folder / ".checkpoints" / stage} | own | unread


def run_here(stage, folder, model, raw):
    """Run a stage in this process; return its output."""
    module = {"ppl": ppl, "embed": embed, "rate": rate}[stage]
    params = module.Params.model_validate({"threads": 1, stage: SETTINGS[stage]})
    getattr(module, stage)(params, **paths_of(stage, folder, model, raw))
    return folder / "out.parquet"


def command_of(stage, folder, model, raw):
    """Write the params of a stage into a folder; return the command that dvc would run there."""
    folder.mkdir(exist_ok=True)
    YAML().dump({"threads": 1, stage: SETTINGS[stage]}, folder / "params.yaml")
    paths = paths_of(stage, Path(), model, raw)
    flags = [str(word) for name, path in paths.items() for word in (f"--{name}", path)]
    return [sys.executable, "-m", f"stages.{stage}", *flags]


def run_stage(stage, folder, model, raw, code=0, **environment):
    """Run a stage as dvc does; return its output and the log."""
    command = command_of(stage, folder, model, raw)
    variables = ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return folder / "out.parquet", done.stderr


@pytest.mark.parametrize(
    ("stage", "count"),
    [("ppl", 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("embed", 3), ("rate", 2)))],
)
def test_several_processes_write_the_same_bytes_as_one(stage, count, tmp_path, write_raw, questions, lm, encoder):
    raw, model = write_raw([*questions, "A"]), encoder if stage == "embed" else lm
    one = run_here(stage, tmp_path / "one", model, raw)
    several, log = run_stage(stage, tmp_path / "several", model, raw, PET_NPROC_PER_NODE=str(count))
    assert several.read_bytes() == one.read_bytes()
    assert log.count("41 to compute") == 1


DEATH = """
import os, pathlib, signal, time
from stages.lib.scoring import cache

def die(*_):
    while not list(pathlib.Path(".checkpoints/ppl").glob("*.parquet")):
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ.get("RANK") == "1":
    cache.keep_chunks = die
"""


@pytest.mark.slow
def test_a_process_that_dies_fails_the_stage_and_the_others_work_is_kept(tmp_path, write_raw, questions, lm):
    raw = write_raw(questions)
    one = run_here("ppl", tmp_path / "one", lm, raw)
    dying = run_at_start(tmp_path / "site", DEATH)
    out, _ = run_stage("ppl", tmp_path / "two", lm, raw, code=1, PET_NPROC_PER_NODE="2", PYTHONPATH=dying)
    assert not out.exists()
    kept = sum(len(pq.read_table(path)) for path in (tmp_path / "two" / ".checkpoints").glob("ppl/*.parquet"))
    assert 0 < kept < len(questions)
    out, log = run_stage("ppl", tmp_path / "two", lm, raw)
    assert f"{len(questions) - kept} to compute" in log
    assert out.read_bytes() == one.read_bytes()


@pytest.mark.slow
def test_what_stops_every_process_is_said_once(tmp_path, write_raw, questions, lm, new_folder):
    broken = new_folder() / "model"
    shutil.copytree(lm, broken)
    (broken / "config.json").unlink()
    _, log = run_stage("ppl", tmp_path / "two", broken, write_raw(questions), code=1, PET_NPROC_PER_NODE="2")
    assert log.count("ppl stopped: ") == 1


@pytest.mark.parametrize("backend", [{}, {"PET_RDZV_BACKEND": "static"}])
def test_restarts_without_a_new_store_are_refused_before_torchrun_starts(backend, tmp_path):
    YAML().dump({"threads": 1, "ppl": SETTINGS["ppl"]}, tmp_path / "params.yaml")
    flags = ("--raw", "raw", "--scorer", "model", "--checkpoints", "checkpoints", "--ppl", "out")
    variables = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "PET_NPROC_PER_NODE": "2", "PET_MAX_RESTARTS": "3"} | backend
    command = [sys.executable, "-m", "stages.ppl", *flags]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ppl stopped: PET_MAX_RESTARTS is 3 and PET_RDZV_BACKEND is static, so")
    assert "set PET_RDZV_BACKEND=c10d PET_RDZV_ENDPOINT=localhost:29400" in done.stderr


FIRST_DEATH = f"import os\nif os.environ.get('TORCHELASTIC_RESTART_COUNT') == '0':\n{textwrap.indent(DEATH, '    ')}"


def restarting():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    return {"PET_MAX_RESTARTS": "3", "PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": endpoint}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_a_process_that_dies_is_started_again_and_the_bytes_are_the_same(count, tmp_path, write_raw, questions, lm):
    raw = write_raw(questions)
    one = run_here("ppl", tmp_path / "one", lm, raw)
    dying = {"PYTHONPATH": run_at_start(tmp_path / "site", FIRST_DEATH)}
    asked = dying | restarting() | {"PET_NPROC_PER_NODE": str(count)}
    out, log = run_stage("ppl", tmp_path / "several", lm, raw, **asked)
    assert out.read_bytes() == one.read_bytes()
    first, second = map(int, re.findall(r"(\d+) to compute", log))
    assert second < first == len(questions)
    assert log.count("failed (exitcode: -9)") == 1
    assert "Gloo connectFullMesh failed" not in log  # it had read the address of a process that died


SLEEP = """
import os, time

if "RANK" in os.environ:
    from stages.lib.scoring import cache
    write = cache.write_chunk
    cache.write_chunk = lambda *chunk: (write(*chunk), time.sleep(100))[0]
"""


@pytest.mark.slow
def test_a_torchrun_that_is_killed_leaves_no_process_and_its_scores_are_kept(tmp_path, write_raw, questions, lm):
    raw = write_raw(questions)
    one = run_here("ppl", tmp_path / "one", lm, raw)
    paths = run_at_start(tmp_path / "site", SLEEP)
    folder = tmp_path / "two"
    command = command_of("ppl", folder, lm, raw)
    variables = ENVIRONMENT | {"PYTHONPATH": paths, "PET_NPROC_PER_NODE": "2"}
    agent = subprocess.Popen(command, cwd=folder, env=variables, stderr=subprocess.DEVNULL)
    while len(list(folder.glob(".checkpoints/ppl/*.parquet"))) < 2:
        time.sleep(0.1)
    workers = psutil.Process(agent.pid).children(recursive=True)
    assert len(workers) >= 2
    agent.kill()
    agent.wait()
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    kept = sum(len(pq.read_table(path)) for path in folder.glob(".checkpoints/ppl/*.parquet"))
    assert kept > 0
    out, log = run_stage("ppl", folder, lm, raw)
    assert f"{kept} have scores in .checkpoints/ppl, 0 more in the last commit, {40 - kept} to compute" in log
    assert out.read_bytes() == one.read_bytes()


NODE_DEATH = """
import os, signal
from stages.lib.scoring import cache

keep, written = cache.write_chunk, []

def write_and_die(cache_, table):
    path = keep(cache_, table)
    written.append(len(table))
    if sum(written) >= 0.4 * 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return path

cache.CHUNK_SECONDS = -1.0
cache.write_chunk = write_and_die
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ppl", "rate"])
def test_a_machine_that_dies_leaves_its_scores_to_another(stage, tmp_path, write_raw, questions, lm):
    raw, disk = write_raw(questions), tmp_path / "disk"
    one = run_here(stage, tmp_path / "one", lm, raw)
    disk.mkdir()
    dying = run_at_start(tmp_path / "site", NODE_DEATH)
    run_stage(stage, tmp_path / "node1", lm, raw, code=-9, CHECKPOINTS=str(disk), PYTHONPATH=dying)
    kept = sum(len(pq.read_table(path)) for path in disk.glob(f"{stage}/*.parquet"))
    assert 16 <= kept < 30
    assert not list((tmp_path / "node1").rglob("*.parquet"))
    out, log = run_stage(stage, tmp_path / "node2", lm, raw, CHECKPOINTS=str(disk))
    assert f"{kept} have scores in {disk}/{stage}, 0 more in the last commit, {40 - kept} to compute" in log
    assert out.read_bytes() == one.read_bytes()


def test_a_disk_that_is_not_there_stops_the_stage(tmp_path, write_raw, questions, lm):
    missing = str(tmp_path / "unmounted")
    _, log = run_stage("ppl", tmp_path / "node", lm, write_raw(questions), code=1, CHECKPOINTS=missing)
    assert log.startswith(f"ppl stopped: CHECKPOINTS is {missing}, which is no folder here; mount its disk")


AT_EXIT = """
import atexit, os, pathlib, time

def upload():
    time.sleep(1)
    pathlib.Path("tail").write_text("the last losses")

if "RANK" in os.environ:  # not in torchrun
    atexit.register({"0": upload, "1": os.abort}[os.environ["RANK"]])
"""


@pytest.mark.slow
def test_the_tail_of_a_tracker_arrives_and_a_process_that_aborts_at_its_very_end_fails_nothing(
    tmp_path, write_raw, questions, lm
):
    paths = run_at_start(tmp_path / "site", AT_EXIT)
    out, _ = run_stage("ppl", tmp_path / "two", lm, write_raw(questions), PET_NPROC_PER_NODE="2", PYTHONPATH=paths)
    assert len(pq.read_table(out)) == len(questions)
    assert (tmp_path / "two" / "tail").read_text() == "the last losses"


def test_a_mistake_in_params_is_one_line_before_torchrun_starts(tmp_path):
    (tmp_path / "params.yaml").write_text("threads: 0\n")
    flags = ("--raw", "raw", "--scorer", "model", "--checkpoints", "checkpoints", "--ppl", "out")
    command = [sys.executable, "-m", "stages.ppl", *flags]
    variables = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "PET_NPROC_PER_NODE": "2"}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ppl stopped: params.yaml")
    assert "torch" not in done.stderr
