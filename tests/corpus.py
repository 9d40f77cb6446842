"""A small corpus as `profile` reads it: ten rows of two sources, three held out, four dropped."""

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages import profile as profiling
from stages.candidates import CANDIDATES
from stages.lib.core.artifacts import read_json, write_json, write_jsonl, write_table
from stages.merge import DROPPED, RAW

SIZES = {"scorer": 100, "encoder": 10, "base": 1000}
"""Parameters that every token is multiplied with, by role."""
IDS = [f"r{n}" for n in range(10)]
SOURCES = ["life"] * 6 + ["faq"] * 4
PPLS = [None, *(float(2**n) for n in range(1, 10))]
CELLS = {"length_group": [0] * 5 + [1] * 5, "cluster": [0, 0, 1, 1, 1] * 2, "distance": [0.5] * 10}


def parquet(rows: list[dict]) -> bytes:
    """Return a Parquet file of these rows."""
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def write_corpus(folder: Path, leaks: Path) -> dict[str, Path]:
    """Write all that `profile` reads; return the path of each by the name of the parameter."""
    write_table(
        folder / "raw",
        {
            "id": IDS,
            "source": SOURCES,
            "instruction": IDS,
            "output": IDS,
            "turns": [None] * len(IDS),
            "final": [None] * len(IDS),
        },
        RAW,
    )
    held = [{"id": f"h{n}", "source": "life", "instruction": "가", "output": "나"} for n in range(3)]
    write_jsonl(folder / "held_out", held)
    dropped = {
        "id": list("abcd"),
        "source": ["life", "life", "faq", "chat"],
        "file": ["a.jsonl"] * 4,
        "line": [1, 2, 3, 4],
        "reason": ["empty", "duplicate", "empty", "empty"],
        "text": list("abcd"),
    }
    write_table(folder / "dropped", dropped, DROPPED)
    rows = {"id": IDS, "source": SOURCES, "tokens": [0] + [5] * 9, "ppl": PPLS} | CELLS
    write_candidates(folder / "candidates", **rows)
    for role in SIZES:
        write_size(folder / f"{role}_json", role)
    names = ("raw", "held_out", "dropped", "candidates", "scorer_json", "encoder_json")
    return {name: folder / name for name in names} | {"leaks": leaks}


def write_candidates(path: Path, **columns: Any) -> Path:
    """Write candidates.parquet; the columns that `profile` does not read are empty."""
    write_table(path, pd.DataFrame(columns).reindex(columns=CANDIDATES.names), CANDIDATES)
    return path


def write_size(path: Path, role: str) -> Path:
    write_json(path, {"parameters": 5000, "multiplied": SIZES[role], "layers": 2, "width": 4})
    return path


def run_profile(paths: dict[str, Path], out: Path) -> Any:
    profiling.profile(profiling.Params(), profile=out, **paths)
    return read_json(out)
