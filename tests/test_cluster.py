"""Length groups are KoQuality's, and clusters within them change little when rows are added."""

from itertools import combinations

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import confusion_matrix, normalized_mutual_info_score

from stages.cluster import Params, cluster
from stages.lib.core.artifacts import read_table
from stages.lib.core.errors import UserError
from stages.lib.selection.cells import Cluster, find_cells, length_groups, read_vectors
from stages.lib.selection.kmeans import BATCH, centroids, distances, fit_clusters, hashed_start
from tests.koquality import groups

SPREADS = (0.5, 2.0, 6.0)
"""Standard deviations of a blob, which make the blobs lie apart, touch, or form one cloud."""
SETTINGS = {"length_groups": 3, "clusters": 4, "small_groups": "stop", "algorithm": "lloyd", "init": "hashed"}
SETTINGS |= {"n_init": 2, "seeds": [1]}


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 20))
def test_length_groups_are_those_of_koquality(lengths, count):
    assert length_groups(pd.Series(lengths), count).tolist() == groups(lengths, count)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=60), st.integers(1, 5))
def test_rows_of_one_length_share_a_group_and_longer_rows_are_in_no_earlier_one(lengths, count):
    found = length_groups(pd.Series(lengths), count)
    assert found.min() >= 0
    assert found.max() <= count - 1
    order = np.argsort(lengths, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    assert len(set(zip(lengths, found.tolist(), strict=True))) == len(set(lengths))


def blobs(spread, rows=600, seed=0):
    vectors, _ = make_blobs(rows, n_features=16, centers=8, cluster_std=spread, random_state=seed)
    return vectors.astype(np.float32), [f"row{number}" for number in range(rows)]


@pytest.mark.parametrize("seed", range(10))
def test_a_hashed_start_finds_the_clusters_that_ten_random_starts_find(seed):
    vectors, ids = blobs(1.0, seed=seed)
    best = KMeans(8, n_init=10, random_state=1).fit(vectors).inertia_
    assert fit_clusters(vectors, ids, 8, "lloyd", "hashed", 1, seed=1).inertia <= 1.05 * best


def test_a_hashed_start_costs_little_inertia_beside_a_random_start_if_clusters_touch():
    hashed, random = [], []
    for seed in range(16):
        vectors, ids = blobs(4.0, rows=400, seed=seed)
        hashed.append(fit_clusters(vectors, ids, 8, "lloyd", "hashed", 1, seed=1).inertia)
        random.append(KMeans(8, n_init=1, random_state=seed).fit(vectors).inertia_)
    assert sum(hashed) <= 1.08 * sum(random)


@pytest.mark.parametrize("spread", SPREADS)
def test_clusters_stay_when_rows_are_added(spread):
    vectors, ids = blobs(spread)
    rng = np.random.default_rng(1)
    before = fit_clusters(vectors, ids, 8, "lloyd", "hashed", 1, seed=1).label
    more = np.concatenate([vectors[:300], rng.normal(0, 5, size=(2, 16)).astype(np.float32), vectors[300:]])
    after = np.delete(
        fit_clusters(more, [*ids[:300], "new1", "new2", *ids[300:]], 8, "lloyd", "hashed", 1, seed=1).label, [300, 301]
    )
    assert confusion_matrix(before, after).max(axis=1).sum() >= 0.99 * len(ids)


def test_the_start_does_not_depend_on_the_order_of_the_rows():
    vectors, ids = blobs(6.0)
    order = np.random.default_rng(1).permutation(len(ids))
    moved = hashed_start(vectors[order], [ids[row] for row in order], 8, seed=1)
    assert (moved == hashed_start(vectors, ids, 8, seed=1)).all()


def test_another_seed_starts_from_other_rows_and_finds_other_clusters():
    vectors, ids = blobs(6.0)
    starts = [hashed_start(vectors, ids, 8, seed=seed) for seed in (1, 2, 3)]
    assert all({*map(bytes, one)}.isdisjoint(map(bytes, other)) for one, other in combinations(starts, 2))
    labels = [fit_clusters(vectors, ids, 8, "lloyd", "hashed", 1, seed=seed).label for seed in (1, 2, 3)]
    assert all(normalized_mutual_info_score(one, other) < 0.9 for one, other in combinations(labels, 2))


def test_k_means_plus_plus_is_scikit_learns():
    vectors, ids = blobs(2.0)
    found = fit_clusters(vectors, ids, 8, "lloyd", "k-means++", 3, seed=42)
    model = KMeans(8, init="k-means++", n_init=3, random_state=42).fit(vectors)
    assert (found.label == model.labels_).all()
    assert found.inertia == pytest.approx(model.inertia_, rel=1e-4)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_equal_vectors_can_be_clustered():
    found = fit_clusters(np.ones((9, 4), dtype=np.float32), [str(n) for n in range(9)], 3, "lloyd", "hashed", 1, seed=1)
    assert set(found.label) <= {0, 1, 2}
    assert found.inertia == 0


@pytest.fixture
def run(new_folder, write_raw, write_vectors):
    """Cluster 120 rows whose instructions have 1 to 120 characters."""

    def stage(count=120, **settings):
        vectors, ids = blobs(2.0, rows=count)
        raw, embeddings = write_raw(["가" * (n + 1) for n in range(count)], ids), write_vectors(ids, vectors)
        path = new_folder() / "clusters.parquet"
        params = Params.model_validate({"threads": 1, "cluster": SETTINGS | settings})
        cluster(params, raw=raw, embeddings=embeddings, clusters=path)
        return path, vectors

    return stage


@pytest.mark.parametrize("algorithm", ["lloyd", "minibatch"])
@pytest.mark.parametrize("init", ["hashed", "k-means++"])
def test_the_stage_writes_the_same_bytes_twice(algorithm, init, run):
    one, other = (run(algorithm=algorithm, init=init)[0].read_bytes() for _ in range(2))
    assert one == other


@pytest.mark.parametrize("algorithm", ["lloyd", "minibatch"])
@pytest.mark.parametrize("init", ["hashed", "k-means++"])
def test_every_group_has_its_own_clusters_and_distances_to_their_means(algorithm, init, run):
    path, vectors = run(algorithm=algorithm, init=init)
    table = read_table(path)
    assert list(table["id"]) == [f"row{n}" for n in range(120)]
    assert list(table["length_group"]) == [0] * 40 + [1] * 40 + [2] * 40
    for _, rows in table.groupby("length_group"):
        assert sorted(set(rows["cluster"])) == [0, 1, 2, 3]
    for _, rows in table.groupby(["length_group", "cluster"]):
        own = vectors[rows.index]
        assert rows["distance"].tolist() == pytest.approx(np.linalg.norm(own - own.mean(0), axis=1).tolist(), abs=1e-2)


def test_more_clusters_than_rows_stop_with_the_name_of_the_group(run):
    with pytest.raises(UserError, match=r"cluster\.clusters: 41 .*length group 0 has 40 rows, length group 1 .*lower"):
        run(clusters=41)
    assert read_table(run(clusters=40)[0])["distance"].max() == pytest.approx(0, abs=1e-5)


def test_fewer_length_groups_than_asked_for_are_told(new_folder, write_raw, write_vectors, caplog):
    vectors, ids = blobs(2.0, rows=100)
    raw = write_raw(["가" * (1 if n < 60 else n) for n in range(100)], ids)
    settings = {"length_groups": 5, "clusters": 2}
    params = Params.model_validate({"threads": 1, "cluster": SETTINGS | settings})
    path = new_folder() / "clusters.parquet"
    cluster(params, raw=raw, embeddings=write_vectors(ids, vectors), clusters=path)
    assert read_table(path)["length_group"].nunique() == 3
    assert caplog.messages[0].startswith("cluster.length_groups: asked for 5, got 3, because many")


def test_the_length_groups_that_were_asked_for_need_no_word(run, caplog):
    run(length_groups=3)
    assert caplog.messages == []


def test_small_groups_shrink_to_a_cluster_per_row_if_params_say_so(run):
    table = read_table(run(clusters=41, small_groups="shrink")[0])
    assert table.groupby("length_group")["cluster"].nunique().tolist() == [40, 40, 40]
    assert table["distance"].max() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("init", ["hashed", "k-means++"])
def test_minibatch_finds_the_clusters_that_lloyd_finds(init):
    vectors, ids = blobs(6.0, rows=9000)
    lloyd, minibatch = (
        fit_clusters(vectors, ids, 8, algorithm, init, 3, seed=1) for algorithm in ("lloyd", "minibatch")
    )
    assert minibatch.inertia <= 1.02 * lloyd.inertia
    assert (minibatch.label != lloyd.label).any()


def test_a_subset_of_the_rows_has_the_cells_it_would_have_as_a_corpus():
    vectors, ids = blobs(2.0)
    corpus = pd.DataFrame({"id": ids, "instruction": ["가" * (n % 90 + 1) for n in range(len(ids))]})
    settings = Cluster.model_validate(SETTINGS | {"length_groups": 2})
    part = corpus[corpus.index % 3 > 0]
    alone = find_cells(part.reset_index(drop=True), vectors[part.index], settings)
    assert find_cells(part, vectors, settings).reset_index(drop=True).equals(alone)


def test_vectors_in_several_row_groups_are_read_in_order(tmp_path, write_vectors):
    rng = np.random.default_rng(3)
    vectors, ids = rng.normal(size=(50, 4)).astype(np.float32), [f"row{n}" for n in range(50)]
    pq.write_table(pq.read_table(write_vectors(ids, vectors)), tmp_path / "split.parquet", row_group_size=7)
    assert pq.ParquetFile(tmp_path / "split.parquet").num_row_groups == 8
    assert (read_vectors(tmp_path / "split.parquet", pd.Series(ids)) == vectors).all()


def test_vectors_of_another_merge_stop_the_stage(new_folder, write_raw, write_vectors):
    params = Params.model_validate({"threads": 1, "cluster": SETTINGS | {"length_groups": 1, "clusters": 1}})
    raw, vectors = write_raw(["가", "나"]), write_vectors(["row0", "rowX"], np.eye(2, 4))
    with pytest.raises(UserError, match="embeddings has rowX in row 1, not row1 as in raw"):
        cluster(params, raw=raw, embeddings=vectors, clusters=new_folder() / "clusters.parquet")


def test_centroids_are_the_means_of_their_rows():
    rng = np.random.default_rng(5)
    rows, label = rng.normal(size=(50, 4)).astype(np.float32), rng.integers(0, 3, 50)
    means = np.stack([rows[label == cluster].mean(axis=0) for cluster in range(3)])
    assert np.allclose(centroids(rows, label, 3), means, atol=1e-6)


def test_sums_in_slices_have_the_bits_of_sums_row_by_row():
    rng = np.random.default_rng(6)
    rows, label = rng.normal(size=(BATCH + 905, 24)).astype(np.float32), rng.integers(0, 5, BATCH + 905)
    sums = np.zeros((5, 24))
    for own, row in zip(label, rows, strict=True):
        sums[own] += row
    means = sums / np.bincount(label)[:, None]
    assert (centroids(rows, label, 5) == means).all()
    assert (distances(rows, label, means) == np.linalg.norm(rows - means[label], axis=1)).all()
