"""Select the rows of one arm, and record for every row of raw why it is in or out.

data/raw.parquet, data/candidates.parquet -> data/samples/<arm>.jsonl, data/samples/<arm>.parquet
"""

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field, model_validator

from stages.lib.core.artifacts import read_arrow, read_table, require_same_rows, write_jsonl, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import Count, Positive, Section, Seed
from stages.lib.core.runner import run
from stages.lib.selection.candidates import CELL, allow_repeated, rank_in_cell
from stages.lib.selection.cells import Seeds
from stages.lib.selection.methods import METHODS, Allocation, MethodName, select
from stages.lib.selection.partitions import count_partitions, take_partition
from stages.lib.text.conversations import to_rows, with_final_answers

log = logging.getLogger("stages")
SAMPLE = pa.schema(
    [
        ("id", pa.string()),
        ("length_group", pa.int32()),
        ("cluster", pa.int32()),
        ("rank", pa.int64()),
        ("score", pa.float64()),
        ("selected", pa.bool_()),
        ("reason", pa.string()),
    ]
)


REPEATED = ("method", "by", "fraction", "allocation", "answers")
"""Settings that a replicate shares with the arm it repeats."""


class Arm(Section):
    method: MethodName
    """An entry of METHODS in stages/lib/selection/methods.py."""
    by: str = "ppl"
    """The score that ranks the rows of a cell: a column of data/candidates.parquet."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the candidates to select. `all` has none, because it selects every candidate."""
    allocation: Allocation = "exact"
    """`exact` gives all arms of a fraction one size; `koquality` selects as the original does, with repeated rows."""
    answers: Literal["output", "final"] = "output"
    """What to train on: a row's output, or only its final answer if the source has one (`final` in merge.sources)."""
    seed: Seed
    """Seed of the training, and of the selection if the method draws rows (`random`, `steady`)."""
    partition: Count = 0
    """The partition whose cells the method selects from: 0 for the first of `cluster.seeds`, 1 for the next."""
    replicate: str | None = None
    """The arm that this one repeats with another seed, another partition, or both; all other settings are equal."""

    def chance(self) -> tuple[int | None, int | None]:
        """Return the seed and the partition, each None if the method selects the same rows with any other."""
        method = METHODS[self.method]
        return self.seed if method.draws_rows else None, self.partition if method.uses_cells else None

    @model_validator(mode="after")
    def settings_fit_together(self) -> "Arm":
        if (self.method == "all") != (self.fraction is None):
            raise ValueError("`all` has no fraction, every other method needs one")
        if self.allocation == "koquality" and self.method not in ("spread", "highest"):
            raise ValueError("allocation: koquality needs method `spread` or `highest`")
        if self.allocation == "koquality" and self.by != "ppl":
            raise ValueError("allocation: koquality selects by ppl only")
        return self


class AnyCluster(Section):
    model_config = Section.model_config | {"extra": "ignore"}
    seeds: Seeds


class Params(Section):
    threads: Positive
    portable: bool = False
    cluster: AnyCluster
    arms: dict[str, Arm]
    """Ways to select rows, by name."""
    control: str | None
    """The arm that all others are compared with; null if there are no arms."""

    @model_validator(mode="after")
    def control_is_an_arm(self) -> "Params":
        """Without this check, DVC would fail only at `compare`, after all training."""
        if self.arms and self.control not in self.arms:
            raise ValueError(f"control: {self.control!r} is not an arm; the arms are {', '.join(self.arms)}")
        if self.arms and self.arms[str(self.control)].replicate:
            raise ValueError(f"control: {self.control} is a replicate; name the arm that it repeats")
        reserved = {"base", "hub"} & set(self.arms)
        if reserved:
            raise ValueError(f"arms.{reserved.pop()}: the name is reserved for a folder in models/; rename the arm")
        return self

    @model_validator(mode="after")
    def every_arm_has_a_partition(self) -> "Params":
        last = len(self.cluster.seeds) - 1
        for name, arm in self.arms.items():
            if arm.partition > last:
                raise ValueError(
                    f"arms.{name}.partition: {arm.partition}, but cluster.seeds has {last + 1} seeds, so the last "
                    f"partition is {last}; add a seed there or lower the partition"
                )
        return self

    @model_validator(mode="after")
    def replicates_differ_only_in_seed_and_partition(self) -> "Params":
        for name, arm in self.arms.items():
            if arm.replicate is None:
                continue
            first = self.arms.get(arm.replicate)
            if first is None or first.replicate:
                raise ValueError(f"arms.{name}.replicate: {arm.replicate!r} is not an arm, or is itself a replicate")
            different = [key for key in REPEATED if getattr(arm, key) != getattr(first, key)]
            if different:
                raise ValueError(f"arms.{name}: a replicate of {arm.replicate} needs its {' and '.join(different)} too")
            for twin, other in self.other_runs(name).items():
                if (arm.seed, arm.chance()) == (other.seed, other.chance()):
                    raise ValueError(
                        f"arms.{name}: {twin} has seed {arm.seed} too, and the same rows: one run, not two"
                    )
        return self

    def other_runs(self, name: str) -> dict[str, Arm]:
        """Return the arms that are runs of the same method, by name."""
        first = self.arms[name].replicate or name
        return {other: arm for other, arm in self.arms.items() if other != name and first in (other, arm.replicate)}


