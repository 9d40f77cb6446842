"""Select the rows of one arm, and record for every row of raw why it is in or out.

data/raw.parquet, data/candidates.parquet, data/embeddings.parquet (if the method reads vectors)
    -> data/samples/<arm>.jsonl, data/samples/<arm>.parquet
"""

import logging
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field, model_validator
from threadpoolctl import threadpool_limits

from stages.lib.core.artifacts import read_arrow, read_table, require_same_rows, write_jsonl, write_table
from stages.lib.core.errors import UserError
from stages.lib.core.params import Count, Positive, Section, Seed
from stages.lib.core.runner import run
from stages.lib.selection.candidates import CELL, allow_repeated, unselectable
from stages.lib.selection.cells import Seeds, read_vectors
from stages.lib.selection.methods import METHODS, NO_VECTORS, PPL, MethodName, Wanted, select, uses_cells
from stages.lib.selection.partitions import count_partitions, take_partition
from stages.lib.selection.quotas import Allocation, Mask, arm_size, exact_fraction, rank_in_group
from stages.lib.text.conversations import to_rows, with_final_answers

log = logging.getLogger("stages")
SAMPLE = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("length_group", pa.int32()),
        ("cluster", pa.int32()),
        ("rank", pa.int64()),
        ("score", pa.float64()),
        ("selected", pa.bool_()),
        ("reason", pa.string()),
    ]
)


UNSIZED = ("all", "threshold")
OF_A_RUN = ("seed", "partition", "replicate")
"""Settings in which a replicate may differ from the arm it repeats."""
JUDGES = dict.fromkeys(["nll_answer", "nll_answer_alone", "ifd"], "likelihood") | {"score": "ledger or logprob"}
"""The judge (`rate.judge`) that gives a score; without it, no row has the score."""


class Threshold(Section):
    """A method `threshold` with its settings."""

    method: Literal["threshold"]
    by: str = PPL
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def has_a_bound(self) -> "Threshold":
        require_bounds(self.min, self.max)
        return self


def require_bounds(low: float | None, high: float | None) -> None:
    if low is None and high is None:
        raise ValueError("`threshold` needs `min`, `max` or both")


class Arm(Section):
    method: MethodName
    """An entry of METHODS in stages/lib/selection/methods.py."""
    by: str | None = None
    """The score that ranks the rows: a column of data/candidates.parquet. Null: the method's own, mostly `ppl`."""
    min: float | None = None
    """Rows with a lower score are not selected."""
    max: float | None = None
    """Rows with a higher score are not selected."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the candidates to select. `all` and `threshold` have none: they select every row that they may."""
    size: Threshold | None = None
    """Instead of `fraction`: as many rows as `threshold` would select with these settings."""
    allocation: Allocation = "exact"
    """`exact`: a quota for each cell, or for the whole corpus if the method uses no cells; `source`: for each source;
    `whole`: for the whole corpus; `koquality`: as in the original, with repeated rows."""
    distance: Annotated[float, Field(gt=0, le=2)] | None = None
    """Least cosine distance between two selected rows (`deita`)."""
    answers: Literal["output", "final"] = "output"
    """What to train on: a row's output, or only its final answer if the source has one (`final` in merge.sources)."""
    seed: Seed
    """Seed of the training, and of the selection if the method draws rows (`random`, `steady`)."""
    partition: Count = 0
    """The partition whose cells the method selects from: 0 for the first of `cluster.seeds`, 1 for the next."""
    replicate: str | None = None
    """The arm that this one repeats with another seed, another partition, or both; all other settings are equal."""

    @property
    def score(self) -> str | None:
        """The column that ranks the rows, None if the method ranks by nothing."""
        return self.by or METHODS[self.method].by

    @property
    def uses_cells(self) -> bool:
        return uses_cells(self.method, self.allocation)

    def chance(self) -> tuple[int | None, int | None]:
        """Return the seed and the partition, each None if the method selects the same rows with any other."""
        return self.seed if METHODS[self.method].draws_rows else None, self.partition if self.uses_cells else None

    @model_validator(mode="after")
    def has_one_size(self) -> "Arm":
        given = (self.fraction is not None) + (self.size is not None)
        if given != (self.method not in UNSIZED):
            raise ValueError("`all` and `threshold` have no fraction and no size; every other method needs one of them")
        if (self.method == "deita") != (self.distance is not None):
            raise ValueError("`deita` needs a distance; no other method has one")
        return self

    @model_validator(mode="after")
    def scores_and_allocation_fit_the_method(self) -> "Arm":
        method, bounds = METHODS[self.method], (self.min, self.max)
        if self.by and method.by != PPL:
            raise ValueError(f"by: `{self.method}` always ranks by {method.by or 'nothing'}; leave `by` out")
        if bounds != (None, None) and not method.by:
            raise ValueError(f"`{self.method}` ranks by nothing, so it has no `min` and no `max`")
        if self.method == "threshold":
            require_bounds(*bounds)
        if self.allocation not in method.allocations:
            able = [f"`{name}`" for name, other in METHODS.items() if self.allocation in other.allocations]
            raise ValueError(f"allocation: {self.allocation} needs method {', '.join(able[:-1])} or {able[-1]}")
        if self.allocation == "koquality" and (self.score != PPL or bounds != (None, None) or self.size):
            raise ValueError("allocation: koquality selects by ppl only, and needs a fraction without `min` and `max`")
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
            different = [
                key for key in Arm.model_fields if key not in OF_A_RUN and getattr(arm, key) != getattr(first, key)
            ]
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
    settings, corpus, where = params.arms[arm], read_arrow(raw), f"params.yaml: arms.{arm}"
    rows = read_cells(candidates, arm, settings.partition)
    require_same_rows(raw=corpus["id"].to_pylist(), candidates=rows["id"])
    if settings.allocation == "koquality":
        rows = rows.assign(reason=allow_repeated(rows["reason"]), instruction=corpus["instruction"].to_pylist())
    warn_of_shared_rows(params, arm)

    candidate = rows["reason"].isna()
    scores = find_scores(rows[candidate], settings.score or PPL, f"{where}.by")
    barred = unselectable(scores, settings.min, settings.max)
    share = find_share(settings, rows[candidate], barred, where)
    rows.loc[candidate, "reason"] = barred
    free = rows["reason"].isna().to_numpy()
    rows = rows.assign(score=rows[scores.name], selected=False)
    rows = rows.assign(rank=rank_in_group(rows[free], "score", settings.allocation))

    vectors_ND = read_vectors(embeddings, rows["id"], free) if METHODS[settings.method].reads_vectors else NO_VECTORS
    wanted = Wanted(share, settings.seed, settings.allocation, settings.distance or 0, vectors_ND)
    with threadpool_limits(params.threads):
        selected = select(rows[free], settings.method, wanted)
    require_size(settings, selected, share, where)
    rows.loc[free, "selected"] = selected
    rows.loc[free, "reason"] = np.where(selected, "selected", "outside the quota")
    write_jsonl(samples, to_train_on(corpus.filter(pa.array(rows["selected"])), arm, settings))
    write_table(sample_parquet, rows.astype({"rank": "Int64"}), SAMPLE)
    log.info("%s: %s of %s candidates%s", arm, f"{selected.sum():,}", f"{candidate.sum():,}", counted(barred))


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
        log.warning(
            "%s has the rows of %s, because %s draws none and %s; `report` will speak of this selection, not of the "
            "method",
            *(arm, same[0], settings.method),
            f"both are in partition {settings.partition}" if settings.uses_cells else "uses no cells",
        )


