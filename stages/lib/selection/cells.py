"""The cells of a corpus: clusters within each length group.

    N rows, D width

Length groups are KoQuality's: quantiles of the number of characters in the instruction (nayohan/KoQuality,
generate_sentence_embedding_clustering.py). KoQuality takes them over the rows that have a perplexity; here they are
over all rows of raw, so that another scorer moves no cell.
"""

import logging
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, model_validator

from stages.lib.core.artifacts import read_arrow, require_same_rows
from stages.lib.core.errors import UserError
from stages.lib.core.params import Positive, Section, Seed
from stages.lib.selection.kmeans import Algorithm, Init, fit_clusters
from stages.lib.selection.partitions import named

log = logging.getLogger("stages")
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1, strict=False)]


class Cluster(Section):
    length_groups: Positive
    """Groups of rows by the length of their instruction (KoQuality's L)."""
    clusters: Positive
    """Clusters in each length group (KoQuality's K)."""
    small_groups: Literal["stop", "shrink"]
    """If a length group has fewer rows than clusters: `stop` with its name, or `shrink` to one cluster per row."""
    algorithm: Algorithm
    """`lloyd`, or `minibatch` for large corpora."""
    init: Init
    """`hashed` starts from hashes of the ids, so that added rows move few others; `k-means++` from random rows."""
    n_init: Positive
    """Random starts of `k-means++`, of which the best is kept; `hashed` has only one."""
    seeds: Seeds
    """Seeds of the starts. The corpus is cut once for each: the first gives partition 0, the next one partition 1."""

    @model_validator(mode="after")
    def partitions_differ(self) -> "Cluster":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} has a seed twice, which would give one partition twice")
        if self.clusters == 1 and len(self.seeds) > 1:
            raise ValueError(f"seeds: with clusters: 1, {len(self.seeds)} seeds give one partition; keep one seed")
        return self


def find_partitions(corpus: pd.DataFrame, vectors_ND: NDArray[np.float32], settings: Cluster) -> pd.DataFrame:
    """Return `id`, `length_group` and the columns of every partition for each row of `corpus`."""
    found = find_cells(corpus, vectors_ND, settings)
    warn_of_lost_groups(found["length_group"], settings.length_groups)
    for partition in range(1, len(settings.seeds)):
        cells = find_cells(corpus, vectors_ND, settings, partition)
        found = found.assign(**{column: cells[name] for name, column in named(partition).items()})
    return found


def find_cells(
    corpus: pd.DataFrame, vectors_ND: NDArray[np.float32], settings: Cluster, partition: int = 0
) -> pd.DataFrame:
    """Return `id`, `length_group`, `cluster` and the Euclidean `distance` to the centroid for each row of `corpus`.

    The index of `corpus` gives the row numbers of its vectors, so a subset of the corpus needs no copy of them.
    """
    seed = settings.seeds[partition]
    cells = corpus[["id"]].assign(
        length_group=length_groups(corpus["instruction"].str.len(), settings.length_groups), cluster=0, distance=0.0
    )
    if settings.small_groups == "stop":
        require_rows(cells["length_group"], settings.clusters)
    for group, rows in cells.groupby("length_group"):
        k = min(settings.clusters, len(rows))
        vectors, ids = vectors_ND[rows.index], list(rows["id"])
        found = fit_clusters(vectors, ids, k, settings.algorithm, settings.init, settings.n_init, seed)
        cells.loc[rows.index, "cluster"], cells.loc[rows.index, "distance"] = found.label, found.distance
        described = (partition, group, len(rows), k, found.inertia)
        log.info("partition %d, length group %d: %d rows, %d clusters, inertia %.2f", *described)
    return cells


def read_vectors(path: Path, ids: pd.Series, kept: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Return the vectors of embeddings.parquet [N, D], after checking that their ids are `ids`.

    With a mask `kept` [N], only those of the rows kept. Batches are copied into one array, so that the vectors are
    never in memory twice.
    """
    kept = np.ones(len(ids), dtype=bool) if kept is None else kept
    require_same_rows(raw=ids, embeddings=read_arrow(path, "id")["id"].to_pylist())
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            width = file.schema_arrow.field("vector").type.list_size
            vectors_ND, start, place = np.empty((kept.sum(), width), dtype=np.float32), 0, 0
            for batch in file.iter_batches(columns=["vector"]):
                rows = batch["vector"].flatten().to_numpy().reshape(-1, width)[kept[start : start + len(batch)]]
                vectors_ND[place : place + len(rows)] = rows
                start, place = start + len(batch), place + len(rows)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not readable as Parquet: {error}; run `dvc repro` or `dvc pull`") from error
    return vectors_ND


def length_groups(characters: pd.Series, groups: int) -> NDArray[np.int64]:
    """Return the group of each row [N]: group i has q(i/L) <= characters < q((i+1)/L), the last has no upper bound."""
    bounds = characters.quantile([i / groups for i in range(1, groups)]).to_numpy()
    group: NDArray[np.int64] = np.searchsorted(bounds, characters.to_numpy(), side="right")
    return group


def warn_of_lost_groups(groups: pd.Series, asked: int) -> None:
    """Say if there are fewer length groups than asked for, because many rows have the same length."""
    got = groups.nunique()
    if got < asked:
        log.warning(
            "cluster.length_groups: asked for %d, got %d, because many instructions are equally long", asked, got
        )


def require_rows(groups: pd.Series, clusters: int) -> None:
    """Raise UserError if a length group has fewer rows than clusters."""
    sizes = groups.value_counts().sort_index()
    small = sizes[sizes < clusters]
    if len(small):
        listed = ", ".join(f"length group {group} has {size} rows" for group, size in small.items())
        raise UserError(
            f"params.yaml: cluster.clusters: {clusters} clusters in each length group, but {listed}; lower "
            "cluster.clusters or cluster.length_groups, or set cluster.small_groups: shrink"
        )
