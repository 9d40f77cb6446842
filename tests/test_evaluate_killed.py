"""An evaluation that is killed goes on after its last finished task, to the same bytes."""

import logging
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest
from ruamel.yaml import YAML

from stages import evaluate as stage
from stages.lib.evaluation import lm_eval_model
from tests.project import ENVIRONMENT, ROOT, run_at_start
from tools.wire import closure, path_of

TASKS, SHOTS = ["copa", "sentineg"], [0, 1]
ALL = [(task, shots) for shots in SHOTS for task in TASKS]


def settings(**changes):
    default = {"tasks": TASKS, "shots": SHOTS, "batch": 8, "dtype": "fp32", "quantize": None, "chat": False}
    return {"threads": 1, "evaluate": default | changes}


@pytest.fixture(scope="module")
def places(new_folder, lm, benchmark):
    """Copies of the inputs, which tests may change, and places for the outputs, as the stage names them."""

    def make():
        folder = new_folder()
        model, data = shutil.copytree(lm, folder / "model"), shutil.copytree(benchmark, folder / "benchmark")
        outs = {"checkpoints": folder / "checkpoints", "evaluation": folder / "eval"}
        return {"model": model, "base": model, "benchmark": data} | outs

    return make


def run(places, **changes):
    stage.evaluate(stage.Params.model_validate(settings(**changes)), arm="tiny", **places)
    return (places["evaluation"] / "items.parquet").read_bytes()


@pytest.fixture(scope="module")
def whole(places):
    return run(places())


class InterruptionError(Exception):
    pass


@pytest.fixture
def asked(monkeypatch):
    """The questions that reach the harness; it is interrupted before the question number `asked.stop`."""

    class Asked(list):
        stop = None

    found, plain = Asked(), lm_eval_model.ask

    def ask(model, definitions, task, shots):
        if len(found) == found.stop:
            raise InterruptionError
        found.append((task.removeprefix("kobest_"), shots))
        return plain(model, definitions, task, shots)

    monkeypatch.setattr(lm_eval_model, "ask", ask)
    return found


def interrupt(places, asked, after):
    asked.stop = after
    with pytest.raises(InterruptionError):
        run(places)
    asked.clear()
    asked.stop = None


def test_what_is_finished_is_not_asked_again(places, asked, whole):
    here = places()
    interrupt(here, asked, after=3)
    assert not here["evaluation"].exists()
    assert run(here) == whole
    assert asked == ALL[3:]
    assert list(here["checkpoints"].iterdir()) == []


def test_a_damaged_file_is_asked_again(places, asked, whole, caplog):
    here = places()
    interrupt(here, asked, after=3)
    (damaged,) = here["checkpoints"].glob("*/sentineg-0.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        assert run(here) == whole
    assert asked == [ALL[1], ALL[3]]
    assert "damaged, so it is asked again" in caplog.text


def other_weights(places):
    path = places["model"] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def other_items(places):
    path = places["benchmark"] / "copa" / "test.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] * 6)


@pytest.mark.parametrize(
    "change", [other_weights, other_items, {"batch": 4}, {"shots": [1, 0]}], ids=["weights", "items", "batch", "shots"]
)
def test_answers_of_another_evaluation_are_left_alone(change, places, asked):
    here = places()
    interrupt(here, asked, after=2)
    (kept,) = here["checkpoints"].iterdir()
    if isinstance(change, dict):
        run(here, **change)
    else:
        change(here)
        run(here)
    assert sorted(asked) == sorted(ALL)
    assert len(list(kept.iterdir())) == 2


def test_the_fingerprint_has_everything_that_an_answer_depends_on(places, monkeypatch):
    here = places()
    inputs = {name: here[name] for name in ("model", "base", "benchmark")}

    def find(**changes):
        return stage.evaluation_fingerprint(stage.Params.model_validate(settings(**changes)), "tiny", **inputs)

    def changed(now):
        return {name for name in before if now[name] != before[name]}

    before = find()
    assert find() == before
    assert before["lm_eval"] == version("lm_eval")
    assert changed(find(batch=4)) == changed(find(dtype="bf16")) == {"settings"}
    (here["model"] / "adapter_config.json").write_text("{}")  # now the base counts too
    before = find()
    for path, parts in (
        (here["benchmark"] / "wic" / "dev.jsonl", {"benchmark"}),
        (here["model"] / "tokenizer.json", {"tokenizer", "base"}),
        (here["model"] / "model.safetensors", {"weights", "base"}),
    ):
        before = find()
        path.write_bytes(b" ")
        assert changed(find()) == parts


def test_the_fingerprint_covers_every_module_that_an_answer_depends_on():
    modules = {name for name in closure("stages.evaluate") if not name.startswith("stages.lib.core.")}
    without_effect = {"stages.lib.scoring.fingerprint"}
    assert {path.relative_to(ROOT) for path in stage.CODE} == {path_of(name) for name in modules - without_effect}


KILL = """
import os, signal
from stages.lib.core import artifacts

plain = artifacts.write_table

def write_table(path, columns, schema):
    plain(path, columns, schema)
    if path.name == "copa-1.parquet" and os.environ.get("RANK", "0") == "0":
        os.kill(os.getpid(), signal.SIGKILL)

artifacts.write_table = write_table
"""


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_evaluation_goes_on_to_the_same_bytes(processes, places, asked, whole, tmp_path):
    here = places()
    YAML().dump(settings(), tmp_path / "params.yaml")
    flags = [word for name, place in here.items() for word in (f"--{name}", str(place))]
    paths = run_at_start(tmp_path, KILL)
    done = subprocess.run(
        [sys.executable, "-m", "stages.evaluate", "--arm", "tiny", *flags],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env=ENVIRONMENT | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PET_NPROC_PER_NODE": str(processes)},
    )  # fmt: skip
    assert done.returncode == (-9 if processes == 1 else 1), done.stderr
    assert not here["evaluation"].exists()
    assert run(here) == whole
    assert asked == ALL[3:]