def find_scores(candidates: pd.DataFrame, by: str, key: str) -> pd.Series:
    """Return this score of the candidates; raise UserError, which names the key of params, if none of them has it."""
    names = [name for name in candidates.select_dtypes("number") if name not in CELL]
    if by not in names:
        raise UserError(f"{key}: no score {by!r}; the scores are {', '.join(names)}")
    if candidates.empty:
        raise UserError("data/candidates.parquet: no row is a candidate; its column `reason` says why")
    if candidates[by].isna().all():
        remedy = f"set rate.judge to {JUDGES[by]}" if by in JUDGES else "rank by another score"
        raise UserError(f"{key}: none of {len(candidates):,} candidates has a value in the column {by}; {remedy}")
    return candidates[by]


def find_share(settings: Arm, candidates: pd.DataFrame, barred: pd.Series, where: str) -> Fraction:
    """Return the share of the selectable rows that the arm needs; raise UserError if there are too few of them."""
    count, free = len(candidates), int(barred.isna().sum())
    if settings.size:
        scores = find_scores(candidates, settings.size.by, f"{where}.size.by")
        wanted = Fraction(int(unselectable(scores, settings.size.min, settings.size.max).isna().sum()))
    else:
        wanted = exact_fraction(settings.fraction) * count if settings.fraction else Fraction(free)
    if not free or int(wanted) > free:
        raise UserError(
            f"{where}: the arm needs {max(int(wanted), 1):,} of {count:,} candidates, but may select only "
            f"{free:,}{counted(barred)}; change `min` and `max`, or select fewer rows"
        )
    return min(wanted / free, Fraction(1))


def counted(barred: pd.Series) -> str:
    """Return why an arm may not select some candidates, with their numbers; nothing if it may select all."""
    counts = barred.value_counts().sort_index()
    reasons = ", ".join(f"{count:,} with {reason}" for reason, count in counts.items())
    return f" (excluded: {reasons})" if reasons else ""


def require_size(settings: Arm, selected: Mask, share: Fraction, where: str) -> None:
    """Raise UserError if no row is selected, or fewer than needed, which only a distance can cause."""
    found, size = int(selected.sum()), arm_size(len(selected), share)
    if settings.distance and found < size:
        raise UserError(
            f"{where}: the arm needs {size:,} rows, but only {found:,} are at least {settings.distance:g} apart; lower "
            "`distance`, or select fewer rows"
        )
    if not found and settings.size:
        raise UserError(
            f"{where}.size: no candidate has its {settings.size.by} within these bounds; change `min` and `max`"
        )
    if not found:
        raise UserError(
            f"{where}: fraction {settings.fraction} of {len(selected)} candidates is less than one row; raise the "
            "fraction"
        )


if __name__ == "__main__":
    run(sample, Params)
