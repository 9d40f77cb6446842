"""Compute the metrics of a commit again, in a separate folder, from what its stages wrote.

An edited metric passes `dvc repro --dry` once `dvc commit -f` has written its md5 to dvc.lock. Running `compare` and
`report` again finds it. Their inputs are read as they were committed, pulled or not (`tools.revisions`).
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.compare import Params as CompareParams
from stages.compare import compare
from stages.lib.core.errors import UserError
from stages.lib.core.params import PARAMS, read_params
from stages.report import Params as ReportParams
from stages.report import report
from tools.revisions import read_at

METRICS = Path("metrics")


def false_metrics(revision: str) -> list[str]:
    """Return the files of metrics/ that differ from what the outputs of this commit's stages give.

    Raises UserError if one of these outputs is missing or damaged, or the metrics cannot be computed from them.
    """
    with TemporaryDirectory(prefix="metrics-") as name:
        folder = Path(name)
        copy(PARAMS, revision, folder)
        settings = read_params(ReportParams, folder / PARAMS)
        for path in inputs_of(list(settings.arms), list(settings.prefer)):
            copy(path, revision, folder)
        compute_metrics(folder)
        files = [path for path in (folder / METRICS).rglob("*") if path.is_file()]
        computed = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return sorted(
        path for path in {*computed, *files_at(revision)} if committed(Path(path), revision) != computed.get(path)
    )


def files_at(revision: str) -> list[str]:
    """Return the files of metrics/ that git has at a commit, without those that only keep a folder."""
    words = ["git", "ls-tree", "-r", "--name-only", "-z", revision, "--", str(METRICS)]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0")
    return [path for path in listed if path and not path.endswith(".gitkeep")]


def copy(path: Path, revision: str, folder: Path) -> None:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(read_at(str(path), revision))


def committed(path: Path, revision: str) -> bytes | None:
    try:
        return read_at(str(path), revision)
    except UserError:
        return None


def inputs_of(arms: list[str], preferences: list[str]) -> Iterator[Path]:
    """Yield what `compare` and `report` read, except metrics."""
    yield from map(Path, ("data/leaks.parquet", "models/hub/base.json"))
    yield from map(Path, ("data/profile.json", "data/stability.json", "data/audit.json"))
    for model in ("base", *arms, *preferences):
        yield from (Path(f"data/eval/{model}/items.parquet"), Path(f"data/answers/{model}.parquet"))
    for trained in (*arms, *preferences):
        yield from (Path(f"data/train/{trained}.json"), Path(f"data/train/{trained}.parquet"))
    yield from (Path(f"data/samples/{arm}.parquet") for arm in arms)
    yield from (Path(f"data/prefer/{name}.parquet") for name in preferences)


def compute_metrics(folder: Path) -> None:
    """Run `compare` for every arm, preference and the base, then `report`, as dvc.yaml does, inside a folder."""
    data, metrics = folder / "data", folder / METRICS
    comparing, reporting = (read_params(model, folder / PARAMS) for model in (CompareParams, ReportParams))
    arms, items = metrics / "arms", metrics / "items"
    all_have = {"evaluations": data / "eval", "answers": data / "answers", "leaks": data / "leaks.parquet"}
    trained = {"training": data / "train", "base_json": folder / "models/hub/base.json"}
    own: dict[str, dict[str, Any]] = {"base": {}}
    own |= {arm: trained | {"samples": data / "samples"} for arm in reporting.arms}
    own |= {
        name: trained | {"prefer_parquet": data / f"prefer/{name}.parquet", "control": one.arm}
        for name, one in reporting.prefer.items()
    }
    for model, inputs in own.items():
        compare(comparing, model, metrics=arms / f"{model}.json", items=items / f"{model}.json", **all_have | inputs)
    corpus = {name: data / f"{name}.json" for name in ("profile", "stability", "audit")}
    report(reporting, arms, items, **corpus, summary=metrics / "summary.json", plots=metrics / "plots")
