"""The corpus is cut once for each seed, and an arm selects from its own cut only."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_blobs

from stages.candidates import CANDIDATES
from stages.cluster import CLUSTERS, Params, cluster
from stages.lib.core.artifacts import read_arrow, read_table
from stages.lib.core.errors import UserError
from stages.lib.selection.methods import METHODS
from stages.lib.selection.partitions import columns_of, count_partitions, take_partition, with_partitions
from stages.lib.statistics import replicates
from stages.sample import Arm, sample
from stages.sample import Params as SampleParams
from tests.selecting import arm_of, make_candidates, select_rows, write_clusters, write_ppl

ROWS = 240
CELLS = {"length_groups": 2, "clusters": 4, "small_groups": "stop", "algorithm": "lloyd", "init": "hashed", "n_init": 2}
WAYS = [("lloyd", "hashed"), ("lloyd", "k-means++"), ("minibatch", "hashed")]


@given(st.integers(1, 12), st.data())
def test_a_partition_is_found_again_among_others(partitions, data):
    schema = with_partitions(CANDIDATES, partitions)
    rows = pd.DataFrame({name: [number, -number] for number, name in enumerate(schema.names)})
    assert count_partitions(rows) == count_partitions(reversed(schema.names)) == partitions
    taken = data.draw(st.integers(0, partitions - 1))
    found = take_partition(rows, taken)
    assert sorted(found) == sorted(CANDIDATES.names)
    suffix = f"_{taken}" if taken else ""
    for name in CANDIDATES.names:
        column = f"{name}{suffix}" if name in ("cluster", "distance") else name
        assert list(found[name]) == list(rows[column])


def test_the_columns_of_one_partition_are_those_of_before_and_others_follow_them():
    assert with_partitions(CLUSTERS, 1) == CLUSTERS
    names = with_partitions(CANDIDATES, 3).names
    place = names.index("cluster")
    assert names[place : place + 6] == columns_of(3)
    assert columns_of(3) == ["cluster", "distance", "cluster_1", "distance_1", "cluster_2", "distance_2"]
    assert [name for name in names if name in CANDIDATES.names] == CANDIDATES.names
    assert with_partitions(CLUSTERS, 2).field("cluster_1").type == CLUSTERS.field("cluster").type


@pytest.fixture(scope="module")
def vectors():
    return make_blobs(ROWS, n_features=8, centers=6, cluster_std=6.0, random_state=3)[0].astype(np.float32)


@pytest.fixture(scope="module")
def inputs(vectors, write_raw, write_vectors):
    """Rows whose clusters touch, so that every seed finds others; instructions have 1 to 240 characters."""
    ids = [f"row{n}" for n in range(ROWS)]
    return {"raw": write_raw(["가" * (n + 1) for n in range(ROWS)]), "embeddings": write_vectors(ids, vectors)}


@pytest.fixture(scope="module")
def cut(inputs, new_folder):
    """Run `cluster` with these seeds."""

    def run(seeds, algorithm="lloyd", init="hashed"):
        path = new_folder() / "clusters.parquet"
        changes = {"algorithm": algorithm, "init": init, "seeds": seeds}
        cluster(Params.model_validate({"threads": 1, "cluster": CELLS | changes}), **inputs, clusters=path)
        return path

    return run


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4, unique=True), st.sampled_from(WAYS))
def test_each_partition_is_the_one_that_its_seed_alone_gives(cut, seeds, way):
    table = read_table(cut(seeds, *way))
    assert count_partitions(table) == len(seeds)
    for partition, seed in enumerate(seeds):
        alone = read_table(cut([seed], *way))
        pd.testing.assert_frame_equal(take_partition(table, partition)[list(alone)], alone)


def test_each_partition_puts_every_row_into_one_cell_at_its_distance_from_the_mean(cut, vectors):
    table = read_table(cut([1, 2, 3]))
    labels = []
    for partition in range(3):
        cells = take_partition(table, partition)
        assert list(cells["length_group"]) == [0] * 120 + [1] * 120
        assert cells.groupby("length_group")["cluster"].unique().map(sorted).tolist() == [[0, 1, 2, 3]] * 2
        for _, rows in cells.groupby(["length_group", "cluster"]):
            own = vectors[rows.index].astype(np.float64)
            assert rows["distance"].tolist() == pytest.approx(np.linalg.norm(own - own.mean(0), axis=1).tolist())
        labels.append([set(rows.index) for _, rows in cells.groupby(["length_group", "cluster"])])
    assert all(sorted(map(sorted, one)) != sorted(map(sorted, other)) for one, other in combinations(labels, 2))


def test_another_seed_changes_no_byte_of_the_columns_before_it(cut):
    one, more = read_arrow(cut([5])), read_arrow(cut([5, 9, 4]))
    assert more.select(one.column_names).equals(one)
    assert cut([5]).read_bytes() == cut([5]).read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": [3, 4, 3]}, r"seeds: \[3, 4, 3\] has a seed twice"),
        ({"seeds": [3, 4], "clusters": 1}, "with clusters: 1, 2 seeds give one partition"),
        ({"seeds": []}, "cluster.seeds"),
    ],
)
def test_seeds_that_cannot_give_different_partitions_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Params.model_validate({"threads": 1, "cluster": CELLS | {"seeds": [1]} | changes})


@pytest.fixture(scope="module")
def table(inputs, cut, new_folder, write_leaks):
    """Make candidates of the rows, with the partitions of these seeds."""
    ids = [f"row{n}" for n in range(ROWS)]
    nll = [None, *np.random.default_rng(2).normal(4, 1, ROWS - 1)]

    def make(seeds):
        folder = new_folder()
        ppl = write_ppl(folder / "ppl", ids, nll)
        return make_candidates(folder, raw=inputs["raw"], ppl=ppl, clusters=cut(seeds), leaks=write_leaks())

    return make


def test_row_i_of_the_candidates_has_the_cells_of_row_i_in_every_partition(table, cut):
    found, cells = read_arrow(table([1, 2])), read_arrow(cut([1, 2]))
    assert found.schema.remove_metadata() == with_partitions(CANDIDATES, 2)
    assert found.select(columns_of(2)).equals(cells.select(columns_of(2)))


@pytest.fixture(scope="module")
def selected(inputs, vectors, table, new_folder, write_vectors):
    """Select as an arm does; return the bytes of its rows and of its table."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    tables, embeddings = {}, write_vectors([f"row{n}" for n in range(ROWS)], units)

    def run(seeds, method, **changes):
        tables.setdefault(seeds, table(list(seeds)))
        folder = new_folder()
        select_rows(folder, inputs["raw"], tables[seeds], {"ours": arm_of(method) | changes}, embeddings=embeddings)
        return (folder / "ours.jsonl").read_bytes(), (folder / "ours.parquet").read_bytes()

    return run


