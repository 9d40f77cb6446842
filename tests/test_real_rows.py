"""`recipes/local.yaml` on the real files it was tried on, in the folder KO_DATA or else ../shared/data."""

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

from benchmarks import contamination
from stages import decontaminate, fetch, fetch_benchmark, merge, stability
from stages.lib.core.artifacts import read_json, read_jsonl, read_table, write_jsonl, write_table
from stages.lib.core.params import read_params
from stages.lib.selection.cells import length_groups
from stages.lib.text.hashing import uniform_hash
from stages.ppl import PPL
from tests.koquality import groups, picks
from tests.project import ROOT
from tests.selecting import make_candidates, select_rows, write_clusters

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
DROPPED = {
    "chatbot": {"duplicate": 82, "not_korean": 14},
    "word_problems": {"duplicate": 16, "empty": 2, "not_korean": 1},
    "sharegpt": {"duplicate": 1, "empty": 24, "not_korean": 13, "output_not_korean": 3, "too_long": 27},
    "translation": {"duplicate": 4},
}
"""As in docs/data.md."""
WIDTH = 64
STABILITY_ROWS = 29_700
METHODS = ["spread", "highest", "middle", "steady", "random", "longest"]
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real rows: {DATA} is not a folder; set KO_DATA")


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Raw, held-out and dropped rows."""
    folder = tmp_path_factory.mktemp("merged")
    sources = folder / "sources"
    fetch.fetch(read_params(fetch.Params, RECIPE), inputs=DATA / "instructions", sources=sources)
    raw, held_out, dropped = (folder / name for name in ("raw.parquet", "held_out.jsonl", "dropped.parquet"))
    params = read_params(merge.Params, RECIPE)
    merge.merge(params, sources=sources, raw=raw, held_out=held_out, dropped=dropped)
    return [raw, held_out, dropped]


def find_leaks(raw: Path, benchmark: Path, leaks: Path) -> pd.DataFrame:
    params = read_params(decontaminate.Params, RECIPE)
    unused = {"embeddings": Path("no.parquet"), "encoder": Path("none")}
    decontaminate.decontaminate(params, raw=raw, benchmark=benchmark, leaks=leaks, **unused)
    return read_table(leaks)


def test_every_real_row_is_raw_held_out_or_dropped(merged: list[Path]) -> None:
    raw, held, dropped = pd.read_parquet(merged[0]), pd.DataFrame(read_jsonl(merged[1])), pd.read_parquet(merged[2])
    counts = sum(table["source"].value_counts().reindex(READ, fill_value=0) for table in (raw, held, dropped))
    assert counts.to_dict() == READ
    assert raw["id"].is_unique
    reasons = dropped.groupby("source")["reason"].value_counts()
    assert {source: reasons[source].to_dict() for source in set(dropped["source"])} == DROPPED


def test_the_real_kobest_has_its_items(tmp_path: Path) -> None:
    params = read_params(fetch_benchmark.Params, RECIPE)
    fetch_benchmark.fetch_benchmark(params, inputs=DATA / "kobest", benchmark=tmp_path / "kobest")
    items = {path.parent.name: len(read_jsonl(path)) for path in (tmp_path / "kobest").glob("*/test.jsonl")}
    assert items == {"boolq": 1404, "copa": 1000, "hellaswag": 500, "sentineg": 397, "wic": 1260}


@pytest.mark.slow
def test_of_a_thousand_clean_rows_at_most_one_is_listed(merged: list[Path], tmp_path: Path) -> None:
    found = find_leaks(merged[0], DATA / "kobest", tmp_path / "leaks")
    assert found["id"].nunique() <= len(read_table(merged[0], "id")) / 1000
    restyled = found["kind"] == "restyled"
    assert len(found[(found["split"] == "test") & ~restyled]) <= 5
    assert found.loc[restyled, "id"].nunique() == 8  # docs/contamination.md
    assert not found.loc[restyled, "drop"].any()


@pytest.fixture(scope="module")
def trained_on_train(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Leaks of the test items if the rows are KoBEST's own train split: all text of an item, and its label."""
    folder = tmp_path_factory.mktemp("train")
    rows = []
    for path in sorted((DATA / "kobest").glob("*/train.jsonl")):
        task = path.parent.name
        write_jsonl(folder / "kobest" / task / "test.jsonl", kobest(task, "test"))
        for number, item in enumerate(read_jsonl(path)):
            text = " ".join(value for value in item.values() if isinstance(value, str))
            rows.append({"id": f"{task} {number}", "source": task, "instruction": text, "output": str(item["label"])})
    write_table(folder / "raw", pd.DataFrame(rows).assign(turns=None), merge.RAW)
    return find_leaks(folder / "raw", folder / "kobest", folder / "leaks")


