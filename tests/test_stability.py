"""What stability.json says of a selection can be checked by hand, and by running `cluster` and `sample` instead."""

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_blobs

from stages import cluster, sample
from stages.lib.core.artifacts import read_json, read_table, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import read_params
from stages.lib.selection.cells import Cluster
from stages.merge import RAW
from stages.ppl import PPL
from stages.stability import Params, before, coverage, method_facts, stability, title, varied
from tests.project import ROOT

CELLS = {"length_groups": 3, "clusters": 4, "small_groups": "stop", "algorithm": "lloyd", "init": "hashed"}
CELLS |= {"n_init": 2, "seed": 1}
SETTINGS = {
    "methods": ["spread", "steady", "random", "longest"],
    "fraction": 0.1,
    "seed": 1,
    "variants": {},
    "added": [],
}
VARIANTS = {"seed": {"seed": 2}, "more_clusters": {"clusters": 7}, "more_groups": {"length_groups": 5}}


def parameters(**settings):
    return Params.model_validate({"threads": 1, "cluster": CELLS, "stability": SETTINGS | settings})


@pytest.fixture(scope="module")
def inputs(new_folder, write_raw, write_vectors, write_leaks):
    """Raw, ppl, embeddings and leaks of 400 rows in clouds that touch.

    One has no perplexity, one a repeated instruction, and of six leaks four are dropped.
    """
    vectors, _ = make_blobs(400, n_features=8, centers=6, cluster_std=6.0, random_state=1)
    texts = ["가" * (n * 7 % 90 + 1) + str(n) for n in range(399)]
    raw = write_raw([*texts, texts[5]])
    ids = list(read_table(raw)["id"])
    nll = [None, *np.random.default_rng(2).normal(4, 1, 399)]
    path = new_folder() / "ppl.parquet"
    write_table(path, {"id": ids, "text": ids, "tokens": [9] * 400, "nll": nll, "ppl": nll}, PPL)
    leaks = write_leaks(*((ids[n], "copa", "test", n, "exact", n < 14) for n in range(10, 16)))
    return raw, path, write_vectors(ids, vectors.astype(np.float32)), leaks


@pytest.fixture
def figures(inputs, new_folder):
    def run(**settings):
        path = new_folder() / "stability.json"
        stability(parameters(**settings), *inputs, path)
        return read_json(path)

    return run


def selected(inputs, folder, method, **cells):
    """The rows that the stages `cluster` and `sample` select."""
    raw, ppl, embeddings, leaks = inputs
    params = cluster.Params.model_validate({"threads": 1, "cluster": CELLS | cells})
    cluster.cluster(params, raw, embeddings, folder / "clusters")
    arms = {"arms": {"ours": {"method": method, "fraction": 0.1, "seed": 1}}, "control": "ours"}
    outs = folder / "ours.jsonl", folder / "ours.parquet"
    sample.sample(sample.Params.model_validate(arms), "ours", raw, ppl, folder / "clusters", leaks, *outs)
    why = read_table(outs[1])
    return set(why["id"][why["selected"]])


@pytest.mark.parametrize("method", ["spread", "steady"])
def test_overlap_and_luck_are_those_of_what_cluster_and_sample_select(method, figures, inputs, new_folder):
    found = figures(variants=VARIANTS)["methods"][method]
    base = selected(inputs, new_folder(), method)
    others = {name: selected(inputs, new_folder(), method, **changes) for name, changes in VARIANTS.items()}
    assert found["rows"] == len(base) == 39
    assert found["overlap"] == {name: pytest.approx(len(base & other) / 39) for name, other in others.items()}
    assert found["in_every_variant"] == pytest.approx(len(base.intersection(*others.values())) / 39)
    assert found["instability"] == pytest.approx(1 - found["in_every_variant"])
    assert 0 < found["instability"] < 1 or method == "spread"


def test_churn_is_what_selecting_before_and_after_shows(figures, inputs, new_folder, write_vectors):
    *tables, leaks = inputs
    raw, ppl, embeddings = map(read_table, tables)
    kept = before(0.1, raw, seed=1).index
    assert len(raw) - len(kept) == 36  # a tenth of the 364 rows before
    folder = new_folder()
    write_table(folder / "raw", raw.loc[kept], RAW)
    write_table(folder / "ppl", ppl.loc[kept], PPL)
    vectors = write_vectors(list(raw["id"][kept]), np.stack(embeddings["vector"][kept]))
    earlier = selected((folder / "raw", folder / "ppl", vectors, leaks), new_folder(), "steady")
    now = selected(inputs, new_folder(), "steady")
    churn = figures(added=[0.1])["methods"]["steady"]["churn"]
    assert churn == {"10 %": pytest.approx(1 - len(earlier & now) / len(earlier))}
    assert 0 < churn["10 %"] < 1


