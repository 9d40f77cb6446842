"""Show how often each arm's models reach the right final answer: `python -m tools.final_answers [TOKENS]`.

The questions are the held-out rows with a final answer (`final` in merge.sources), such as word problems. Every model
answers greedily with at most TOKENS tokens (128). What follows `정답:` in the answer must equal what follows it in the
row's final answer; 1,200 and 1200개 are equal. An arm with several runs is compared with the control over runs and
items, as `report` does. The floor is the share that is right if every question gets the most frequent final answer.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.lib.core.artifacts import read_jsonl
from stages.lib.core.errors import UserError
from stages.lib.core.params import read_params
from stages.lib.evaluation.answers import final_answer, reaches
from stages.lib.models.loading import LoadConfig, load_tokenizer
from stages.lib.models.lora import load_network
from stages.lib.statistics.evidence import runs_of
from stages.lib.statistics.verdicts import with_interval
from stages.lib.text.conversations import Turn, turns_of
from stages.report import Params as Report
from stages.train import Params as Training
from tools.output import print_lines

HELD_OUT, MODELS, BASE = Path("data/held_out.jsonl"), Path("models"), Path("models/hub/base")
BATCH_TOKENS = 4096


def questions() -> list[tuple[list[Turn], str]]:
    """Return the turns before the answer, and the right final answer, of every held-out row that has one."""
    if not HELD_OUT.is_file():
        raise UserError(f"{HELD_OUT}: missing; run `dvc repro`, or `dvc pull`")
    found = [(turns_of(row)[:-1], final_answer(row["final"])) for row in read_jsonl(HELD_OUT) if "final" in row]
    asked = [(turns, right) for turns, right in found if right is not None]
    if not asked:
        raise UserError(
            f"{HELD_OUT}: no row has a final answer after `정답:`; name its field as `final` in merge.sources, such as "
            'final: "정답: {answer}", and hold out rows of that source'
        )
    return asked


def texts_of(folder: Path, asked: list[list[Turn]], settings: Training, tokens: int) -> list[str]:
    """Return a model's greedy answer to every question [N]."""
    from stages.lib.scoring.generation import end_ids_of, greedy, prompt_ids

    tokenizer = load_tokenizer(folder)
    model = load_network(folder, BASE, LoadConfig(dtype="fp32"), settings.threads)
    prompts = {str(row): prompt_ids(tokenizer, turns) for row, turns in enumerate(asked, start=1)}
    stops = end_ids_of(model, tokenizer)
    answers = greedy(model, prompts, stops, tokens, BATCH_TOKENS, f"{folder.name}, batches")
    return [tokenizer.decode(answer.tokens) for answer in answers]


def right_answers(name: str, items: list[tuple[list[Turn], str]], settings: Training, tokens: int) -> NDArray[Any]:
    """Return whether each answer of a model is right [N], as 0 and 1."""
    folder = MODELS / name
    if not folder.is_dir():
        raise UserError(f"{folder}: missing; run `dvc repro`, or `dvc pull`")
    texts = texts_of(folder, [turns for turns, _ in items], settings, tokens)
    return np.array([reaches(text, right) for text, (_, right) in zip(texts, items, strict=True)], dtype=float)


def compared(control: str, runs: dict[str, NDArray[Any]]) -> Iterator[str]:
    """Yield a line for every arm: its share of right answers, and the difference to the control over runs and items.

    `runs` has the right answers [K, N] of the K runs of each arm.
    """
    from stages.lib.statistics.replicates import crossed

    for name, ours_KN in runs.items():
        share = (
            f"{name}, {len(ours_KN)} runs: {ours_KN.mean():.4f} ({', '.join(f'{run.mean():.4f}' for run in ours_KN)})"
        )
        if name == control or min(len(ours_KN), len(runs[control])) < 2:
            yield share
            continue
        found = crossed([ours_KN], [runs[control]])
        yield f"{share}; minus {control}: {with_interval(found)}"


def lines(tokens: int) -> Iterator[str]:
    items, settings, arms = questions(), read_params(Training), read_params(Report)
    rights = Counter(right for _, right in items)
    (common, times), *_ = rights.most_common(1)
    yield f"{len(items)} held-out questions; floor {times / len(items):.4f} (always {common})"
    runs = {
        name: np.array([right_answers(run, items, settings, tokens) for run in group])
        for name, group in runs_of(arms.arms).items()
    }
    yield from compared(str(arms.control), runs)


if __name__ == "__main__":
    sys.exit(print_lines(lines(int(sys.argv[1]) if len(sys.argv) > 1 else 128)))