def kobest(task: str, split: str) -> list[dict[str, object]]:
    return read_jsonl(DATA / "kobest" / task / f"{split}.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize(("task", "column", "count"), [("copa", "premise", 43), ("boolq", "paragraph", 4)])
def test_the_items_that_kobest_itself_repeats_are_found(task, column, count, trained_on_train: pd.DataFrame) -> None:
    known = {item[column] for item in kobest(task, "train")}
    repeated = {number for number, item in enumerate(kobest(task, "test")) if item[column] in known}
    assert len(repeated) == count
    assert repeated <= set(trained_on_train.loc[trained_on_train["task"] == task, "item"])


@pytest.mark.slow
def test_of_sentinegs_negations_the_documented_number_is_found(trained_on_train: pd.DataFrame) -> None:
    of = trained_on_train["task"].eq("sentineg") & trained_on_train["id"].str.startswith("sentineg")
    assert trained_on_train.loc[of, "item"].nunique() == 157


def test_of_short_real_items_every_copy_with_one_letter_replaced_is_found_whatever_its_punctuation() -> None:
    texts = contamination.identifying(DATA / "kobest")
    length = texts["normalised"].str.len()
    short = texts[length.between(7, 12)].reset_index(drop=True)
    assert short["inner"].value_counts().to_dict() == {False: 925, True: 469}
    for form in contamination.FRAMES.values():
        assert all(contamination.are_found(short, contamination.replace_a_letter, form, texts))


@pytest.fixture(scope="module")
def real(merged: list[Path]) -> Path:
    """The folder of raw.parquet, ppl.parquet (from character bigrams) and embeddings.parquet (from hashed bigrams)."""
    folder = merged[0].parent
    corpus = pd.read_parquet(merged[0])
    nll = bigram_nll(corpus["instruction"])
    scores = {"tokens": corpus["instruction"].str.len() - 1, "nll": nll, "ppl": np.exp(nll)}
    write_table(folder / "ppl.parquet", dict.fromkeys(PPL.names, corpus["id"]) | scores, PPL)
    schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), WIDTH))])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(unit_vectors(corpus["instruction"]).ravel()), WIDTH)
    write_table(folder / "embeddings.parquet", {"id": corpus["id"], "vector": vectors}, schema)
    return folder


def bigram_nll(texts: pd.Series) -> pd.Series:
    """Mean nats per character given the one before it; null for one character, and for one text in a hundred."""
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


@pytest.mark.parametrize(("length", "clusters"), [(1, 1), (5, 50), (20, 10)])
def test_allocation_koquality_selects_the_originals_real_rows(
    real: Path, tmp_path: Path, write_leaks, length: int, clusters: int
) -> None:
    raw, ppl = real / "raw.parquet", real / "ppl.parquet"
    corpus, vectors = pd.read_parquet(raw), np.stack(pd.read_parquet(real / "embeddings.parquet")["vector"])
    nearest = np.argmax(vectors @ vectors[:: len(vectors) // clusters][:clusters].T, axis=1)
    groups_of_rows = length_groups(corpus["instruction"].str.len(), length)
    cells = write_clusters(tmp_path / "clusters", list(corpus["id"]), list(nearest), list(groups_of_rows))
    candidates = make_candidates(tmp_path, raw=raw, ppl=ppl, clusters=cells, leaks=write_leaks())

    table = corpus.merge(pd.read_parquet(candidates).drop(columns=["source", "score"]), on="id").rename(
        columns={"ppl": "score"}
    )
    table = table[table["score"].notna()]
    assert 0 < len(table) < len(corpus)
    for fraction in (0.01, 0.05, 0.1):
        for method in ("spread", "highest"):
            settings = {"method": method, "fraction": fraction, "allocation": "koquality", "seed": 1}
            why = select_rows(tmp_path, raw, candidates, {"ours": settings}).why
            assert list(why["id"][why["selected"]]) == list(table["id"].iloc[picks(table, fraction, method)])


@pytest.fixture(scope="module")
def figures(real: Path, write_leaks) -> dict[str, dict]:
    """What `stability` reports of every method at 5 % of 27 thousand rows and a tenth more, by `init`."""
    ids = list(pd.read_parquet(real / "raw.parquet")["id"])
    keep = np.sort(np.argsort(uniform_hash(ids, "27 thousand"))[:STABILITY_ROWS])
    part = real / "part"
    part.mkdir()
    for name in ("raw", "ppl", "embeddings"):
        pq.write_table(pq.read_table(real / f"{name}.parquet").take(keep), part / name)
    cells = write_clusters(part / "clusters", [ids[row] for row in keep], [0] * len(keep))  # they do not matter
    candidates = make_candidates(part, raw=part / "raw", ppl=part / "ppl", clusters=cells, leaks=write_leaks())
    return {init: report_stability(part, candidates, init) for init in ("hashed", "k-means++")}


def report_stability(folder: Path, candidates: Path, init: str) -> dict:
    cells = {"length_groups": 5, "clusters": 20, "small_groups": "stop", "algorithm": "lloyd", "init": init}
    settings = {"methods": METHODS, "fraction": 0.05, "seed": 1, "variants": {}, "added": [2, 0.01, 0.1]}
    params = {"threads": 1, "cluster": cells | {"n_init": 2, "seeds": [1]}, "stability": settings}
    path = folder / f"{init}.json"
    stability.stability(
        stability.Params.model_validate(params),
        raw=folder / "raw",
        candidates=candidates,
        embeddings=folder / "embeddings",
        stability=path,
    )
    found = read_json(path)["methods"]
    for method, report in found.items():
        churn = (f"{name} {value:.3f} " for name, value in report["churn"].items())
        print(f"{init:10} {method:8}", *churn, report["coverage"])
    return found


def test_steady_stays_when_real_rows_are_added_and_spread_does_not(figures: dict[str, dict]) -> None:
    churn = {method: report["churn"] for method, report in figures["hashed"].items()}
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
    assert len({report["rows"] for by_method in figures.values() for report in by_method.values()}) == 1