def sample(
    params: Params, arm: str, raw: Path, candidates: Path, embeddings: Path, samples: Path, sample_parquet: Path
) -> None:
    settings, corpus = params.arms[arm], read_arrow(raw)
    rows = read_cells(candidates, arm, settings.partition)
    require_same_rows(raw=corpus["id"].to_pylist(), candidates=rows["id"])
    if settings.allocation == "koquality":
        rows = rows.assign(reason=allow_repeated(rows["reason"]), instruction=corpus["instruction"].to_pylist())
    candidate = rows["reason"].isna()
    require_scores(rows[candidate], arm, settings.by)
    warn_of_shared_rows(params, arm)

    rows = rows.assign(score=rows[settings.by], rank=rank_in_cell(rows[candidate], settings.by), selected=False)
    rows.loc[candidate, "selected"] = select(
        rows[candidate], settings.method, settings.allocation, settings.fraction or 1, settings.seed
    )
    rows.loc[candidate, "reason"] = np.where(rows.loc[candidate, "selected"], "selected", "outside the quota")
    if not rows["selected"].any():
        raise UserError(
            f"params.yaml: arms.{arm}: fraction {settings.fraction} of {candidate.sum()} candidates is less than one "
            "row; raise the fraction"
        )
    write_jsonl(samples, to_train_on(corpus.filter(pa.array(rows["selected"])), arm, settings))
    write_table(sample_parquet, rows.astype({"rank": "Int64"}), SAMPLE)
    log.info("%s: %s of %s candidates", arm, f"{rows['selected'].sum():,}", f"{candidate.sum():,}")


def to_train_on(selected: pa.Table, arm: str, settings: Arm) -> list[dict[str, Any]]:
    """Return the selected rows with the answers that the arm is trained on."""
    rows = to_rows(selected)
    if settings.answers == "output":
        return rows
    finals = sum("final" in row for row in rows)
    if not finals:
        raise UserError(
            f"params.yaml: arms.{arm}.answers: no selected row has a final answer; name its field as `final` in "
            "merge.sources"
        )
    log.info("%s: %d of %d rows are trained on their final answer only", arm, finals, len(rows))
    return with_final_answers(rows)


def read_cells(path: Path, arm: str, partition: int) -> pd.DataFrame:
    """Return data/candidates.parquet with only the cells of this partition."""
    rows = read_table(path)
    partitions = count_partitions(rows)
    if partition >= partitions:
        raise UserError(
            f"params.yaml: arms.{arm}.partition: {partition}, but {path} has {partitions} partitions (from 0); "
            "run `dvc repro`, which cuts the corpus for every seed in cluster.seeds"
        )
    return take_partition(rows, partition)


def warn_of_shared_rows(params: Params, arm: str) -> None:
    """Say before any training that a replicate repeats a selection."""
    settings, others = params.arms[arm], params.other_runs(arm)
    same = [name for name, other in others.items() if other.chance() == settings.chance()]
    if settings.replicate and same:
        uses_cells = METHODS[settings.method].uses_cells
        log.warning(
            "%s has the rows of %s, because %s draws none and %s; `report` will speak of this selection, not of the "
            "method",
            *(arm, same[0], settings.method),
            f"both are in partition {settings.partition}" if uses_cells else "uses no cells",
        )


def require_scores(candidates: pd.DataFrame, arm: str, by: str) -> None:
    """Raise UserError unless every candidate has the score: all arms must select from the same candidates."""
    scores = [name for name in candidates.select_dtypes("number") if name not in CELL]
    if by not in scores:
        raise UserError(f"params.yaml: arms.{arm}.by: no score {by!r}; the scores are {', '.join(scores)}")
    if candidates.empty:
        raise UserError("data/candidates.parquet: no row is a candidate; its column `reason` says why")
    without = int(candidates[by].isna().sum())
    if without:
        raise UserError(f"params.yaml: arms.{arm}.by: {without} of {len(candidates)} candidates have no {by}")


if __name__ == "__main__":
    run(sample, Params)
