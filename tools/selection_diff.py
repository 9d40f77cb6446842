"""Say which rows each arm gained and lost between two revisions, and why: `python -m tools.selection_diff A B [ARM]`.

Reads data/raw.parquet, data/candidates.parquet, data/samples/<arm>.parquet, params.yaml, dvc.lock and
metrics/summary.json at both revisions, pulled or not. Each row that came or went has one cause, the first that applies:

- new row, row gone: raw does not have the row at the other revision. An edited row is one that went and one that came.
- became a candidate, no longer a candidate.
- settings: a setting that decides which rows the arm selects changed, or only one revision has the arm.
- moved cell: the row is in another cell. The cell numbers of two fits of k-means cannot be compared, so cells are
  matched such that as many rows as possible stay in their cell.
- score: the score that ranks the row changed.
- quota: the arm selects a different number of rows from the row's cell, or from its source if sources have quotas.
- displaced: nothing about the row or its quota changed, so the rows around it did.

A moved cell is a cause only for arms that select by cells. A row that came and a row that went from the same cell are
like for like; the other rows that came are net. If the arm does not select by cells, sources count instead of cells.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.optimize import linear_sum_assignment

from stages.lib.core.artifacts import require_same_rows
from stages.lib.core.errors import UserError
from stages.lib.core.params import PARAMS, describe
from stages.lib.selection.candidates import CELL
from stages.lib.selection.methods import PPL
from stages.sample import Arm
from tools.output import print_lines
from tools.revisions import MissingError, read_at, read_lock, table_at, yaml_at

Cuts = NDArray[np.float64]
NEW, GONE = "new row", "row gone"
BECAME, CEASED = "became a candidate", "no longer a candidate"
SETTINGS, MOVED, SCORE, QUOTA, DISPLACED = "settings", "moved cell", "score", "quota", "displaced"
NOWHERE = -1
"""The group of a row whose cell has no counterpart at the other revision."""
QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")
EXAMPLES = 10
"""Rows to show of those that came, and of those that went."""
WITHOUT_EFFECT = {"seed", "partition", "replicate", "answers", "by"}
"""Settings that do not decide which rows are selected, or that `Arm.chance` and `Arm.score` have instead."""


@dataclass(frozen=True)
class Selection:
    """What an arm selects at one revision."""

    arm: str
    settings: Arm | None
    """None if there is no such arm at this revision."""
    rows: pd.DataFrame
    """Every row of raw, by id: `source`, `instruction`, `output`, `ppl`, whether it is a `candidate` and `selected`; if
    there is such an arm, also its `length_group` and `cluster`, and the `score` that ranks it."""

    @property
    def chosen(self) -> pd.Index:
        return self.rows.index[self.rows["selected"]]


@dataclass(frozen=True)
class SelectionDiff:
    """What an arm gained and lost."""

    arm: str
    rows_before: int
    rows_after: int
    came: pd.DataFrame
    """`id`, `source`, `instruction`, `cause` and `edited`, by id. If the row is the new form of an edited row, `edited`
    is the id of the old form, else null."""
    went: pd.DataFrame
    """Likewise; `edited` is the id of the new form."""
    like_for_like: int
    net: int
    """Rows that came and are not like for like."""
    causes_in: dict[str, int]
    causes_out: dict[str, int]
    shares: dict[str, pd.DataFrame]
    """Shares of the selected rows, `before` and `after`, by `source`, `length` (characters of the instruction) and
    `ppl` (quarters of the candidates of each revision)."""
    only: str | None = None
    """If only one revision has this arm: `before` or `after`."""
    luck: float | None = None
    """The share of its rows that changing only the k-means seed replaces, if `stability` measures the method."""
    code: tuple[str, ...] = ()
    """The code of the selection that differs between the revisions. No cause covers it."""


class Groups(NamedTuple):
    """The cells or the sources of all rows, by id. A group has the same name before and after."""

    unit: str
    """What has a quota: a `cell`, a `source` or the whole `corpus`. For a corpus, the groups are its sources."""
    before: pd.Series
    after: pd.Series
    uneven: pd.Index
    """The groups that do not give both selections the same number of rows."""


def selection_diff(a: str, b: str, arm: str) -> SelectionDiff:
    """Return what an arm gained and lost from revision `a` to revision `b`.

    Raises UserError if neither has the arm, or if a file cannot be read there (see `tools.revisions`).
    """
    before, after = read_selection(a, arm), read_selection(b, arm)
    if not (before.settings or after.settings):
        raise UserError(f"{arm}: no such arm at {a} or {b}; the arms are {', '.join(either_has(a, b))}")
    found = diff_selection(before, after)
    if found.only or after.settings is None:
        return found
    return replace(found, luck=luck_of(after.settings, b), code=tuple(changed_code(a, b, arm)))


def diff_selection(before: Selection, after: Selection) -> SelectionDiff:
    """Return what an arm gained and lost between two selections, at least one of which has the arm."""
    groups, edits = group_rows(before, after), pair_edits(before.rows, after.rows)
    came = find_causes(after, before, groups, (NEW, BECAME))
    went = find_causes(before, after, groups, (GONE, CEASED))
    swaps = count_swaps(groups.after[came.index], groups.before[went.index])
    return SelectionDiff(
        arm=after.arm,
        rows_before=len(before.chosen),
        rows_after=len(after.chosen),
        came=describe_moves(after.rows, came, {new: old for old, new in edits.items()}),
        went=describe_moves(before.rows, went, edits),
        like_for_like=swaps,
        net=len(came) - swaps,
        causes_in=count_causes(came),
        causes_out=count_causes(went),
        shares=find_shares(before, after),
        only=None if before.settings and after.settings else "before" if before.settings else "after",
    )


def find_causes(here: Selection, there: Selection, groups: Groups, names: tuple[str, str]) -> pd.Series:
    """Return by id why each row is selected here and not there: the first cause that applies.

    `names` are the causes of a row that raw does not have there, and of one that is not a candidate there.
    """
    ids = here.chosen.difference(there.chosen).sort_values()
    absent, unable = names
    one_arm = here.settings is None or there.settings is None
    before, after = groups.before.reindex(ids), groups.after.reindex(ids)
    able = there.rows["candidate"].reindex(ids)  # on ids, `isin` is many times slower
    causes = [
        (SETTINGS, np.full(len(ids), one_arm)),
        (absent, able.isna()),
        (unable, able == False),  # noqa: E712
        (SETTINGS, np.full(len(ids), decisive(here.settings) != decisive(there.settings))),
        (MOVED, (before != after) & (groups.unit == "cell")),
        (SCORE, differ(scores_of(here, ids), scores_of(there, ids))),
        (QUOTA, after.isin(groups.uneven) & (groups.unit != "corpus")),
    ]
    found = np.select([mask for _, mask in causes], [cause for cause, _ in causes], DISPLACED)
    return pd.Series(found, index=ids, dtype=object)


def differ(one: pd.Series, other: pd.Series) -> pd.Series:
    return (one != other) & ~(one.isna() & other.isna())


def scores_of(selection: Selection, ids: pd.Index) -> pd.Series:
    """Return the scores that rank these rows, missing if the arm ranks by none."""
    ranked = selection.settings is not None and selection.settings.score is not None
    return selection.rows["score"].reindex(ids) if ranked else pd.Series(np.nan, index=ids)


def decisive(arm: Arm | None) -> dict[str, Any]:
    """Return the settings that decide which rows an arm selects."""
    return {} if arm is None else arm.model_dump(exclude=WITHOUT_EFFECT) | {"by": arm.score, "chance": arm.chance()}


def group_rows(before: Selection, after: Selection) -> Groups:
    units = {unit_of(before.settings), unit_of(after.settings)}
    unit = units.pop() if len(units) == 1 else "corpus"
    one, other = before.rows["source"], after.rows["source"]
    if unit == "cell":
        one, other = cell_numbers(before.rows), cell_numbers(after.rows)
        common = one.index.intersection(other.index)
        one = one.map(match_cells(one[common], other[common])).fillna(NOWHERE).astype(np.int64)
    sizes = pd.DataFrame({"one": one[before.chosen].value_counts(), "other": other[after.chosen].value_counts()})
    return Groups(unit, one, other, sizes.index[differ(sizes["one"], sizes["other"])])


def unit_of(arm: Arm | None) -> str:
    if arm is None:
        return "corpus"
    return "cell" if arm.uses_cells else "source" if arm.allocation == "source" else "corpus"


def cell_numbers(rows: pd.DataFrame) -> pd.Series:
    group, cluster = (rows[name].astype(np.int64) for name in CELL)
    return group * 2**32 + cluster


def match_cells(before: pd.Series, after: pd.Series) -> dict[int, int]:
    """Return the cell after for each cell before, such that as many rows of both as possible stay in their cell."""
    one, names = pd.factorize(before, sort=True)
    other, other_names = pd.factorize(after, sort=True)
    pairs = one * len(other_names) + other
    overlap = np.bincount(pairs, minlength=len(names) * len(other_names)).reshape(len(names), len(other_names))
    row, column = linear_sum_assignment(overlap, maximize=True)
    shared = overlap[row, column] > 0
    return dict(zip(names[row[shared]], other_names[column[shared]], strict=True))


def count_swaps(came: pd.Series, went: pd.Series) -> int:
    """Return how many rows that came can be paired with one that went from the same group."""
    counts = pd.DataFrame({"came": came.value_counts(), "went": went.value_counts()}).fillna(0)
    return int(counts.min(axis=1).sum())


def pair_edits(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, str]:
    """Return the new id of every row that was edited, by its old id.

    A row that is gone and a new row are one edited row if no other of these rows has their source and instruction, or
    else their source and output.
    """
    gone, new = before.loc[before.index.difference(after.index)], after.loc[after.index.difference(before.index)]
    pairs: dict[str, str] = {}
    for text in ("instruction", "output"):
        keys, paired = ["source", text], {*pairs, *pairs.values()}
        left, right = (
            rows.loc[~rows.index.isin(paired), keys].rename_axis("id").reset_index().drop_duplicates(keys, keep=False)
            for rows in (gone, new)
        )
        found = left.merge(right, on=keys)
        pairs |= dict(zip(found["id_x"], found["id_y"], strict=True))
    return pairs


def describe_moves(rows: pd.DataFrame, causes: pd.Series, edits: dict[str, str]) -> pd.DataFrame:
    found = rows.loc[causes.index, ["source", "instruction"]].assign(cause=causes)
    edited = pd.Series([edits.get(row) for row in found.index], found.index, dtype=object)
    return found.assign(edited=edited).rename_axis("id").reset_index()


def count_causes(causes: pd.Series) -> dict[str, int]:
    """Return how many rows have each cause, the most frequent first."""
    return {str(cause): int(count) for cause, count in causes.value_counts().items()}


def find_shares(before: Selection, after: Selection) -> dict[str, pd.DataFrame]:
    """Return the shares of the selected rows by source, length and perplexity.

    Lengths are cut at the quartiles of all rows before, so that a class means the same in both. Perplexities are cut at
    the quartiles of each revision's own candidates, because those of two scorers cannot be compared.
    """
    cuts = np.unique(np.ceil(quartiles(before.rows["instruction"].str.len())))
    classes = {
        "source": lambda rows, _: rows["source"],
        "length": lambda rows, _: named_class(rows["instruction"].str.len(), cuts, length_names(cuts)),
        "ppl": lambda rows, pool: named_class(rows["ppl"], quartiles(pool["ppl"]), QUARTERS),
    }
    return {name: compare_shares(before, after, classify) for name, classify in classes.items()}


def quartiles(values: pd.Series) -> Cuts:
    return values.quantile([0.25, 0.5, 0.75]).to_numpy(dtype=np.float64)


def length_names(cuts: Cuts) -> list[str]:
    """Return the names of the classes of lengths, in characters: all but the first begin at a cut."""
    numbers = [int(cut) for cut in cuts]
    between = [f"{low} to {high - 1}" for low, high in pairwise(numbers)]
    return [f"under {numbers[0]}", *between, f"{numbers[-1]} or more"]


def named_class(values: pd.Series, cuts: Cuts, names: Sequence[str]) -> pd.Series:
    """Return the class of each value; a class begins at a cut."""
    places = np.searchsorted(cuts, values.to_numpy(dtype=np.float64), side="right")
    return pd.Series(pd.Categorical.from_codes(places, names), index=values.index)


def compare_shares(before: Selection, after: Selection, classify: Callable[..., pd.Series]) -> pd.DataFrame:
    """Return the share of each class among the selected rows."""
    shares = {}
    for side, selection in (("before", before), ("after", after)):
        pool = selection.rows[selection.rows["candidate"]]
        found = classify(selection.rows.loc[selection.chosen], pool)
        shares[side] = found.value_counts(normalize=True, sort=False)
    return pd.DataFrame(shares).fillna(0.0).sort_index()


def read_selection(revision: str, arm: str) -> Selection:
    """Return what an arm selects at a revision."""
    settings = arms_of(revision).get(arm)
    corpus = read_corpus(revision)
    if settings is None:
        return Selection(arm, None, corpus.assign(candidate=corpus["reason"].isna(), selected=False))
    try:
        valid = Arm.model_validate(settings)
    except ValidationError as error:
        raise UserError(f"{PARAMS} at {revision}: arms.{arm}.{describe(error.errors()[0])}") from None
    return make_selection(arm, valid, corpus, table_at(f"data/samples/{arm}.parquet", revision))


def make_selection(arm: str, settings: Arm, corpus: pd.DataFrame, sample: pd.DataFrame) -> Selection:
    """Return the selection of an arm from its table, data/samples/<arm>.parquet, and `join_corpus`."""
    require_same_rows(raw=corpus.index, **{f"samples/{arm}": sample["id"]})
    table = sample.set_index("id")[[*CELL, "score", "selected"]]
    barred = corpus["reason"].notna() & (sample["reason"].to_numpy() == corpus["reason"])
    return Selection(arm, settings, corpus.join(table).assign(candidate=~barred))


@lru_cache(maxsize=2)
def read_corpus(revision: str) -> pd.DataFrame:
    """Return `join_corpus` of a revision; cached, because all arms of a report need it."""
    raw = table_at("data/raw.parquet", revision, "id", "source", "instruction", "output")
    return join_corpus(raw, table_at("data/candidates.parquet", revision, "id", "ppl", "reason"))


def join_corpus(raw: pd.DataFrame, candidates: pd.DataFrame) -> pd.DataFrame:
    """Return the texts of all rows, by id, with their perplexity and the reason if they are no candidates."""
    require_same_rows(raw=raw["id"], candidates=candidates["id"])
    return raw.assign(ppl=candidates["ppl"], reason=candidates["reason"]).set_index("id")


def arms_of(revision: str) -> dict[str, Any]:
    return yaml_at(str(PARAMS), revision)["arms"]


def luck_of(arm: Arm, revision: str) -> float | None:
    """Return the share of the arm's rows that another seed of k-means replaces; None if `stability` does not say it."""
    if not arm.uses_cells or arm.score != PPL:
        return None
    try:
        methods = json.loads(read_at("metrics/summary.json", revision))["stability"]["methods"]
    except (MissingError, KeyError):
        return None
    overlap = methods.get(arm.method, {}).get("overlap", {})
    variants = yaml_at(str(PARAMS), revision)["stability"]["variants"]
    kept = [overlap[name] for name, change in variants.items() if list(change) == ["seeds"] and name in overlap]
    return 1 - float(np.mean(kept)) if kept else None


