"""Print what a threshold of cosine similarity finds: `python -m tools.calibrate PAIRS.jsonl [--encoder FOLDER]`.

Each line of PAIRS.jsonl has two texts and whether they mean the same: `{"a": "...", "b": "...", "same": true}`. The
texts are embedded with models/hub/encoder, or with the encoder in FOLDER, as the section `embed` of params.yaml says.

For each threshold, the command prints the share of the pairs that mean the same and are found, the share of the
different pairs that are found wrongly, and the precision: the share of the pairs found that mean the same. Each comes
with its exact 95 % interval (Clopper and Pearson 1934). The precision is that of the file: among the pairs of a corpus,
far fewer mean the same than in most files of examples.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from stages.lib.core.errors import UserError
from stages.lib.core.params import Positive, Section, describe, read_params
from stages.lib.scoring.encoder import Embed, embed_together
from stages.lib.selection.neighbours import cosines
from tools.output import print_lines

ENCODER = Path("models/hub/encoder")
THRESHOLDS = [number / 100 for number in range(50, 100, 2)] + [0.99]
PRECISION = 0.95
"""What the lower end of the precision's interval must reach."""
USAGE = "usage: python -m tools.calibrate PAIRS.jsonl [--encoder FOLDER]"


class Params(Section):
    threads: Positive
    portable: bool = False
    embed: Embed


class Pair(BaseModel):
    """A line of the file; it may have other keys, too."""

    model_config = ConfigDict(strict=True)

    a: str
    b: str
    same: bool


def calibrate(pairs: Path, encoder: Path) -> Iterator[str]:
    """Yield the table and the lowest threshold of sufficient precision. Raises UserError for a malformed file."""
    params, examples = read_params(Params), read_examples(pairs)
    same = np.array([pair.same for pair in examples])
    similarity = similarities(examples, encoder, params)
    yield f"{len(same)} pairs: {same.sum()} mean the same, {(~same).sum()} do not"
    yield f"{'cosine':>6}  {'same found':25}{'different found':25}precision"
    enough = None
    for threshold in THRESHOLDS:
        found = similarity >= threshold
        precision, lower = share(found & same, found)
        columns = share(found & same, same)[0], share(found & ~same, ~same)[0], precision
        yield f"{threshold:6.2f}  {columns[0]:25}{columns[1]:25}{columns[2]}"
        enough = threshold if enough is None and lower >= PRECISION else enough
    if enough is None:
        remedy = "use more pairs or another encoder"
        yield f"no threshold has a precision with a lower end of at least {PRECISION}; {remedy}"
    else:
        yield f"{enough} is the lowest threshold that has a precision with a lower end of at least {PRECISION}"


def read_examples(path: Path) -> list[Pair]:
    """Raises UserError if a line is malformed, or if all pairs mean the same or none does."""
    if not path.is_file():
        raise UserError(f"{path}: missing; {USAGE}")
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = [read_example(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if len({pair.same for pair in pairs}) < 2:
        raise UserError(f"{path}: {len(pairs)} pairs; there must be some with same: true and some with same: false")
    return pairs


def read_example(line: str, where: str) -> Pair:
    try:
        return Pair.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error}") from None
    except ValidationError as error:
        wrong = "; ".join(describe(item) for item in error.errors())
        raise UserError(f'{where}: {wrong}; expected {{"a": "...", "b": "...", "same": true}}') from None


def similarities(pairs: list[Pair], encoder: Path, params: Params) -> NDArray[np.float64]:
    """Return the cosine similarity of each pair [P]; every distinct text is embedded once."""
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.a, pair.b)))
    place = {text: number for number, text in enumerate(texts)}
    vectors_ND = embed_together(texts, encoder, params.embed, params.threads)
    columns = [pair.a for pair in pairs], [pair.b for pair in pairs]
    one, other = (np.array([place[text] for text in column]) for column in columns)
    return cosines(vectors_ND, one, vectors_ND, other)


def share(found: NDArray[np.bool_], of: NDArray[np.bool_]) -> tuple[str, float]:
    """Return the share with its interval as text, and the interval's lower end; `-` and 0 of nothing."""
    from scipy.stats import binomtest

    if not of.any():
        return "-", 0.0
    interval = binomtest(int(found.sum()), int(of.sum())).proportion_ci(method="exact")
    return f"{found.sum() / of.sum():.3f} [{interval.low:.3f}, {interval.high:.3f}]", float(interval.low)


def main(words: list[str]) -> int:
    match words:
        case [pairs] if not pairs.startswith("-"):
            return print_lines(calibrate(Path(pairs), ENCODER))
        case [pairs, "--encoder", encoder]:
            return print_lines(calibrate(Path(pairs), Path(encoder)))
    print(USAGE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
