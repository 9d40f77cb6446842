"""Find topics inside every length group.

    data/raw.parquet, data/embeddings.parquet -> data/clusters.parquet

Length groups are KoQuality's: quantiles of the instruction's characters (nayohan/KoQuality,
generate_sentence_embedding_clustering.py), here over all rows of raw, so that a scorer never moves a cell.
"""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from stages.lib.artifacts import read_arrow, read_table, require_same_rows, write_table
from stages.lib.kmeans import Init, fit
from stages.lib.params import Positive, Section
from stages.lib.stage import run
from stages.lib.stop import Stop

log = logging.getLogger("stages")
CLUSTERS = pa.schema(
    [("id", pa.string()), ("length_group", pa.int32()), ("cluster", pa.int32()), ("distance", pa.float64())]
)


class Cluster(Section):
    length_groups: Positive
    clusters: Positive
    """Clusters inside each length group."""
    init: Init
    n_init: Positive
    """Starts of `k-means++`, the best is kept; `hashed` has one."""
    seed: int


class Params(Section):
    threads: Positive
    cluster: Cluster


def cluster(params: Params, raw: Path, embeddings: Path, clusters: Path) -> None:
    corpus, vectors = read_table(raw, "id", "instruction"), read_arrow(embeddings)
    require_same_rows(raw=corpus["id"], embeddings=vectors["id"].to_pylist())
    vectors_ND = to_matrix(vectors["vector"])
    settings = params.cluster
    groups = length_groups(corpus["instruction"].str.len(), settings.length_groups)
    require_rows(groups, settings)

    label, distance = np.zeros(len(corpus), dtype=np.int64), np.zeros(len(corpus))
    with threadpool_limits(params.threads):
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            ids = corpus["id"].iloc[rows].to_list()
            found = fit(vectors_ND[rows], ids, settings.clusters, settings.init, settings.n_init, settings.seed)
            label[rows], distance[rows] = found.label, found.distance
            log.info("length group %d: %d rows, inertia %.2f", group, len(rows), found.inertia)
    columns = {"id": corpus["id"], "length_group": groups, "cluster": label, "distance": distance}
    write_table(clusters, columns, CLUSTERS)


def to_matrix(vectors: pa.ChunkedArray) -> NDArray[np.float32]:
    flat: NDArray[np.float32] = vectors.combine_chunks().flatten().to_numpy()
    return flat.reshape(len(vectors), -1)


def length_groups(characters: pd.Series, groups: int) -> NDArray[np.int64]:
    """Return the group of every row: group i holds q(i/L) <= characters < q((i+1)/L), the last has no upper bound."""
    bounds = characters.quantile([i / groups for i in range(1, groups)]).to_numpy()
    group: NDArray[np.int64] = np.searchsorted(bounds, characters.to_numpy(), side="right")
    return group


def require_rows(groups: NDArray[np.int64], settings: Cluster) -> None:
    sizes = pd.Series(groups).value_counts().sort_index()
    small = sizes[sizes < settings.clusters]
    if len(small):
        listed = ", ".join(f"length group {group} has {size} rows" for group, size in small.items())
        raise Stop(
            f"params.yaml: cluster.clusters: {settings.clusters} clusters in each length group, but {listed}; "
            "lower cluster.clusters or cluster.length_groups"
        )


if __name__ == "__main__":
    run(cluster, Params)
