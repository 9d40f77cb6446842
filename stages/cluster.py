"""Cut the corpus into length groups, and each group into clusters of similar instructions, once for each seed.

    data/raw.parquet, data/embeddings.parquet -> data/clusters.parquet

A cluster of a length group is a cell, and all cells of one seed are a partition of the corpus.
"""

from pathlib import Path

import pyarrow as pa
from threadpoolctl import threadpool_limits

from stages.lib.core.artifacts import read_table, write_table
from stages.lib.core.params import Positive, Section
from stages.lib.core.runner import run
from stages.lib.selection.cells import Cluster, find_partitions, read_vectors
from stages.lib.selection.partitions import with_partitions

CLUSTERS = pa.schema(
    [("id", pa.string()), ("length_group", pa.int32()), ("cluster", pa.int32()), ("distance", pa.float64())]
)
"""With one partition; see `selection.partitions` for the columns of others."""


class Params(Section):
    threads: Positive
    portable: bool = False
    cluster: Cluster


def cluster(params: Params, raw: Path, embeddings: Path, clusters: Path) -> None:
    corpus = read_table(raw, "id", "instruction")
    vectors_ND = read_vectors(embeddings, corpus["id"])
    with threadpool_limits(params.threads):
        cells = find_partitions(corpus, vectors_ND, params.cluster)
    write_table(clusters, cells, with_partitions(CLUSTERS, len(params.cluster.seeds)))


if __name__ == "__main__":
    run(cluster, Params)
