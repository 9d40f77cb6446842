"""Lengths of real instructions, so that benchmarks have rows of real lengths without needing the text.

lengths.csv counts distinct instructions by their tokens: those of seven public files (30,350 instructions), under a
byte-level BPE of 8,192 entries trained on 33 MB of Korean text, cut at 512 tokens. `python -m benchmarks.lengths`
writes it again, from data/raw.parquet and models/hub/scorer.
"""

from pathlib import Path

import numpy as np
import pandas as pd

COUNTS = Path(__file__).with_name("lengths.csv")
ALL = 375_506
"""Rows of KoQuality after its scoring."""
MAX_TOKENS = 512


def token_ids(rows: int, vocabulary: int, extra: int = 0, seed: int = 1) -> list[list[int]]:
    """Return `rows` rows of random token ids with real lengths, each longer by `extra` for special tokens."""
    rng = np.random.default_rng(seed)
    counts = pd.read_csv(COUNTS)
    drawn = rng.choice(counts["tokens"], rows, p=counts["rows"] / counts["rows"].sum())
    return [rng.integers(3, vocabulary, min(tokens + extra, MAX_TOKENS)).tolist() for tokens in drawn]


def main(raw: Path, scorer: Path) -> None:
    from stages.lib.core.artifacts import read_table
    from stages.lib.models.loading import load_tokenizer

    texts = list(read_table(raw, "instruction")["instruction"].drop_duplicates())
    ids = load_tokenizer(scorer)(texts, add_special_tokens=False, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    counts = pd.Series([len(row) for row in ids], name="tokens").value_counts().sort_index()
    counts.rename("rows").to_csv(COUNTS, lineterminator="\n")


if __name__ == "__main__":
    main(Path("data/raw.parquet"), Path("models/hub/scorer"))
