"""The original's k-means and ours: `python -m benchmarks.clusters`.

The original (KoQuality, generate_sentence_embedding_clustering.py) fits `KMeans(K, n_init=10, random_state=42)` twice
in every length group: `fit`, then `fit_predict`. The rows here are as many as in one of five groups of a corpus of 200
thousand; one thread.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from benchmarks.measure import Way, alternate, machine, ratio, seconds, table
from benchmarks.synthetic import CENTRES, unit_vectors
from stages.lib.selection.kmeans import fit_clusters

OURS = (("lloyd", "k-means++"), ("lloyd", "hashed"), ("minibatch", "k-means++"), ("minibatch", "hashed"))


def main() -> None:
    with threadpool_limits(1):
        rows = compare(rows=40_000, width=768, k=100, rounds=3)
    print(f"{table(rows)}\n\n{machine()}")


def compare(rows: int, width: int, k: int, rounds: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(CENTRES, width)).astype(np.float32)
    vectors_ND = unit_vectors(centres, rows, rng)
    ids = [f"row{row}" for row in range(rows)]
    first = "k-means++ ten times, fitted twice"
    runs: dict[str, Way] = {first: partial(original, vectors_ND, k)}
    for algorithm, init in OURS:
        start = partial(fit_clusters, vectors_ND, ids, k, algorithm=algorithm, init=init, n_init=1, seed=1)
        runs[f"ours, {algorithm}, {init}"] = lambda start=start: start().inertia
    timed = alternate(runs, rounds)
    return [
        {
            "way": name,
            "seconds": seconds(took),
            "ratio": ratio(timed[first], took),
            "inertia ratio - 1": took.value / timed[first].value - 1,
            "peak GiB": took.peak,
        }
        for name, took in timed.items()
    ]


def original(vectors_ND: NDArray[np.float32], k: int) -> float:
    model = KMeans(k, n_init=10, random_state=42)
    model.fit(vectors_ND)
    model.fit_predict(vectors_ND)
    return float(model.inertia_)


if __name__ == "__main__":
    main()
