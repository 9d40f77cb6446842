"""Select the rows of one arm, and say for every row why it is in or out.

data/raw.parquet, data/candidates.parquet -> data/samples/<arm>.jsonl, data/samples/<arm>.parquet
"""

import logging
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field, model_validator

from stages.lib.core.artifacts import read_table, require_same_rows, write_jsonl, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import Section
from stages.lib.core.runner import run
from stages.lib.selection.candidates import CELL, allow_repeated, rank_in_cell
from stages.lib.selection.methods import Allocation, MethodName, select

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


class Arm(Section):
    method: MethodName
    """Entry of METHODS in stages/lib/selection/methods.py."""
    by: str = "ppl"
    """Score that ranks the rows of a cell: a column of data/candidates.parquet."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the candidates; `all` has none because it takes every candidate."""
    allocation: Allocation = "exact"
    """`exact`: one size for all arms of a fraction. `koquality`: the original's picks, with repeated instructions."""
    seed: int
    """Draws the rows of `random` and `steady`, and trains every arm."""
    replicate: str | None = None
    """The arm of which this is another run: everything but the seed is equal."""

    @model_validator(mode="after")
    def all_has_no_fraction(self) -> "Arm":
        if (self.method == "all") != (self.fraction is None):
            raise ValueError("every method but `all` states a fraction")
        if self.allocation == "koquality" and self.method not in ("spread", "highest"):
            raise ValueError("allocation: koquality goes with `spread` or `highest`")
        if self.allocation == "koquality" and self.by != "ppl":
            raise ValueError("allocation: koquality picks by ppl")
        return self


class Params(Section):
    arms: dict[str, Arm]
    """Ways to choose rows, by name."""
    control: str | None
    """The arm that all others are compared with; null if there are no arms."""

    @model_validator(mode="after")
    def control_is_an_arm(self) -> "Params":
        """DVC itself would fail only at `compare`, after all training."""
        if self.arms and self.control not in self.arms:
            raise ValueError(f"control: {self.control!r} names no arm; there are {', '.join(self.arms)}")
        if self.arms and self.arms[str(self.control)].replicate:
            raise ValueError(f"control: {self.control} is a replicate; name the arm that it replicates")
        taken = {"base", "hub"} & set(self.arms)
        if taken:
            raise ValueError(f"arms.{taken.pop()}: models/ has a folder of that name already; name the arm otherwise")
        return self

    @model_validator(mode="after")
    def replicates_differ_in_the_seed_alone(self) -> "Params":
        for name, arm in self.arms.items():
            if arm.replicate is None:
                continue
            first = self.arms.get(arm.replicate)
            if first is None or first.replicate:
                raise ValueError(f"arms.{name}.replicate: {arm.replicate!r} names no arm that is itself no replicate")
            runs = [self.arms[run].seed for run in self.arms if arm.replicate in (run, self.arms[run].replicate)]
            if runs.count(arm.seed) > 1:
                raise ValueError(f"arms.{name}: seed {arm.seed} is that of another run of {arm.replicate}")
            other = [
                key for key in ("method", "by", "fraction", "allocation") if getattr(arm, key) != getattr(first, key)
            ]
            if other:
                raise ValueError(f"arms.{name}: a replicate of {arm.replicate} has its {' and '.join(other)} too")
        return self


def sample(params: Params, arm: str, raw: Path, candidates: Path, samples: Path, sample_parquet: Path) -> None:
    settings, corpus, rows = params.arms[arm], read_table(raw), read_table(candidates)
    require_same_rows(raw=corpus["id"], candidates=rows["id"])
    if settings.allocation == "koquality":
        rows = rows.assign(reason=allow_repeated(rows["reason"]), instruction=corpus["instruction"])
    candidate = rows["reason"].isna()
    require_scores(rows[candidate], arm, settings.by)

    rows = rows.assign(score=rows[settings.by], rank=rank_in_cell(rows[candidate], settings.by), selected=False)
    rows.loc[candidate, "selected"] = select(
        rows[candidate], settings.method, settings.allocation, settings.fraction or 1, settings.seed
    )
    rows.loc[candidate, "reason"] = np.where(rows.loc[candidate, "selected"], "selected", "outside the quota")
    if not rows["selected"].any():
        raise UserError(
            f"params.yaml: arms.{arm}: no row: fraction {settings.fraction} of {candidate.sum()} candidates is "
            "less than one; raise the fraction"
        )
    write_jsonl(samples, corpus[rows["selected"]].to_dict("records"))
    write_table(sample_parquet, rows.astype({"rank": "Int64"}), SAMPLE)
    log.info("%s: %s of %s candidates", arm, f"{rows['selected'].sum():,}", f"{candidate.sum():,}")


def require_scores(candidates: pd.DataFrame, arm: str, by: str) -> None:
    """Raise UserError unless every candidate has the score, because arms of one fraction must have one size."""
    scores = [name for name in candidates.select_dtypes("number") if name not in CELL]
    if by not in scores:
        raise UserError(f"params.yaml: arms.{arm}.by: no score {by!r}; there are {', '.join(scores)}")
    if candidates.empty:
        raise UserError("data/candidates.parquet: no row is a candidate; `reason` says why, row by row")
    without = int(candidates[by].isna().sum())
    if without:
        raise UserError(f"params.yaml: arms.{arm}.by: {without} of {len(candidates)} candidates have no {by}")


if __name__ == "__main__":
    run(sample, Params)
