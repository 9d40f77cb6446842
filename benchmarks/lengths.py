"""How long real instructions are, so that every benchmark has rows of their lengths and needs none of their text.

lengths.csv counts the distinct instructions of the seven files of README, "On real rows", by their tokens (a byte-level
BPE of 8,192 entries trained on 33 MB of Korean text; cut at 512). `python -m benchmarks.lengths` counts anew, from
data/raw.parquet and models/hub/scorer.
"""

from pathlib import Path

import numpy as np
import pandas as pd

COUNTS = Path(__file__).with_name("lengths.csv")
ALL = 375_506
"""Rows of KoQuality after its scoring."""
MOST = 512


def token_ids(rows: int, vocabulary: int, extra: int = 0, seed: int = 1) -> list[list[int]]:
    """Return random token ids for so many rows of real lengths; `extra` is for special tokens."""
    rng = np.random.default_rng(seed)
    counts = pd.read_csv(COUNTS)
    drawn = rng.choice(counts["tokens"], rows, p=counts["rows"] / counts["rows"].sum())
    return [rng.integers(3, vocabulary, min(tokens + extra, MOST)).tolist() for tokens in drawn]


def main(raw: Path, scorer: Path) -> None:
    from stages.lib.core.artifacts import read_table
    from stages.lib.models.loading import load_tokenizer

    texts = list(read_table(raw, "instruction")["instruction"].drop_duplicates())
    ids = load_tokenizer(scorer)(texts, add_special_tokens=False, truncation=True, max_length=MOST)["input_ids"]
    counts = pd.Series([len(row) for row in ids], name="tokens").value_counts().sort_index()
    counts.rename("rows").to_csv(COUNTS, lineterminator="\n")


if __name__ == "__main__":
    main(Path("data/raw.parquet"), Path("models/hub/scorer"))
