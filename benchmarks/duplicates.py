"""Time and memory of `dedup` by size: `python -m benchmarks.duplicates [PART ...]`.

Each line runs the stage as in dvc.yaml, in its own process, on synthetic rows: distinct Korean-looking text with the
lengths of real instructions and answers. 2 % of the rows copy an earlier one with another ending, and 1 % repeat one.
With a `shared instruction`, a quarter of the rows have the same 300 letters and 90 of their own. `semantic`
compares vectors around 160 centres of uneven size: all pairs, or those at the nearest centroids.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from benchmarks.growth import CHUNK, ROOT, in_own_process, run_measured
from benchmarks.lengths import ALL
from benchmarks.measure import machine, table
from benchmarks.synthetic import CENTRES, pieces, unit_vectors
from stages.lib.core.artifacts import read_arrow, write_table
from stages.merge import RAW

LEXICAL = {"ngram": 5, "listed_from": 0.7, "dropped_from": 0.8}
SEMANTIC = {"listed_from": 0.8, "dropped_from": 0.9, "exact_rows": 50_000}
WIDTH = 256
COPIED, REPEATED = 0.02, 0.01
LETTERS, MOST_LETTERS = 100, 200_000_000
"""Letters of the text that rows are cut from, per row and at most: so many that few rows overlap by chance."""
SHARED_LETTERS, OWN_LETTERS, SHARING = 300, 90, 0.25
"""So that rows with the shared instruction have a similarity of 0.62, and nearly all pairs of them share a bucket."""
FLAGS = "--raw data/raw.parquet --embeddings data/embeddings.parquet --duplicates data/duplicates.parquet"


class Part(NamedTuple):
    rows: int
    kind: str
    is_shared: bool = False
    """Whether a quarter of the rows has one instruction."""


PARTS = {
    "lexical": Part(ALL, "lexical"),
    "shared": Part(ALL, "lexical", True),
    "millions": Part(4_000_000, "lexical"),
    "exact": Part(33_000, "semantic"),
    "centroids": Part(ALL, "semantic"),
}


def main(names: list[str]) -> None:
    print(table([measure(PARTS[name]) for name in names or PARTS]))
    print(f"\n{machine()}")


def measure(part: Part) -> dict[str, Any]:
    """Return a line of the table."""
    with tempfile.TemporaryDirectory(prefix="duplicates-") as name:
        folder = Path(name)
        write_params(folder, part.kind)
        in_own_process(write_shared if part.is_shared else write_rows, folder / "data", part.rows)
        if part.kind == "semantic":
            in_own_process(write_vectors, folder / "data", WIDTH)
        took = run_measured(folder, [sys.executable, "-m", "stages.dedup", *FLAGS.split()])
        pairs = read_arrow(folder / "data/duplicates.parquet", "drop")["drop"]
    what = f"{part.kind}{', shared instruction' if part.is_shared else ''}"
    return {
        "rows": part.rows,
        "pairs": what,
        "seconds": took.seconds,
        "CPU seconds": took.cpu,
        "peak GiB": took.peak,
        "listed": len(pairs),
    }


def write_params(folder: Path, kind: str) -> None:
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["threads"] = 1
    params["dedup"] = {"lexical": None, "semantic": None} | {kind: LEXICAL if kind == "lexical" else SEMANTIC}
    yaml.dump(params, folder / "params.yaml")


def write_rows(folder: Path, rows: int, prefix: str = "") -> None:
    rng = np.random.default_rng(1)
    letters = rng.integers(0xAC00, 0xD7A4, min(LETTERS * rows, MOST_LETTERS), dtype="<u4")
    text = letters.tobytes().decode("utf-32-le")
    columns = {"instruction": pieces(text, rows, 33, 0.87, rng), "output": pieces(text, rows, 39, 1.5, rng)}
    for row in np.flatnonzero(rng.random(rows) < COPIED + REPEATED)[1:]:
        of = int(rng.integers(row))
        ending = " 그렇습니다" if rng.random() < COPIED / (COPIED + REPEATED) else "."
        columns["instruction"][row], columns["output"][row] = columns["instruction"][of], columns["output"][of] + ending
    for row in np.flatnonzero(rng.random(rows) < SHARING) if prefix else ():
        start = int(rng.integers(len(text) - OWN_LETTERS))
        columns["instruction"][row], columns["output"][row] = prefix, text[start : start + OWN_LETTERS]
    columns |= {"id": [f"{row:016x}" for row in range(rows)], "source": ["made up"] * rows}
    nothing = {field.name: pa.nulls(rows, field.type) for field in RAW}
    write_table(folder / "raw.parquet", nothing | columns, RAW)


def write_shared(folder: Path, rows: int) -> None:
    letters = np.random.default_rng(3).integers(0xAC00, 0xD7A4, SHARED_LETTERS, dtype="<u4")
    write_rows(folder, rows, letters.tobytes().decode("utf-32-le"))


def write_vectors(folder: Path, width: int) -> None:
    rng = np.random.default_rng(2)
    ids = read_arrow(folder / "raw.parquet", "id")["id"]
    schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), width))])
    centres = rng.normal(size=(CENTRES, width)).astype(np.float32)
    with pq.ParquetWriter(folder / "embeddings.parquet", schema, compression="zstd") as file:
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            vectors = pa.FixedSizeListArray.from_arrays(unit_vectors(centres, len(part), rng).ravel(), width)
            file.write_table(pa.table([part, vectors], schema=schema))


if __name__ == "__main__":
    main(sys.argv[1:])
