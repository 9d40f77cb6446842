"""Time and memory of merge, cluster, candidates and sample by size: `python -m benchmarks.growth [ROWS:WIDTH ...]`.

Each stage runs as in dvc.yaml, in its own process, on synthetic rows: two sources of distinct Korean-looking text (one
JSON Lines, one Parquet) with the lengths of real instructions and answers, random perplexities, and unit vectors around
160 centres of uneven size.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from benchmarks.measure import machine, table
from benchmarks.synthetic import CENTRES, long_text, pieces, unit_vectors
from stages.decontaminate import LEAKS
from stages.dedup import DUPLICATES
from stages.lib.core.artifacts import read_arrow, write_jsonl, write_table
from stages.ppl import PPL
from stages.rate import RATINGS

ROOT = Path(__file__).parent.parent
SIZES = ((40_000, 768), (375_506, 768), (4_000_000, 256))
CHUNK = 50_000
SOURCE = {"instruction": ["instruction"], "output": "output"}
FLAGS = {
    "merge": "--sources data/sources --raw data/raw.parquet --held_out data/held_out.jsonl "
    "--dropped data/dropped.parquet",
    "cluster": "--raw data/raw.parquet --embeddings data/embeddings.parquet --clusters data/clusters.parquet",
    "candidates": "--raw data/raw.parquet --ppl data/ppl.parquet --clusters data/clusters.parquet "
    "--leaks data/leaks.parquet --duplicates data/duplicates.parquet --ratings data/ratings.parquet "
    "--held_out data/held_out.jsonl --reviews data/reviews.jsonl --candidates data/candidates.parquet",
    "sample": "--arm spread --raw data/raw.parquet --candidates data/candidates.parquet "
    "--embeddings data/embeddings.parquet --samples data/spread.jsonl --sample_parquet data/spread.parquet",
}


class Run(NamedTuple):
    seconds: float
    """By the clock."""
    cpu: float
    """Seconds of all cores together."""
    peak: float
    """Most memory, in GiB."""


def main(sizes: list[str]) -> None:
    chosen = [tuple(map(int, size.split(":"))) for size in sizes] or SIZES
    print(table([row for rows, width in chosen for row in grow(rows, width)]))
    print(f"\n{machine()}")


def grow(rows: int, width: int, length_groups: int = 5, clusters: int = 100) -> list[dict[str, Any]]:
    """Return the table's lines for one size, one per stage."""
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        folder = Path(name)
        write_params(folder, length_groups, clusters)
        in_own_process(write_sources, folder / "data/sources", rows)
        runs = {"merge": run_stage(folder, "merge")}
        in_own_process(write_scores, folder / "data", width)
        write_jsonl(folder / "data/reviews.jsonl", [])
        runs |= {stage: run_stage(folder, stage) for stage in ("cluster", "candidates", "sample")}
    return [
        {
            "stage": stage,
            "rows": rows,
            "width": width if stage == "cluster" else None,
            "seconds": took.seconds,
            "CPU seconds": took.cpu,
            "CPU µs a row": took.cpu / rows * 1e6,
            "peak GiB": took.peak,
        }
        for stage, took in runs.items()
    ]


def write_params(folder: Path, length_groups: int, clusters: int) -> None:
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["merge"]["sources"] = [{"name": name} | SOURCE for name in ("first", "second")]
    params["merge"]["held_out"]["sources"] = ["first"]
    cluster = {"length_groups": length_groups, "clusters": clusters, "algorithm": "minibatch", "seeds": [1]}
    params["cluster"] |= cluster
    params |= {"arms": {"spread": {"method": "spread", "fraction": 0.01, "seed": 1}}, "control": "spread"}
    yaml.dump(params, folder / "params.yaml")


def in_own_process(write: Callable[[Path, int], None], folder: Path, number: int) -> None:
    """Write the inputs in their own process: a process's peak starts at the memory of the parent that forked it."""
    process = get_context("spawn").Process(target=write, args=(folder, number))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{write.__name__}: exit {process.exitcode}")


def write_sources(folder: Path, rows: int) -> None:
    first, second = folder / "first/first.jsonl", folder / "second/second.parquet"
    first.parent.mkdir(parents=True)
    second.parent.mkdir()
    rng = np.random.default_rng(1)
    text = long_text(rng)
    columns = {"instruction": pieces(text, rows, 33, 0.87, rng), "output": pieces(text, rows, 39, 1.5, rng)}
    half = rows // 2
    pairs = zip(columns["instruction"][:half], columns["output"][:half], strict=True)
    write_jsonl(first, (dict(zip(columns, pair, strict=True)) for pair in pairs))
    schema = pa.schema([(name, pa.string()) for name in columns])
    write_table(second, {name: values[half:] for name, values in columns.items()}, schema)


def write_scores(folder: Path, width: int) -> None:
    rng = np.random.default_rng(2)
    ids = read_arrow(folder / "raw.parquet", "id")["id"]
    nll = rng.normal(4, 1, len(ids))
    scores = {"id": ids, "text_hash": ids, "tokens": np.full(len(ids), 20), "nll": nll, "ppl": np.exp(nll)}
    write_table(folder / "ppl.parquet", scores, PPL)
    for name, schema in (("leaks", LEAKS), ("duplicates", DUPLICATES)):
        write_table(folder / f"{name}.parquet", {column: [] for column in schema.names}, schema)
    unrated = {name: pa.nulls(len(ids), RATINGS.field(name).type) for name in RATINGS.names} | {"id": ids}
    write_table(folder / "ratings.parquet", unrated, RATINGS)
    schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), width))])
    centres = rng.normal(size=(CENTRES, width)).astype(np.float32)
    with pq.ParquetWriter(folder / "embeddings.parquet", schema, compression="zstd") as file:
        for start in range(0, len(ids), CHUNK):  # four million vectors do not fit into memory at once
            part = ids[start : start + CHUNK]
            vectors = pa.FixedSizeListArray.from_arrays(unit_vectors(centres, len(part), rng).ravel(), width)
            file.write_table(pa.table([part, vectors], schema=schema))


def run_stage(folder: Path, stage: str) -> Run:
    """Run a stage as DVC would."""
    return run_measured(folder, [sys.executable, "-m", f"stages.{stage}", *FLAGS[stage].split()])


def run_measured(folder: Path, command: list[str]) -> Run:
    """Run a command and wait for it; exit with its log if it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        log = process.stderr.read() if process.stderr else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: {log}")
    per_unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return Run(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * per_unit / 2**30)


if __name__ == "__main__":
    main(sys.argv[1:])
