"""`recipes/local.yaml` on the real files it was tried on: KO_DATA names their folder, ../shared/data without it."""

import os
from pathlib import Path

import pandas as pd
import pytest

from stages import fetch, fetch_benchmark, merge
from stages.lib.artifacts import read_jsonl
from stages.lib.params import read_params
from tests.project import ROOT

DATA = Path(os.environ.get("KO_DATA", ROOT.parent / "shared" / "data"))
RECIPE = ROOT / "recipes/local.yaml"
READ = {
    "chatbot": 11823,
    "welfare": 9547,
    "housing": 1937,
    "human_rights": 1549,
    "word_problems": 3000,
    "sharegpt": 1000,
    "translation": 4440,
}
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real rows: KO_DATA names no folder ({DATA})")


def test_every_real_row_is_raw_held_out_or_dropped(tmp_path: Path) -> None:
    fetch.fetch(read_params(fetch.Params, RECIPE), DATA / "instructions", tmp_path / "sources")
    outs = [tmp_path / name for name in ("raw.parquet", "held_out.jsonl", "dropped.parquet")]
    merge.merge(read_params(merge.Params, RECIPE), tmp_path / "sources", *outs)
    raw, held, dropped = pd.read_parquet(outs[0]), pd.DataFrame(read_jsonl(outs[1])), pd.read_parquet(outs[2])
    counts = sum(table["source"].value_counts().reindex(READ, fill_value=0) for table in (raw, held, dropped))
    assert counts.to_dict() == READ
    assert raw["id"].is_unique
    assert set(dropped["reason"]) == {"duplicate", "empty", "not_korean", "too_long"}


def test_the_real_kobest_has_its_items(tmp_path: Path) -> None:
    fetch_benchmark.fetch_benchmark(read_params(fetch_benchmark.Params, RECIPE), DATA / "kobest", tmp_path / "kobest")
    items = {path.parent.name: len(read_jsonl(path)) for path in (tmp_path / "kobest").glob("*/test.jsonl")}
    assert items == {"boolq": 1404, "copa": 1000, "hellaswag": 500, "sentineg": 397, "wic": 1260}
