"""Settings and training text of the toy models, small stand-ins for hub models that train anywhere.

    <folder>/*.txt    documents, separated by blank lines
    <folder>/*.jsonl  pairs of `instruction` and `output`

There are two kinds (`toy_training` trains them): a GPT-NeoX, polyglot-ko's architecture, trained on all of the text,
and a RoBERTa. Training brings the RoBERTa's mean-pooled vectors of an instruction and its output together, and of
neighbouring spans of a document (InfoNCE, van den Oord et al. 2018, arXiv 1807.03748; spans of one document as
positives: Izacard et al. 2022, arXiv 2112.09118). With dropout as the only augmentation (SimCSE), a model of this size
finds no topics.
"""

import random
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.lib.core.artifacts import read_jsonl
from stages.lib.core.errors import UserError
from stages.lib.core.params import Count, Positive, Section, Seed


class Small(Section):
    vocabulary: Positive
    """Most entries of the byte-level BPE; a small text yields fewer."""
    layers: Positive
    width: Positive
    heads: Positive
    positions: Positive
    """Longest input that the model accepts, in tokens."""
    context: Positive
    """Tokens of a training row."""
    batch: Positive
    """Training rows per step."""
    steps: Positive
    learning_rate: float
    warmup: Count
    """Steps over which the learning rate rises; after them it falls linearly to 0."""
    init: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of the initial weights. With larger weights, a narrow model learns to look back sooner."""
    whole: bool = False
    """Whether the training rows of an LM begin where a document does, so that a question has its answer in its row."""
    seed: Seed


def read_text(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the documents and the (instruction, output) pairs."""
    documents = [
        document.strip()
        for path in sorted(folder.glob("*.txt"))
        for document in re.split(r"\n\s*\n", path.read_text(encoding="utf-8-sig"))
        if document.strip()
    ]
    pairs = [pair for path in sorted(folder.glob("*.jsonl")) for pair in read_pairs(path)]
    if not documents and not pairs:
        raise UserError(f"{folder}: no *.txt and no *.jsonl to train a small model on")
    return documents, pairs


def read_pairs(path: Path) -> list[tuple[str, str]]:
    try:
        return [(str(row["instruction"]), str(row["output"])) for row in read_jsonl(path)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected JSON Lines with instruction and output, got {type(error).__name__}: {error}; "
            "fix the file, or move it out of the folder"
        ) from error


def neighbouring_spans(documents: list[str], seed: int) -> list[tuple[str, str]]:
    """Return pairs of up to three sentences before and after a random cut; one cut per two sentences of a document."""
    rng = random.Random(seed)
    pairs = []
    for document in documents:
        sentences = [part for part in re.split(r"(?<=[.?!])\s+|\n+", document) if part.strip()]
        for _ in range(len(sentences) // 2):
            cut = rng.randrange(1, len(sentences))
            pairs.append((" ".join(sentences[max(0, cut - 3) : cut]), " ".join(sentences[cut : cut + 3])))
    return pairs
