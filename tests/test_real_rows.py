"""`recipes/local.yaml` on the real files it was tried on: KO_DATA names their folder, ../shared/data without it."""

import math
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer

from stages import decontaminate, fetch, fetch_benchmark, merge, sample, stability
from stages.cluster import CLUSTERS
from stages.lib.core.artifacts import read_json, read_jsonl, read_table, write_jsonl, write_table
from stages.lib.core.params import read_params
from stages.lib.selection.cells import length_groups
from stages.lib.text.hashing import uniform_hash
from stages.ppl import PPL
from tests.koquality import groups, picks
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
WIDTH = 64
INPUTS = ("raw", "ppl", "embeddings")
METHODS = ["spread", "highest", "middle", "steady", "random", "longest"]
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real rows: KO_DATA names no folder ({DATA})")


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Raw, held-out and dropped rows."""
    folder = tmp_path_factory.mktemp("merged")
    fetch.fetch(read_params(fetch.Params, RECIPE), DATA / "instructions", folder / "sources")
    outs = [folder / name for name in ("raw.parquet", "held_out.jsonl", "dropped.parquet")]
    merge.merge(read_params(merge.Params, RECIPE), folder / "sources", *outs)
    return outs


def leaks_of(raw: Path, benchmark: Path, leaks: Path) -> pd.DataFrame:
    decontaminate.decontaminate(read_params(decontaminate.Params, RECIPE), raw, benchmark, leaks)
    return read_table(leaks)


def test_every_real_row_is_raw_held_out_or_dropped(merged: list[Path]) -> None:
    raw, held, dropped = pd.read_parquet(merged[0]), pd.DataFrame(read_jsonl(merged[1])), pd.read_parquet(merged[2])
    counts = sum(table["source"].value_counts().reindex(READ, fill_value=0) for table in (raw, held, dropped))
    assert counts.to_dict() == READ
    assert raw["id"].is_unique
    assert set(dropped["reason"]) == {"duplicate", "empty", "not_korean", "too_long"}


def test_the_real_kobest_has_its_items(tmp_path: Path) -> None:
    fetch_benchmark.fetch_benchmark(read_params(fetch_benchmark.Params, RECIPE), DATA / "kobest", tmp_path / "kobest")
    items = {path.parent.name: len(read_jsonl(path)) for path in (tmp_path / "kobest").glob("*/test.jsonl")}
    assert items == {"boolq": 1404, "copa": 1000, "hellaswag": 500, "sentineg": 397, "wic": 1260}


def test_of_a_thousand_innocent_rows_at_most_one_is_listed(merged: list[Path], tmp_path: Path) -> None:
    found = leaks_of(merged[0], DATA / "kobest", tmp_path / "leaks")
    assert found["id"].nunique() <= len(read_table(merged[0], "id")) / 1000
    assert len(found[found["split"] == "test"]) <= 5


@pytest.fixture(scope="module")
def trained_on_train(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Leaks of the test items, where the rows are KoBEST's own train split: all text of an item, and its label."""
    folder = tmp_path_factory.mktemp("train")
    rows = []
    for path in sorted((DATA / "kobest").glob("*/train.jsonl")):
        task = path.parent.name
        write_jsonl(folder / "kobest" / task / "test.jsonl", kobest(task, "test"))
        for number, item in enumerate(read_jsonl(path)):
            text = " ".join(value for value in item.values() if isinstance(value, str))
            rows.append({"id": f"{task} {number}", "source": task, "instruction": text, "output": str(item["label"])})
    write_table(folder / "raw", pd.DataFrame(rows), merge.RAW)
    return leaks_of(folder / "raw", folder / "kobest", folder / "leaks")


def kobest(task: str, split: str) -> list[dict[str, object]]:
    return read_jsonl(DATA / "kobest" / task / f"{split}.jsonl")


@pytest.mark.parametrize(("task", "column", "count"), [("copa", "premise", 43), ("boolq", "paragraph", 4)])
def test_the_items_that_kobest_itself_repeats_are_found(task, column, count, trained_on_train: pd.DataFrame) -> None:
    known = {item[column] for item in kobest(task, "train")}
    repeated = {number for number, item in enumerate(kobest(task, "test")) if item[column] in known}
    assert len(repeated) == count
    assert repeated <= set(trained_on_train.loc[trained_on_train["task"] == task, "item"])


def test_of_sentinegs_negations_the_share_that_the_readme_states_is_found(trained_on_train: pd.DataFrame) -> None:
    of = trained_on_train["task"].eq("sentineg") & trained_on_train["id"].str.startswith("sentineg")
    assert trained_on_train.loc[of, "item"].nunique() == 154


@pytest.fixture(scope="module")
def real(merged: list[Path]) -> Path:
    """raw.parquet of the real rows, and stand-ins for ppl.parquet (bigrams of characters) and embeddings.parquet."""
    folder = merged[0].parent
    corpus = pd.read_parquet(merged[0])
    nll = bigram_nll(corpus["instruction"])
    columns = {"id": corpus["id"], "text": corpus["id"], "tokens": corpus["instruction"].str.len() - 1, "nll": nll}
    write_table(folder / "ppl.parquet", columns | {"ppl": np.exp(nll)}, PPL)
    schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), WIDTH))])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(unit_vectors(corpus["instruction"]).ravel()), WIDTH)
    write_table(folder / "embeddings.parquet", {"id": corpus["id"], "vector": vectors}, schema)
    return folder


