"""Copies of the project to run real DVC in."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from tests import forkserver

ROOT = Path(__file__).parent.parent
ARMS = {
    "spread": {"method": "spread", "fraction": 0.1},
    "random": {"method": "random", "fraction": 0.1},
    "full": {"method": "all"},
}
UP_TO_DATE = "Data and pipelines are up to date."
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
}


def run(folder: Path, *command: str, code: int | None = 0, forked: bool = True) -> str:
    """Run a command in a folder; return what it printed. `code` None allows any exit status.

    `forked`: stages start from a fork server. Kills, several processes and other hash seeds need real starts.
    """
    variables = ENVIRONMENT | (forkserver.environment() if forked and command[0] == "dvc" else {})
    done = subprocess.run(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert code is None or done.returncode == code, f"{' '.join(command)} gave {done.returncode}:\n{done.stdout}"
    return done.stdout


def run_at_start(folder: Path, code: str) -> str:
    """Write what every Python process runs when it starts; return the PYTHONPATH with it and with the project."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return os.pathsep.join([str(folder), str(ROOT)])


def ran(log: str) -> set[str]:
    """Return the stages that a `dvc repro` ran (or, with --dry, would run)."""
    return set(re.findall(r"Running stage '([^']+)'", log))


def copy_project(folder: Path) -> Path:
    """Make a git repository of the project's files as they are in the working tree."""
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    run(folder, "git", "init", "-q", "-b", "main")
    commit(folder, "the project")
    return folder


def commit(folder: Path, message: str) -> None:
    (folder / "params.yaml").touch()  # once dvc has staged its lock, git can miss a recent edit of equal size
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "--no-verify", "--allow-empty", "-m", message)


def change_params(folder: Path, **changes: object) -> None:
    """Set values of params.yaml; `__` stands for a dot."""
    yaml = YAML()
    path = folder / "params.yaml"
    params = yaml.load(path)
    for name, value in changes.items():
        *sections, key = name.split("__")
        section = params
        for part in sections:
            section = section[part]
        section[key] = value
    yaml.dump(params, path)


def shrink(folder: Path) -> None:
    """Shorten what takes long - training, rating, tasks, arms - because it does not affect what reruns."""
    change_params(
        folder,
        threads=1,
        portable=False,
        rate__judge="none",
        stability__methods=["random"],
        evaluate__tasks=["copa", "hellaswag"],
        fetch_model__scorer__small__steps=2,
        fetch_model__encoder__small__steps=2,
        fetch_model__base__small__steps=2,
        train__budget__amount=2,
        train__warmup=0,
        evaluate__shots=[0],
        generate__files=[],
        compare__resamples=200,
        compare__randomisations=200,
        arms={name: arm | {"seed": 1} for name, arm in ARMS.items()},
        gates={"macro_f1": {"spread": -1.0}, "held_out_loss": {"spread": 1.0}, "new_leaked_items": 0},
    )