def changed_code(a: str, b: str, arm: str) -> Iterator[str]:
    """Yield the files of the code of the selection that have another md5 in the other dvc.lock."""
    one, other = (
        {
            dep["path"]: dep["md5"]
            for stage in ("cluster", "candidates", f"sample@{arm}")
            for dep in read_lock(revision)["stages"].get(stage, {}).get("deps", [])
            if dep["path"].startswith("stages/")
        }
        for revision in (a, b)
    )
    yield from sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))


def either_has(a: str, b: str) -> list[str]:
    """Return the arms of both revisions, those of `b` first."""
    return list(arms_of(b) | arms_of(a))


def report_lines(a: str, b: str, arms: Sequence[str]) -> Iterator[str]:
    """Yield Markdown about these arms, or about all if none is given."""
    for arm in arms or either_has(a, b):
        yield from describe_diff(selection_diff(a, b, arm), a, b)


def describe_diff(diff: SelectionDiff, a: str, b: str) -> Iterator[str]:
    yield f"## {diff.arm}: {diff.rows_before:,} → {diff.rows_after:,} rows\n"
    if diff.only:
        yield f"{a if diff.only == 'after' else b} has no such arm.\n"
    if diff.came.empty and diff.went.empty:
        yield "No row came or went.\n"
        return
    yield (
        f"{len(diff.came):,} in, {len(diff.went):,} out; {diff.like_for_like:,} of them like for like, "
        f"{diff.net:,} net in, {len(diff.went) - diff.like_for_like:,} net out\n"
    )
    if diff.luck is not None:
        yield f"Changing only the k-means seed replaces {diff.luck:.0%} of the rows of this method.\n"
    if diff.code:
        yield f"The code changed too, which no cause covers: {', '.join(diff.code)}\n"
    for name, causes in (("in", diff.causes_in), ("out", diff.causes_out)):
        listed = " · ".join(f"{cause} {count:,}" for cause, count in causes.items())
        yield f"Why {name}: {listed or 'nothing'}\n"
    for name, shares in diff.shares.items():
        yield from share_lines(name, shares)
    for name, moves in (("in", diff.came), ("out", diff.went)):
        if len(moves):
            yield f"{min(len(moves), EXAMPLES)} of {len(moves):,} rows {name}:\n"
            yield from (move_line(move) for move in moves.head(EXAMPLES).to_dict("records"))
            yield ""


def share_lines(name: str, shares: pd.DataFrame) -> Iterator[str]:
    yield f"| {name} | before | after |"
    yield "|---|--:|--:|"
    for label, share in shares.iterrows():
        yield f"| {str(label).replace('|', '/')} | {share['before']:.1%} | {share['after']:.1%} |"
    yield ""


def move_line(move: dict[str, Any]) -> str:
    """Return one line of a Markdown code block, in which nothing that a row says is markup."""
    text = " ".join(str(move["instruction"]).split())
    edited = f", edited: {move['edited']}" if move["edited"] else ""
    return f"    {move['id']} [{move['source']}] {move['cause']}{edited}: {text[:80]}{'...' if len(text) > 80 else ''}"


def main(words: list[str]) -> int:
    if len(words) not in (2, 3):
        print("usage: python -m tools.selection_diff A B [ARM], where A and B are revisions", file=sys.stderr)
        return 2
    return print_lines(report_lines(words[0], words[1], words[2:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
