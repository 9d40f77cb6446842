"""Read pairs of a better and a worse answer, from files or a pinned data set of the hub, and hold some of them out.

    data/preference_inputs/* or the hub, data/held_out.jsonl, data/benchmark -> data/preferences/<pairs>.parquet

Every record becomes a row; one that must not be trained on has a reason.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
from pydantic import Field

from stages.lib.core.artifacts import read_jsonl, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import Count, Section, Seed, Share
from stages.lib.core.runner import run
from stages.lib.evaluation.contamination import Decontaminate, read_benchmark, rows_with_items
from stages.lib.models.hub import save_split
from stages.lib.reading.entry import FieldText, MergeSource, PathText
from stages.lib.reading.rows import read_source
from stages.lib.text.conversations import TURNS
from stages.lib.text.hashing import text_hash
from stages.lib.text.held_out import draw_texts
from stages.lib.text.overlap import without_particles

log = logging.getLogger("stages")
TEXTS = ["prompt", "chosen", "rejected"]
PREFERENCES = pa.schema(
    [(name, pa.bool_() if name == "held_out" else pa.string()) for name in ("id", *TEXTS, "held_out", "reason")]
)


class HeldOutPairs(Section):
    share: Share
    """Share of the prompts to hold out, drawn by hash; a drawn prompt takes all its pairs with it."""
    max_rows: Count
    """Most pairs to hold out."""
    seed: Seed
    """Seed of the draw."""


class Pairs(Section):
    from_: Literal["file", "hub"] = Field(alias="from")
    """Where the pairs come from."""
    inputs: str
    """Folder of the files. From the hub nothing in it is read."""
    name: str
    """A file in `inputs`, a pattern in which * stands for any characters, or a data set on the hub."""
    revision: str | None
    """Commit hash of the hub data set; null for a file."""
    config: str | None
    """Configuration of the hub data set; null if it has only one."""
    split: str | None
    """Split of the hub data set; null for a file."""
    records: PathText | None = None
    """Path to the records; null: the rows of the file."""
    prompt: FieldText
    """Field of the question."""
    chosen: FieldText
    """Field of the better answer."""
    rejected: FieldText
    """Field of the worse answer."""
    held_out: HeldOutPairs
    """Which pairs to hold out: they are not trained on, and show what the training did."""


class PairSource(MergeSource):
    """An entry of fetch_preferences as one of merge.sources, with the worse answer as its final answer."""

    @property
    def where(self) -> str:
        return f"{self.name} in fetch_preferences"


class Params(Section):
    fetch_preferences: dict[str, Pairs]
    """Pairs of a better and a worse answer to the same question, by name."""
    decontaminate: Decontaminate


def fetch_preferences(
    params: Params, pairs: str, inputs: Path, benchmark: Path, held_out: Path, preferences: Path
) -> None:
    settings = params.fetch_preferences[pairs]
    rows = read_pair_files(pairs, settings, inputs)
    rows["id"] = pair_ids(rows)
    rows["reason"] = unusable(rows, held_out, benchmark, params.decontaminate)
    usable = rows[rows["reason"].isna()]
    rows["held_out"] = rows.index.isin(held_out_pairs(usable, settings.held_out))
    write_table(preferences, rows, PREFERENCES)
    counts, held = rows["reason"].value_counts().sort_index(), int(rows["held_out"].sum())
    why = ", ".join(f"{reason} {count}" for reason, count in counts.items()) or "none"
    told = f"{len(usable) - held} to train on + {held} held out + {counts.sum()} unusable ({why})"
    log.info("%s: %d pairs read = %s", pairs, len(rows), told)
    if len(usable) == held:
        raise UserError(
            f"params.yaml: fetch_preferences.{pairs}: no pair to train on is left of {len(rows)}: {held} held out, "
            f"unusable {why}; look at its fields and at held_out"
        )


def read_pair_files(name: str, settings: Pairs, inputs: Path) -> pd.DataFrame:
    """Return prompt, chosen, rejected and reason of every record; the reason is null if it was readable."""
    fields: dict[str, Any] = {
        "instruction": [settings.prompt],
        "output": settings.chosen,
        "final": settings.rejected,
        "records": settings.records,
    }
    if settings.from_ == "file":
        return pair_table(inputs, PairSource(name=name, files=settings.name, **fields))
    with TemporaryDirectory() as folder:
        path, where = Path(folder) / f"{name}.parquet", f"fetch_preferences.{name}"
        save_split(where, settings.name, settings.revision, settings.config, settings.split, path)
        return pair_table(Path(folder), PairSource(name=name, **fields))


def pair_table(folder: Path, source: PairSource) -> pd.DataFrame:
    rows = [(row.instruction, row.output, row.final or "", row.reason) for row in read_source(folder, source)]
    return pd.DataFrame(rows, columns=[*TEXTS, "reason"])


def pair_ids(rows: pd.DataFrame) -> list[str]:
    """Return the id of each pair: a hash of its texts; if the pair occurs again, its number is hashed too."""
    numbers = rows.groupby(TEXTS).cumcount()
    texts = rows[TEXTS].itertuples(index=False)
    return [text_hash(*pair, *([str(n)] if n else [])) for pair, n in zip(texts, numbers, strict=True)]


def unusable(rows: pd.DataFrame, held_out: Path, benchmark: Path, settings: Decontaminate) -> pd.Series:
    """Return why each pair must not be trained on, or null. The first reason that applies counts."""
    reason = rows["reason"].astype(object).where(rows["reason"].notna(), None)

    def mark(name: str, applies: Iterable[bool]) -> None:
        reason.loc[reason.isna() & pd.Series(list(applies), index=rows.index, dtype=bool)] = name

    instructions = {without_particles(row["instruction"]) for row in read_jsonl(held_out)}
    mark("empty", (rows[TEXTS] == "").any(axis=1))
    mark("equal_answers", rows["chosen"] == rows["rejected"])
    mark("repeated", rows.duplicated(TEXTS))
    mark("held_out_instruction", (without_particles(prompt) in instructions for prompt in rows["prompt"]))
    mark("benchmark_item", rows.index.isin(leaked_pairs(rows, benchmark, settings)))
    return reason


def leaked_pairs(rows: pd.DataFrame, benchmark: Path, settings: Decontaminate) -> set[int]:
    """Return the numbers of the pairs of which one conversation contains a benchmark item that `decontaminate` drops.

    `decontaminate.similar` does not apply, because only the rows of raw have vectors. `decontaminate.fail` stops only
    `decontaminate`.
    """
    if not settings.drop:
        return set()
    texts = list(read_benchmark(benchmark, settings)["normalised"].unique())
    answers = [*rows["chosen"], *rows["rejected"]]
    conversations = {"id": [*rows.index, *rows.index], "instruction": [*rows["prompt"]] * 2, "output": answers}
    table = pa.table(conversations | {"turns": pa.nulls(len(answers), TURNS)})
    found = rows_with_items(table, texts, settings.rule())
    return {number for _, number, kind, *_ in found if settings.drops(kind)}


def held_out_pairs(usable: pd.DataFrame, settings: HeldOutPairs) -> pd.Index:
    """Return the labels of the pairs that are held out: of a drawn prompt, and of those that nearly repeat it."""
    prompts = usable["prompt"].map(without_particles)
    sizes = prompts.value_counts(sort=False)
    drawn = draw_texts(
        sizes.index, sizes.to_numpy(), settings.share, settings.max_rows, "held_out_pairs", settings.seed
    )
    return usable.index[prompts.isin(sizes.index[drawn])]


if __name__ == "__main__":
    run(fetch_preferences, Params, offline=False)
