"""stability.json agrees with figures worked out by hand, and with what `cluster`, `candidates` and `sample` select."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_blobs

from stages.cluster import Params as ClusterParams
from stages.cluster import cluster
from stages.lib.core.artifacts import read_json, read_table, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import read_params
from stages.lib.selection.cells import Cluster
from stages.merge import RAW
from stages.ppl import PPL
from stages.stability import Params, addition_name, coverage, measure_stability, rows_before, stability, vary
from tests.project import ROOT
from tests.selecting import make_candidates, select_rows, write_clusters, write_ppl

CELLS = {"length_groups": 3, "clusters": 4, "small_groups": "stop", "algorithm": "lloyd", "init": "hashed"}
CELLS |= {"n_init": 2, "seeds": [1]}
SETTINGS = {
    "methods": ["spread", "steady", "random", "longest"],
    "fraction": 0.1,
    "seed": 1,
    "variants": {},
    "added": [],
}
VARIANTS = {"seed": {"seeds": [2]}, "more_clusters": {"clusters": 7}, "more_groups": {"length_groups": 5}}


def parameters(**settings):
    return Params.model_validate({"threads": 1, "cluster": CELLS, "stability": SETTINGS | settings})


class Inputs(NamedTuple):
    raw: Path
    ppl: Path
    embeddings: Path
    leaks: Path


ADDED = 0.1
"""Share of rows to add, for which the last row is the first of its instruction before, but not after."""


@pytest.fixture(scope="module")
def inputs(new_folder, write_raw, write_vectors, write_leaks):
    """400 rows in clusters that touch: one has no perplexity, one repeats an instruction, four of six leaks drop."""
    vectors, _ = make_blobs(400, n_features=8, centers=6, cluster_std=6.0, random_state=1)
    ids = [f"row{n}" for n in range(400)]
    kept = rows_before(ADDED, pd.DataFrame({"id": ids}), seed=1).index
    repeated = next(n for n in range(20, 399) if n not in kept)
    assert 399 in kept
    texts = ["가" * (n * 7 % 90 + 1) + str(n) for n in range(399)]
    nll = [None, *np.random.default_rng(2).normal(4, 1, 399)]
    leaks = write_leaks(*((ids[n], "copa", "test", n, "exact", n < 14) for n in range(10, 16)))
    return Inputs(
        raw=write_raw([*texts, texts[repeated]]),
        ppl=write_ppl(new_folder() / "ppl.parquet", ids, nll),
        embeddings=write_vectors(ids, vectors.astype(np.float32)),
        leaks=leaks,
    )


def run_stability(inputs, folder, **settings):
    """Run the stage on the candidates of these inputs; their cells do not matter to it, so all rows have one."""
    ids = list(read_table(inputs.raw, "id")["id"])
    cells = write_clusters(folder / "clusters", ids, [0] * len(ids))
    table = make_candidates(folder, raw=inputs.raw, ppl=inputs.ppl, clusters=cells, leaks=inputs.leaks)
    path = folder / "stability.json"
    stability(parameters(**settings), raw=inputs.raw, candidates=table, embeddings=inputs.embeddings, stability=path)
    return path


@pytest.fixture
def figures(inputs, new_folder):
    return lambda **settings: read_json(run_stability(inputs, new_folder(), **settings))


def selected(inputs, folder, method, **cells):
    """The rows that the stages `cluster`, `candidates` and `sample` select."""
    params, clusters = ClusterParams.model_validate({"threads": 1, "cluster": CELLS | cells}), folder / "clusters"
    cluster(params, raw=inputs.raw, embeddings=inputs.embeddings, clusters=clusters)
    table = make_candidates(folder, raw=inputs.raw, ppl=inputs.ppl, clusters=clusters, leaks=inputs.leaks)
    arms = {"ours": {"method": method, "fraction": 0.1, "seed": 1}}
    return {row["id"] for row in select_rows(folder, inputs.raw, table, arms).samples}


@pytest.mark.parametrize("method", ["spread", "steady"])
def test_overlap_and_instability_are_those_of_what_the_stages_select(method, figures, inputs, new_folder):
    found = figures(variants=VARIANTS)["methods"][method]
    base = selected(inputs, new_folder(), method)
    others = {name: selected(inputs, new_folder(), method, **changes) for name, changes in VARIANTS.items()}
    assert found["rows"] == len(base) == 39
    assert found["overlap"] == {name: pytest.approx(len(base & other) / 39) for name, other in others.items()}
    assert found["in_every_variant"] == pytest.approx(len(base.intersection(*others.values())) / 39)
    assert found["instability"] == pytest.approx(1 - found["in_every_variant"])
    assert 0 < found["instability"] < 1 or method == "spread"


def test_churn_is_what_the_stages_select_before_and_after(figures, inputs, new_folder, write_vectors):
    raw, ppl, embeddings = (read_table(path) for path in (inputs.raw, inputs.ppl, inputs.embeddings))
    kept = rows_before(ADDED, raw, seed=1).index
    assert len(raw) - len(kept) == 36  # a tenth of the 364 rows before
    folder = new_folder()
    write_table(folder / "raw", raw.loc[kept], RAW)
    write_table(folder / "ppl", ppl.loc[kept], PPL)
    vectors = write_vectors(list(raw["id"][kept]), np.stack(embeddings["vector"][kept]))
    smaller = Inputs(folder / "raw", folder / "ppl", vectors, inputs.leaks)
    found = figures(added=[ADDED], methods=["steady", "highest"])["methods"]
    for method in ("steady", "highest"):
        earlier, now = selected(smaller, new_folder(), method), selected(inputs, new_folder(), method)
        assert found[method]["churn"] == {"10 %": pytest.approx(1 - len(earlier & now) / len(earlier))}
        assert 0 < found[method]["churn"]["10 %"] < 1


def test_a_repeated_instruction_counts_as_the_first_where_the_first_is_not_yet_added(figures, inputs):
    instruction = read_table(inputs.raw)["instruction"]
    assert instruction.iloc[-1] in set(instruction.iloc[:-1])
    found = figures(added=[ADDED], methods=["all"], fraction=1.0)["methods"]["all"]
    # before there are 364 - 1 - 4 candidates, or more if a row without perplexity or a leak is added: one of them goes
    before = rows_before(ADDED, read_table(inputs.raw), seed=1)
    gone = {"row0", "row10", "row11", "row12", "row13"} & set(before["id"])
    assert found["churn"]["10 %"] == pytest.approx(1 / (len(before) - len(gone)))


def test_methods_without_cells_are_stable_and_an_added_row_replaces_at_most_one_row(figures):
    found = figures(variants=VARIANTS, added=[1, 0.1])["methods"]
    for method in ("random", "longest"):
        assert found[method]["instability"] == 0
        assert found[method]["churn"]["1 rows"] <= 1 / 39


def test_a_variant_with_equal_cells_is_not_fitted_again(figures, caplog):
    with caplog.at_level("INFO", logger="stages"):
        found = figures(variants={"n_init": {"n_init": 5}, "none": {}})["methods"]["spread"]
    assert found["overlap"] == {"n_init": 1, "none": 1}
    assert sum("inertia" in message for message in caplog.messages) == CELLS["length_groups"]


def test_a_variant_with_more_clusters_than_rows_shrinks(figures):
    assert figures(variants={"large": {"clusters": 300}})["methods"]["random"]["overlap"] == {"large": 1}


def test_without_variants_and_additions_only_coverage_is_reported(figures):
    found = figures()
    assert found["expected_overlap"] == pytest.approx(39 / 394)
    assert set(found["methods"]["steady"]) == {"rows", "overlap", "churn", "coverage"}
    assert found["methods"]["steady"]["overlap"] == found["methods"]["steady"]["churn"] == {}


def test_coverage_and_shares_can_be_checked_by_hand():
    rows = pd.DataFrame({"length_group": [0, 0, 0, 1], "cluster": [0, 0, 1, 0], "nll": [1.0, 2.0, 3.0, 6.0]})
    rows["spread"], again = [True, False, False, True], pd.DataFrame({"spread": [True, True, False]}, index=[0, 1, 2])
    assert coverage(rows, rows[rows["spread"]]) == {"cells_l1": 0.5, "nll_wasserstein": pytest.approx(1.0)}
    facts = measure_stability("spread", rows, {"seed": again}, {"2 rows": again})
    assert (facts["overlap"], facts["churn"], facts["instability"]) == ({"seed": 0.5}, {"2 rows": 0.5}, 0.5)


def test_the_stage_writes_the_same_bytes_twice(inputs, new_folder):
    one, other = (run_stability(inputs, new_folder(), variants=VARIANTS, added=[2, 0.01]) for _ in range(2))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("added", "name"), [(2, "2 rows"), (0.01, "1 %"), (0.1, "10 %"), (0.29, "29 %"), (0.005, "0.5 %")]
)
def test_an_addition_is_named_as_in_params(added, name):
    assert addition_name(added) == name


def test_rows_are_taken_away_by_their_hash_and_a_larger_addition_contains_a_smaller():
    corpus = pd.DataFrame({"id": [f"row{n}" for n in range(100)]})
    few, many = rows_before(2, corpus, seed=1), rows_before(0.25, corpus, seed=1)
    assert (len(few), len(many)) == (98, 80)
    assert set(many["id"]) < set(few["id"])
    assert set(rows_before(2, corpus[::-1], seed=1)["id"]) == set(few["id"])


def test_adding_all_rows_and_selecting_less_than_one_row_stop_the_stage(figures):
    with pytest.raises(UserError, match=r"stability\.added: 400 rows of 400 leave none before; add fewer"):
        figures(added=[400])
    with pytest.raises(UserError, match=r"stability\.fraction: 0\.001 of 394 candidates is less than one row; raise"):
        figures(fraction=0.001)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 2}, "variants.x.seed: unknown key"),
        ({"seeds": [2, 3]}, r"variants.x.seeds: a variant is one partition \(got \[2, 3\]\)"),
        ({"clusters": 0}, "variants.x.clusters"),
        ({"init": "random"}, "init"),
    ],
)
def test_a_variant_must_be_valid_for_cluster(changes, words):
    with pytest.raises(ValueError, match=words):
        parameters(variants={"x": changes})


def test_a_wrong_variant_is_named_like_every_mistake_in_params(tmp_path):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert "more_clusters: {clusters: 12}" in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("more_clusters: {clusters: 12}", "more_clusters: {cluster: 12}"), encoding="utf-8")
    with pytest.raises(UserError, match=r"stability\.variants\.more_clusters\.cluster: unknown key \(got 12\)"):
        read_params(Params, path)


@pytest.mark.parametrize("method", ["coverage", "deita", "threshold"])
def test_a_method_that_needs_more_than_cells_and_perplexities_is_refused(method):
    with pytest.raises(ValueError, match=f"methods: {method} needs vectors or bounds, which this stage does not give"):
        parameters(methods=["spread", method])


def test_the_number_of_starts_does_not_matter_to_hashed_cells():
    hashed, other = (Cluster.model_validate(CELLS | {"init": init}) for init in ("hashed", "k-means++"))
    assert vary(hashed, {"n_init": 9}) == vary(hashed, {})
    assert vary(other, {"n_init": 9}) != vary(other, {})