def test_methods_without_cells_have_no_luck_and_random_moves_a_row_at_most_for_a_row(figures):
    found = figures(variants=VARIANTS, added=[1, 0.1])["methods"]
    for method in ("random", "longest"):
        assert found[method]["instability"] == 0
        assert found[method]["churn"]["1 rows"] <= 1 / 39


def test_a_variant_of_equal_cells_is_not_fitted_again(figures, caplog):
    with caplog.at_level("INFO", logger="stages"):
        found = figures(variants={"n_init": {"n_init": 5}, "none": {}})["methods"]["spread"]
    assert found["overlap"] == {"n_init": 1, "none": 1}
    assert sum("inertia" in message for message in caplog.messages) == CELLS["length_groups"]


def test_a_variant_that_no_group_has_rows_for_shrinks(figures):
    assert figures(variants={"large": {"clusters": 300}})["methods"]["random"]["overlap"] == {"large": 1}


def test_without_variants_and_additions_coverage_alone_is_told(figures):
    found = figures()
    assert found["expected_overlap"] == pytest.approx(39 / 394)
    assert set(found["methods"]["steady"]) == {"rows", "overlap", "churn", "coverage"}
    assert found["methods"]["steady"]["overlap"] == found["methods"]["steady"]["churn"] == {}


def test_coverage_and_shares_can_be_checked_by_hand():
    rows = pd.DataFrame({"length_group": [0, 0, 0, 1], "cluster": [0, 0, 1, 0], "nll": [1.0, 2.0, 3.0, 6.0]})
    rows["spread"], again = [True, False, False, True], pd.DataFrame({"spread": [True, True, False]}, index=[0, 1, 2])
    assert coverage(rows, rows[rows["spread"]]) == {"cells_l1": 0.5, "nll_wasserstein": pytest.approx(1.0)}
    facts = method_facts("spread", rows, {"seed": again}, {"2 rows": again})
    assert (facts["overlap"], facts["churn"], facts["instability"]) == ({"seed": 0.5}, {"2 rows": 0.5}, 0.5)


def test_the_stage_writes_the_same_bytes_twice(inputs, new_folder):
    one, other = new_folder() / "a", new_folder() / "b"
    for path in (one, other):
        stability(parameters(variants=VARIANTS, added=[2, 0.01]), *inputs, path)
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("added", "name"), [(2, "2 rows"), (0.01, "1 %"), (0.1, "10 %"), (0.29, "29 %"), (0.005, "0.5 %")]
)
def test_an_addition_is_named_as_it_is_written(added, name):
    assert title(added) == name


def test_rows_are_taken_away_by_their_hash_and_more_of_them_hold_the_fewer():
    corpus = pd.DataFrame({"id": [f"row{n}" for n in range(100)]})
    few, many = before(2, corpus, seed=1), before(0.25, corpus, seed=1)
    assert (len(few), len(many)) == (98, 80)
    assert set(many["id"]) < set(few["id"])
    assert set(before(2, corpus[::-1], seed=1)["id"]) == set(few["id"])


def test_more_additions_than_rows_and_less_than_a_row_stop_by_name(figures):
    with pytest.raises(UserError, match=r"stability\.added: 400 rows are added, but there are 400; add fewer"):
        figures(added=[400])
    with pytest.raises(UserError, match=r"stability\.fraction: 0\.001 of 394 candidates is less than a row; raise"):
        figures(fraction=0.001)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 2}, "variants.x.seeds: unknown key"),
        ({"clusters": 0}, "variants.x.clusters"),
        ({"init": "random"}, "init"),
    ],
)
def test_a_variant_that_cluster_would_refuse_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        parameters(variants={"x": changes})


def test_a_wrong_variant_is_told_as_every_mistake_in_params(tmp_path):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert "more_clusters: {clusters: 12}" in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("more_clusters: {clusters: 12}", "more_clusters: {cluster: 12}"), encoding="utf-8")
    with pytest.raises(UserError, match=r"stability\.variants\.more_clusters\.cluster: unknown key \(got 12\)"):
        read_params(Params, path)


def test_the_number_of_starts_is_no_setting_of_hashed_cells():
    hashed, other = (Cluster.model_validate(CELLS | {"init": init}) for init in ("hashed", "k-means++"))
    assert varied(hashed, {"n_init": 9}) == varied(hashed, {})
    assert varied(other, {"n_init": 9}) != varied(other, {})