@pytest.mark.parametrize(("method", "by"), [*((method, {}) for method in METHODS), ("spread", {"by": "distance"})])
def test_an_arm_selects_as_if_its_partition_were_the_only_one(method, by, selected):
    for partition, seed in ((0, 4), (2, 6)):
        assert selected((4, 5, 6), method, **by, partition=partition) == selected((seed,), method, **by)


def test_another_partition_gives_other_rows_only_to_methods_that_use_cells(selected):
    for method, entry in METHODS.items():
        one, other = (selected((4, 5, 6), method, partition=partition) for partition in (0, 1))
        assert (one[0] != other[0]) == entry.uses_cells, method
        assert one[1] != other[1], method  # the cell of a row is that of the partition


@pytest.mark.parametrize("allocation", ["source", "whole"])
def test_an_arm_that_gives_cells_no_quota_selects_the_same_rows_in_every_partition(allocation, selected):
    one, other = (selected((4, 5, 6), "steady", partition=p, allocation=allocation)[0] for p in (0, 1))
    assert one == other
    assert not Arm.model_validate(arm_of("steady") | {"allocation": allocation}).uses_cells


@pytest.mark.parametrize("by", ["cluster_1", "distance_1"])
def test_a_column_of_another_partition_is_no_score(by, selected):
    with pytest.raises(UserError, match=rf"arms\.ours\.by: no score '{by}'; the scores are distance, tokens, nll"):
        selected((4, 5, 6), "spread", by=by)


def test_a_table_without_the_partition_stops_the_arm(inputs, table, tmp_path):
    params = {"threads": 1, "cluster": {"seeds": [4, 5]}, "control": "ours"}
    params |= {"arms": {"ours": {"method": "spread", "fraction": 0.1, "seed": 1, "partition": 1}}}
    outs = {"samples": tmp_path / "ours.jsonl", "sample_parquet": tmp_path / "ours.parquet"}
    with pytest.raises(UserError, match=r"arms\.ours\.partition: 1, but .*candidates\.parquet has 1 .*dvc repro"):
        sample(SampleParams.model_validate(params), arm="ours", **inputs, candidates=table([4]), **outs)