def bigram_nll(texts: pd.Series) -> pd.Series:
    """Mean nats per character after the one before it; none for a text of one character, and for one in a hundred."""
    pairs = Counter(pair for text in texts for pair in pairwise(text))
    firsts = Counter(first for first, _ in pairs.elements())
    cost = {pair: math.log(firsts[pair[0]] / count) for pair, count in pairs.items()}
    nll = [sum(cost[pair] for pair in pairwise(text)) / (len(text) - 1) if len(text) > 1 else None for text in texts]
    return pd.Series(nll, dtype=float).mask(uniform_hash(list(texts), "no perplexity") < 0.01)


def unit_vectors(texts: pd.Series) -> np.ndarray:
    words = HashingVectorizer(analyzer="char", ngram_range=(2, 2), n_features=2**13).fit_transform(texts)
    vectors = TruncatedSVD(WIDTH, n_iter=2, random_state=0).fit_transform(words)
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 5, 10, 20])
def test_length_groups_of_real_rows_are_those_of_koquality(real: Path, count: int) -> None:
    lengths = pd.read_parquet(real / "raw.parquet")["instruction"].str.len()
    assert length_groups(lengths, count).tolist() == groups(lengths, count)


@pytest.mark.parametrize("clusters", [1, 10, 50])
@pytest.mark.parametrize("length", [1, 5, 10, 20])
def test_allocation_koquality_takes_the_originals_real_rows(
    real: Path, tmp_path: Path, write_leaks, length: int, clusters: int
) -> None:
    no_leaks = write_leaks()
    raw, vectors = (
        pd.read_parquet(real / "raw.parquet"),
        np.stack(pd.read_parquet(real / "embeddings.parquet")["vector"]),
    )
    nearest = np.argmax(vectors @ vectors[:: len(vectors) // clusters][:clusters].T, axis=1)
    cells = {"id": raw["id"], "length_group": length_groups(raw["instruction"].str.len(), length), "cluster": nearest}
    write_table(tmp_path / "clusters", cells | {"distance": np.zeros(len(raw))}, CLUSTERS)
    files = real / "raw.parquet", real / "ppl.parquet", tmp_path / "clusters"
    table = raw.merge(pd.read_parquet(files[1]), on="id").merge(pd.read_parquet(files[2]), on="id")
    table = table.rename(columns={"ppl": "score"})[table["ppl"].notna()]
    assert 0 < len(table) < len(raw)
    for fraction in (0.01, 0.05, 0.1):
        for method in ("spread", "highest"):
            settings = {"method": method, "fraction": fraction, "allocation": "koquality", "seed": 1}
            params = sample.Params.model_validate({"arms": {"ours": settings}, "control": "ours"})
            sample.sample(params, "ours", *files, no_leaks, tmp_path / "ours.jsonl", tmp_path / "ours.parquet")
            why = pd.read_parquet(tmp_path / "ours.parquet", columns=["id", "selected"])
            assert list(why["id"][why["selected"]]) == list(table["id"].iloc[picks(table, fraction, method)])


@pytest.fixture(scope="module")
def figures(real: Path, write_leaks) -> dict[str, dict]:
    """What `stability` says of every method at 5 % of 27 thousand rows and a tenth more, by how clusters start."""
    keep = np.sort(np.argsort(uniform_hash(list(pd.read_parquet(real / "raw.parquet")["id"]), "27 thousand"))[:29700])
    for name in INPUTS:
        pq.write_table(pq.read_table(real / f"{name}.parquet").take(keep), real / f"{name}_27000")
    found = {}
    for init in ("hashed", "k-means++"):
        cells = {"length_groups": 5, "clusters": 20, "small_groups": "stop", "algorithm": "lloyd", "init": init}
        settings = {"methods": METHODS, "fraction": 0.05, "seed": 1, "variants": {}, "added": [2, 0.01, 0.1]}
        params = {"threads": 1, "cluster": cells | {"n_init": 2, "seed": 1}, "stability": settings}
        out = real / f"{init}.json"
        tables = [real / f"{name}_27000" for name in INPUTS]
        stability.stability(stability.Params.model_validate(params), *tables, write_leaks(), out)
        found[init] = read_json(out)["methods"]
        for method, facts in found[init].items():
            print(
                f"{init:10} {method:8}",
                *(f"{name} {value:.3f} " for name, value in facts["churn"].items()),
                facts["coverage"],
            )
    return found


def test_steady_stays_when_real_rows_are_added_and_spread_does_not(figures: dict[str, dict]) -> None:
    churn = {method: facts["churn"] for method, facts in figures["hashed"].items()}
    assert churn["steady"]["2 rows"] <= 0.01
    assert churn["steady"]["1 %"] <= 0.1
    assert churn["steady"]["10 %"] <= 0.2
    assert churn["spread"]["1 %"] >= 0.5
    assert churn["random"]["2 rows"] <= 2 / figures["hashed"]["random"]["rows"]
    assert figures["k-means++"]["steady"]["churn"]["2 rows"] >= churn["steady"]["2 rows"]


def test_steady_covers_real_cells_five_times_better_than_random_and_their_perplexities_better(
    figures: dict[str, dict],
) -> None:
    steady, random = (figures["hashed"][method]["coverage"] for method in ("steady", "random"))
    assert 5 * steady["cells_l1"] <= random["cells_l1"]
    assert steady["nll_wasserstein"] < random["nll_wasserstein"]


def test_every_arm_of_real_rows_has_one_size(figures: dict[str, dict]) -> None:
    assert len({facts["rows"] for by_method in figures.values() for facts in by_method.values()}) == 1
