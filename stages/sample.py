"""Select the rows of one arm, and record for every row of raw why it is in or out.

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


REPEATED = ("method", "by", "fraction", "allocation")
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
    seed: int
    """Seed of the training, and of the selection if the method draws rows (`random`, `steady`)."""
    replicate: str | None = None
    """The arm that this one repeats with another seed; all other settings are equal."""

    @model_validator(mode="after")
    def settings_fit_together(self) -> "Arm":
        if (self.method == "all") != (self.fraction is None):
            raise ValueError("`all` has no fraction, every other method needs one")
        if self.allocation == "koquality" and self.method not in ("spread", "highest"):
            raise ValueError("allocation: koquality needs method `spread` or `highest`")
        if self.allocation == "koquality" and self.by != "ppl":
            raise ValueError("allocation: koquality selects by ppl only")
        return self


class Params(Section):
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
    def replicates_differ_only_in_the_seed(self) -> "Params":
        for name, arm in self.arms.items():
            if arm.replicate is None:
                continue
            first = self.arms.get(arm.replicate)
            if first is None or first.replicate:
                raise ValueError(f"arms.{name}.replicate: {arm.replicate!r} is not an arm, or is itself a replicate")
            runs = [self.arms[run].seed for run in self.arms if arm.replicate in (run, self.arms[run].replicate)]
            if runs.count(arm.seed) > 1:
                raise ValueError(f"arms.{name}: another run of {arm.replicate} has seed {arm.seed} too")
            different = [key for key in REPEATED if getattr(arm, key) != getattr(first, key)]
            if different:
                raise ValueError(f"arms.{name}: a replicate of {arm.replicate} needs its {' and '.join(different)} too")
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
            f"params.yaml: arms.{arm}: fraction {settings.fraction} of {candidate.sum()} candidates is less than one "
            "row; raise the fraction"
        )
    write_jsonl(samples, corpus[rows["selected"]].to_dict("records"))
    write_table(sample_parquet, rows.astype({"rank": "Int64"}), SAMPLE)
    log.info("%s: %s of %s candidates", arm, f"{rows['selected'].sum():,}", f"{candidate.sum():,}")


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