SPREAD = {"method": "spread", "fraction": 0.1, "seed": 1}
LONGEST = SPREAD | {"method": "longest"}
REPEATS = {
    "the same partition": (SPREAD, {"seed": 2}, "spread draws none and both are in partition 0"),
    "no cells": (LONGEST, {"seed": 2, "partition": 1}, "longest draws none and uses no cells"),
    "another partition": (SPREAD, {"seed": 2, "partition": 1}, None),
    "drawn rows": (SPREAD | {"method": "steady"}, {"seed": 2}, None),
}


@pytest.mark.parametrize("repeat", REPEATS)
def test_a_replicate_that_repeats_a_selection_says_so_before_it_is_trained(repeat, inputs, table, tmp_path, caplog):
    first, changes, words = REPEATS[repeat]
    arms = {"ours": first, "again": first | changes | {"replicate": "ours"}}
    params = SampleParams.model_validate({"threads": 1, "cluster": {"seeds": [4, 5]}, "arms": arms, "control": "ours"})
    candidates, rows = table([4, 5]), {}
    for arm in arms:
        outs = {"samples": tmp_path / f"{arm}.jsonl", "sample_parquet": tmp_path / f"{arm}.parquet"}
        sample(params, arm=arm, **inputs, candidates=candidates, **outs)
        rows[arm] = outs["samples"].read_bytes()
    assert (rows["again"] == rows["ours"]) == (words is not None)
    warned = [message for message in caplog.messages if "has the rows of" in message]
    assert len(warned) == (words is not None)
    assert all("again has the rows of ours" in message and words in message for message in warned)


def beats(selections, runs, times, items=200):
    """Return how often a method that selects these rows, of no worth, beats `random` with one selection, and with many.

    `selections` [K, N] has the rows of each partition. Rows have random worths, and the accuracy of a run is moved by
    the mean worth of its rows, by its training (half as much) and by the items (half as much).
    """
    rng = np.random.default_rng(5)
    size, found = int(selections[0].sum()), np.zeros(2)
    for _ in range(times):
        worth = rng.normal(size=selections.shape[1])
        ours = selections[:runs] @ worth
        theirs = [worth[rng.choice(len(worth), size, replace=False)].sum() for _ in range(runs)]
        difficulty = rng.normal(size=items)

        def answers(rows, difficulty=difficulty):
            luck = 2 * np.asarray(rows) / np.sqrt(size) + rng.normal(size=runs)
            return difficulty + luck[:, None] / np.sqrt(items) + rng.normal(size=(runs, items))

        control = answers(theirs)
        for number, rows in enumerate(([ours[0]] * runs, ours)):
            found[number] += replicates.crossed([answers(rows)], [control])["lo"] > 0
    return found / times


@pytest.fixture(scope="module")
def selections(new_folder, write_raw, write_leaks):
    """The rows that `spread` selects of 3,000 in ten partitions [10, N]."""
    vectors, _ = make_blobs(3000, n_features=8, centers=12, cluster_std=6.0, random_state=3)
    ids, folder = [f"row{n}" for n in range(3000)], new_folder()
    raw = write_raw([f"질문 {n}" for n in range(3000)])
    ppl = write_ppl(folder / "ppl", ids, list(np.random.default_rng(2).normal(4, 1, 3000)))
    nearest = [np.argmin(((vectors[:, None] - vectors[n : n + 40]) ** 2).sum(2), axis=1) for n in range(0, 400, 40)]
    labels = [labels_N.tolist() for labels_N in nearest]
    cells = write_clusters(folder / "clusters", ids, labels[0], others=labels[1:])
    candidates = make_candidates(folder, raw=raw, ppl=ppl, clusters=cells, leaks=write_leaks())
    arm = {"method": "spread", "fraction": 0.02, "seed": 1}
    taken = [select_rows(folder, raw, candidates, {"ours": arm | {"partition": n}}).why for n in range(10)]
    return np.array([why["selected"] for why in taken], dtype=float)


def test_a_worthless_method_beats_random_by_one_selection_trained_often_but_not_with_partitions(selections):
    one, partitions = beats(selections, runs=10, times=400)
    assert one > 0.1
    assert partitions <= 0.045  # .025, and two standard errors of 400 trials


@pytest.mark.slow
@pytest.mark.parametrize("runs", [2, 3, 5, 10])
def test_with_partitions_a_worthless_method_beats_random_in_at_most_4_of_100(runs, selections):
    one, partitions = beats(selections, runs, times=4000)
    print(f"\n{runs} runs: one selection {one}, a partition for every run {partitions}")
    assert partitions <= 0.04
    assert one > partitions
