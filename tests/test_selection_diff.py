"""The selection diff: every row that came or went has one cause, and the counts are those of an independent count."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from functools import cache
from itertools import permutations

import networkx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import candidates, cluster, merge, sample
from stages.lib.core.artifacts import read_table, write_table
from stages.sample import Arm
from tests.clones import clone
from tests.objects import commit_outs
from tests.project import ROOT, change_params, commit, run
from tests.selecting import make_candidates, select_rows, write_ppl
from tools.selection_diff import (
    BECAME,
    CEASED,
    DISPLACED,
    GONE,
    MOVED,
    NEW,
    QUOTA,
    SCORE,
    SETTINGS,
    Selection,
    describe_diff,
    diff_selection,
    join_corpus,
    make_selection,
    match_cells,
)

ARMS = {
    "spread": {"method": "spread", "fraction": 0.2, "seed": 1},
    "steady": {"method": "steady", "fraction": 0.2, "seed": 1},
    "by_source": {"method": "middle", "fraction": 0.2, "seed": 1, "allocation": "source"},
    "whole": {"method": "highest", "fraction": 0.2, "seed": 1, "allocation": "whole", "max": 5},
    "random": {"method": "random", "fraction": 0.2, "seed": 1},
    "longest": {"method": "longest", "fraction": 0.2, "seed": 1},
    "full": {"method": "all", "seed": 1},
}
CELL_ARMS = ("spread", "steady")
"""These also get other settings in two of the changes."""
CLUSTER = {"length_groups": 2, "clusters": 4, "small_groups": "stop", "algorithm": "lloyd", "init": "hashed"}
CLUSTER |= {"n_init": 1, "seeds": [1]}


class World:
    """A corpus of rows that are told apart by their number, and what the stages select from it."""

    def __init__(self, numbers, added=0, edited=(), scorer=1, arms=None, **cells):
        rows = [(n, "life" if n % 3 else "faq") for n in numbers] + [(1000 + n, "new") for n in range(added)]
        self.rows = pd.DataFrame(rows, columns=["number", "source"])
        self.edited, self.scorer, self.arms, self.cells = edited, scorer, ARMS | (arms or {}), CLUSTER | cells

    def ids(self):
        return [f"row{n}{'e' if n in self.edited else ''}" for n in self.rows["number"]]

    def scores(self):
        return [float(np.random.default_rng([n, self.scorer]).normal(4, 1)) for n in self.rows["number"]]

    def vectors(self):
        found = [np.random.default_rng(n).normal(size=4) + 3 * np.eye(4)[n % 4] for n in self.rows["number"]]
        return np.array(found) / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def select(new_folder, write_raw, write_vectors, write_leaks):
    """Return what the stages `cluster`, `candidates` and `sample` select in a world, by arm."""

    def run_stages(world):
        folder, ids = new_folder(), world.ids()
        texts = [f"{n}번째 {'질문 ' * (n % 7 + 1)}" for n in world.rows["number"]]
        answers = [f"{n}번째 답{'!' * (n % 50)}{'?' if n in world.edited else ''}" for n in world.rows["number"]]
        raw = write_raw(texts, ids, list(world.rows["source"]), answers)
        params = cluster.Params.model_validate({"threads": 1, "cluster": world.cells})
        cells = folder / "clusters.parquet"
        cluster.cluster(params, raw=raw, embeddings=write_vectors(ids, world.vectors()), clusters=cells)
        ppl = write_ppl(folder / "ppl.parquet", ids, world.scores())
        table = make_candidates(folder, raw, ppl=ppl, clusters=cells, leaks=write_leaks())
        corpus = join_corpus(read_table(raw), read_table(table))
        found = {arm: select_rows(folder, raw, table, world.arms, arm).why for arm in world.arms}
        return {
            arm: make_selection(arm, Arm.model_validate(world.arms[arm]), corpus, why) for arm, why in found.items()
        }

    return run_stages


N = range(240)
LIFE = [n for n in N if n % 3]
WIDER = {arm: ARMS[arm] | {"fraction": 0.3} for arm in CELL_ARMS}
OTHER = {arm: ARMS[arm] | {"method": "middle"} for arm in CELL_ARMS}
CHANGES = {
    "nothing": World(N),
    "new source": World(N, added=30),
    "removed source": World(LIFE),
    "edited rows": World(N, edited=range(0, 240, 20)),
    "K": World(N, clusters=6),
    "seed of k-means": World(N, seeds=[5]),
    "scorer": World(N, scorer=2),
    "fraction": World(N, arms=WIDER),
    "method": World(N, arms=OTHER),
    "removed source and scorer": World(LIFE, scorer=2),
}
ROWS = {"new source": {NEW}, "removed source": {GONE}, "edited rows": {NEW, GONE}, "removed source and scorer": {GONE}}
"""The causes that a change of rows has itself. Clusters are fitted again, so rows can move too."""
REFITTED = {"new source", "removed source", "edited rows", "K", "seed of k-means", "removed source and scorer"}
RESCORED = {"scorer", "removed source and scorer"}
AROUND = {QUOTA, DISPLACED}
"""The causes of rows that did not change, because rows around them did."""


def possible(change, arm):
    """Return the causes that a change can have in an arm; none if it leaves the arm as it is."""
    if change in ("fraction", "method"):
        return {SETTINGS} if arm in CELL_ARMS else set()
    own = set(ROWS.get(change, set()))
    own |= {MOVED} if change in REFITTED and arm in CELL_ARMS else set()
    own |= {SCORE} if change in RESCORED and arm not in ("random", "longest", "full") else set()
    around = set() if not own or SCORE in own or arm == "full" else {DISPLACED} if unit(arm) == "corpus" else AROUND
    return own | around


def unit(arm):
    return "cell" if arm in CELL_ARMS else "source" if arm == "by_source" else "corpus"


@pytest.fixture(scope="module")
def worlds(select):
    """The selections of a change, by arm."""
    return cache(lambda change: select(CHANGES[change]))


@pytest.fixture(scope="module")
def diffs(worlds):
    """What each arm gained and lost by a change."""
    return cache(lambda change: {arm: diff_selection(worlds("nothing")[arm], worlds(change)[arm]) for arm in ARMS})


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_explains_every_row_of_the_arms_it_touches_and_touches_no_other(change, diffs):
    for arm, diff in diffs(change).items():
        assert diff.causes_in.keys() | diff.causes_out.keys() <= possible(change, arm), arm
        assert len(diff.came) - len(diff.went) == diff.rows_after - diff.rows_before
        assert diff.like_for_like + diff.net == len(diff.came) == sum(diff.causes_in.values())
        assert len(diff.went) == sum(diff.causes_out.values())
    assert bool(diffs(change)["spread"].causes_in) == (change != "nothing")


@pytest.mark.parametrize("change", CHANGES)
def test_the_counts_are_those_of_an_independent_count(change, worlds, diffs):
    for arm, diff in diffs(change).items():
        other_settings = change in ("fraction", "method") and arm in CELL_ARMS
        scored = arm not in ("random", "longest", "full")
        rows = [worlds(name)[arm].rows for name in ("nothing", change)]
        expected = count(*rows, unit(arm), other_settings, scored)
        assert (diff.causes_in, diff.causes_out, diff.like_for_like) == expected, arm


def count(before, after, unit, other_settings, scored):
    """Count causes row by row, with dictionaries and another matching; return those in, those out, and swaps."""
    one, other = before.to_dict("index"), after.to_dict("index")
    common = one.keys() & other.keys()
    kind = (lambda row: (row["length_group"], row["cluster"])) if unit == "cell" else (lambda row: row["source"])
    overlap = Counter((kind(one[row]), kind(other[row])) for row in common)
    graph = networkx.Graph()
    graph.add_weighted_edges_from((("before", a), ("after", b), weight) for (a, b), weight in overlap.items())
    pairs = [dict(pair) for pair in networkx.max_weight_matching(graph)]
    matched = {pair["before"]: pair["after"] for pair in pairs}
    names = {row: matched.get(kind(one[row]), "nowhere") for row in one} if unit == "cell" else {
        row: kind(one[row]) for row in one
    }  # fmt: skip
    quota_before = Counter(names[row] for row in one if one[row]["selected"])
    quota_after = Counter(kind(other[row]) for row in other if other[row]["selected"])

    def why(row, there, absent, unable):
        if row not in there:
            return absent
        if not there[row]["candidate"]:
            return unable
        if other_settings:
            return SETTINGS
        if unit == "cell" and names[row] != kind(other[row]):
            return MOVED
        if scored and one[row]["score"] != other[row]["score"]:
            return SCORE
        group = kind(other[row])
        return QUOTA if unit != "corpus" and quota_before[group] != quota_after[group] else DISPLACED

    in_before, in_after = ({row for row in rows if rows[row]["selected"]} for rows in (one, other))
    came, went = in_after - in_before, in_before - in_after
    swaps = Counter(kind(other[row]) for row in came) & Counter(names[row] for row in went)
    causes_in = Counter(why(row, one, NEW, BECAME) for row in came)
    causes_out = Counter(why(row, other, GONE, CEASED) for row in went)
    return dict(causes_in), dict(causes_out), sum(swaps.values())


def test_a_new_scorer_is_the_only_cause(diffs):
    for arm in (*CELL_ARMS, "by_source", "whole"):
        diff = diffs("scorer")[arm]
        assert set(diff.causes_in) == set(diff.causes_out) == {SCORE}


def test_random_moves_only_by_rows(diffs):
    for change in CHANGES:
        diff = diffs(change)["random"]
        assert (len(diff.came) + len(diff.went) > 0) == (change in ROWS)


def test_cells_with_other_numbers_move_no_row(worlds):
    before = worlds("nothing")["spread"]
    renamed = before.rows.assign(cluster=(before.rows["cluster"] + 1) % 4, length_group=1 - before.rows["length_group"])
    rows = renamed.assign(selected=worlds("scorer")["spread"].rows["selected"])
    diff = diff_selection(before, Selection("spread", before.settings, rows))
    assert not {MOVED, QUOTA} & diff.causes_in.keys()
    assert diff.like_for_like == len(diff.came) > 0


def test_an_edited_row_is_one_that_went_and_one_that_came_and_each_names_the_other(diffs):
    diff = diffs("edited rows")["full"]
    assert diff.causes_in == {NEW: 12}
    assert diff.causes_out == {GONE: 12}
    assert list(diff.came["edited"]) == [row.removesuffix("e") for row in diff.came["id"]]
    assert list(diff.went["edited"]) == [f"{row}e" for row in diff.went["id"]]
    assert diff.net == 0


ONE_ROW = {"source": "life", "length_group": 0, "cluster": 0, "ppl": 1.0, "score": 1.0, "candidate": True}


def selection(rows, arm=ARMS["spread"]):
    """Make a selection of {id: what differs from ONE_ROW}; rows are selected unless they say otherwise."""
    full = [
        {"id": row, "instruction": f"{row} 질문", "output": f"{row} 답", "selected": True} | ONE_ROW | changes
        for row, changes in rows.items()
    ]
    columns = ["id", "instruction", "output", "selected", *ONE_ROW]
    table = pd.DataFrame(full, columns=columns).set_index("id")
    if arm is None:  # nothing then says what the arm would rank by, or in which cells
        return Selection("ours", None, table.drop(columns=["length_group", "cluster", "score"]).assign(selected=False))
    return Selection("ours", Arm.model_validate(arm), table)


def test_an_answer_that_two_rows_share_pairs_no_edit():
    before = selection({"a": {"output": "네"}, "b": {"output": "네"}, "c": {"output": "그렇습니다"}, "d": {}})
    after = selection({"x": {"output": "네"}, "y": {"output": "그렇습니다"}, "d": {}})
    assert diff_selection(before, after).came["edited"].to_dict() == {0: None, 1: "c"}


def test_a_row_that_became_a_candidate_says_so_before_anything_else():
    out = {"candidate": False, "selected": False, "score": np.nan, "cluster": 1}
    diff = diff_selection(selection({"a": out, "b": {}}), selection({"a": {}, "b": out}))
    assert (diff.causes_in, diff.causes_out) == ({BECAME: 1}, {CEASED: 1})


def test_a_row_within_an_arms_bounds_at_last_came_by_its_score():
    whole = ARMS["whole"]
    before = selection({"a": {"score": 9.0, "selected": False}, "b": {}}, whole)
    assert diff_selection(before, selection({"a": {}, "b": {}}, whole)).causes_in == {SCORE: 1}


def test_equal_scores_that_are_missing_are_no_cause():
    whole = ARMS["whole"]
    before = selection({"a": {"score": np.nan, "selected": False}, "b": {}}, whole)
    assert diff_selection(before, selection({"a": {"score": np.nan}, "b": {}}, whole)).causes_in == {DISPLACED: 1}


SAME_ROWS = [{"seed": 9}, {"answers": "final"}, {"replicate": "first"}, {"by": "ppl"}, {"allocation": "exact"}]
OTHER_ROWS = [{"fraction": 0.3}, {"method": "middle"}, {"partition": 1}, {"by": "ifd"}, {"max": 3}, {"min": 3}]


@pytest.mark.parametrize("change", SAME_ROWS, ids=str)
def test_settings_that_select_the_same_rows_are_no_cause(change):
    rows = {"a": {"selected": False}, "b": {}}
    diff = diff_selection(selection(rows), selection({"a": {}, "b": {}}, ARMS["spread"] | change))
    assert diff.causes_in == {QUOTA: 1}


@pytest.mark.parametrize("change", OTHER_ROWS, ids=str)
def test_settings_that_select_other_rows_are_the_cause(change):
    rows = {"a": {"selected": False}, "b": {}}
    diff = diff_selection(selection(rows), selection({"a": {}, "b": {}}, ARMS["spread"] | change))
    assert diff.causes_in == {SETTINGS: 1}


def test_another_seed_is_a_setting_only_if_the_method_draws_rows():
    before, after = {"a": {"selected": False}, "b": {}}, {"a": {}, "b": {"selected": False}}
    random = ARMS["random"]
    assert diff_selection(selection(before, random), selection(after, random | {"seed": 2})).causes_in == {SETTINGS: 1}
    longest = ARMS["longest"]
    assert diff_selection(selection(before, longest), selection(after, longest | {"seed": 2})).causes_in == {
        DISPLACED: 1
    }


@pytest.mark.parametrize(("side", "causes"), [("after", ({SETTINGS: 2}, {})), ("before", ({}, {SETTINGS: 2}))])
def test_all_rows_of_an_arm_that_one_revision_has_came_or_went_by_settings(side, causes):
    there, absent = selection({"a": {}, "b": {}}), selection({"a": {}}, None)
    diff = diff_selection(absent, there) if side == "after" else diff_selection(there, absent)
    assert (diff.causes_in, diff.causes_out, diff.only, diff.like_for_like) == (*causes, side, 0)
    assert "A has no such arm." in "\n".join(describe_diff(diff, *("AB" if side == "after" else "BA")))


def test_rows_are_like_for_like_inside_a_cell_or_else_inside_a_source():
    before = {"a": {}, "b": {"cluster": 1, "source": "faq"}, "c": {"selected": False}, "d": {"cluster": 1}}
    after = {row: changes | {"selected": row in "cd"} for row, changes in before.items()}
    before["d"]["selected"] = False
    in_cells = diff_selection(selection(before), selection(after))
    in_sources = diff_selection(selection(before, ARMS["random"]), selection(after, ARMS["random"]))
    assert (in_cells.like_for_like, in_cells.net) == (2, 0)
    assert (in_sources.like_for_like, in_sources.net) == (1, 1)


def test_shares_are_of_the_selected_rows_and_lengths_are_cut_in_the_same_places():
    texts = {
        row: {"instruction": "가" * size, "ppl": float(size)} for row, size in zip("abcd", (1, 2, 3, 4), strict=True)
    }
    before = selection({row: changes | {"selected": row in "ab"} for row, changes in texts.items()})
    longer = {f"{row}2": {"instruction": "가" * 9, "ppl": 9.0, "selected": False} for row in "abcd"}
    after = selection({row: changes | {"selected": row in "bd"} for row, changes in texts.items()} | longer)
    shares = diff_selection(before, after).shares
    assert shares["length"].to_dict("list") == {"before": [0.5, 0.5, 0, 0], "after": [0, 0.5, 0, 0.5]}
    assert list(shares["length"].index) == ["under 2", "2 to 2", "3 to 3", "4 or more"]
    assert shares["ppl"]["before"].to_list() == [0.5, 0.5, 0, 0]
    assert shares["ppl"]["after"].to_list() == [0.5, 0.5, 0, 0]  # of eight candidates
    assert shares["source"].to_dict("index") == {"life": {"before": 1, "after": 1}}


CELLS = st.integers(0, 2)
ROW = st.fixed_dictionaries(
    {
        "cluster": CELLS,
        "score": st.sampled_from([1.0, 2.0, np.nan]),
        "candidate": st.booleans(),
        "chosen": st.booleans(),
    }
)
TABLE = st.dictionaries(st.sampled_from("abcdefghijkl"), ROW, min_size=1)


def drawn(rows, arm):
    kept = {row: {k: v for k, v in one.items() if k != "chosen"} for row, one in rows.items()}
    chosen = {row: {"selected": one["chosen"] and one["candidate"]} for row, one in rows.items()}
    sources = {row: {"source": "life" if row < "g" else "faq"} for row in rows}
    return selection({row: kept[row] | chosen[row] | sources[row] for row in rows}, arm)


@settings(max_examples=25)
@given(TABLE, TABLE, st.sampled_from(sorted(ARMS)), st.sampled_from(sorted(ARMS)))
def test_each_row_that_moved_has_one_cause_and_the_sums_are_right(one, other, arm, same):
    before, after = drawn(one, ARMS[arm]), drawn(other, ARMS[same])
    diff = diff_selection(before, after)
    selected = [set(selection.rows.index[selection.rows["selected"]]) for selection in (before, after)]
    assert list(diff.came["id"]) == sorted(selected[1] - selected[0])
    assert list(diff.went["id"]) == sorted(selected[0] - selected[1])
    assert diff.causes_in == dict(Counter(diff.came["cause"]))
    assert diff.causes_out == dict(Counter(diff.went["cause"]))
    assert len(diff.came) - len(diff.went) == diff.rows_after - diff.rows_before
    assert 0 <= diff.like_for_like <= min(len(diff.came), len(diff.went))
    assert diff.like_for_like + diff.net == len(diff.came)
    back = diff_selection(after, before)
    assert len(back.came) == len(diff.went)
    for shares in diff.shares.values():
        assert all(total == 0 or abs(total - 1) < 1e-9 for total in shares.sum())


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=12))
def test_no_other_pairs_of_cells_keep_more_rows_in_their_cell(cells):
    before, after = (pd.Series(column) for column in zip(*cells, strict=True))
    found = match_cells(before, after)
    assert len(set(found.values())) == len(found)
    best = max(sum(order[a] == b for a, b in cells) for order in permutations(range(3)))
    assert sum(found.get(a) == b for a, b in cells) == best


def test_nothing_that_a_row_says_is_markup():
    text = "<script>`x`</script> | @everyone <!-- dvc-report -->\n# 제목\n```"
    before, after = selection({"a": {}}), selection({"a": {}, "b": {"instruction": text, "source": "a|b"}})
    lines = "\n".join(describe_diff(diff_selection(before, after), "A", "B")).split("\n")
    assert [line for line in lines if "script" in line] == [
        "    b [a|b] new row: <script>`x`</script> | @everyone <!-- dvc-report --> # 제목 ```"
    ]
    assert "| a/b | 0.0% | 50.0% |" in lines


@pytest.mark.slow
def test_an_unpulled_clone_says_which_rows_came_and_a_damaged_table_is_refused(done, tmp_path):
    """The remote is a copy, because the test damages it; `verify` makes no difference."""
    author, remote = clone(done, tmp_path / "author"), tmp_path / "remote"
    shutil.copytree(done.parent / "remote", remote)
    run(author, "dvc", "remote", "modify", "-q", "team", "url", str(remote))
    change_params(author, arms__spread__fraction=0.2)
    run(author, "dvc", "repro", "-q", "--pull", "--allow-missing", "sample")
    commit(author, "twice as many")
    run(author, "dvc", "push", "-q", "sample")
    mate = clone(author, tmp_path / "mate")
    lines = run(mate, sys.executable, "-m", "tools.selection_diff", "HEAD~1", "HEAD").split("\n")
    arms = {
        line.split()[1].rstrip(":"): lines[number + 2] for number, line in enumerate(lines) if line.startswith("## ")
    }
    assert arms.keys() == {"spread", "random", "full"}
    assert arms["random"] == arms["full"] == "No row came or went."
    assert any(line.startswith("Why in: settings ") for line in lines)
    assert run(mate, "git", "status", "--porcelain") == ""

    table = author / "data/samples/spread.parquet"
    md5 = hashlib.md5(table.read_bytes()).hexdigest()
    stored = remote / "files/md5" / md5[:2] / md5[2:]
    stored.chmod(0o644)
    flip(stored)
    for verify in ("true", "false"):
        run(mate, "dvc", "remote", "modify", "-q", "--local", "team", "verify", verify)
        log = run(mate, sys.executable, "-m", "tools.selection_diff", "HEAD~1", "HEAD", "spread", code=1)
        assert log.startswith("data/samples/spread.parquet at HEAD: ")
        assert f"{stored} is damaged" in log
    flip(stored)  # and so put back
    run(mate, sys.executable, "-m", "tools.selection_diff", "HEAD~1", "HEAD", "spread")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


ROWS_OF_KOQUALITY = 375_506


@pytest.mark.slow
def test_a_corpus_of_the_size_of_koqualitys_takes_seconds_and_little_memory(tmp_path, capsys):
    """After 2,000 rows came and 500 went, k-means is fitted again: most rows get another cell number."""
    draw = np.random.default_rng(1)
    for revision, numbers in enumerate((range(ROWS_OF_KOQUALITY), range(500, ROWS_OF_KOQUALITY + 2000))):
        outs = make_tables(tmp_path, np.array(numbers), draw, revision)
        params = {"arms": {"spread": ARMS["spread"]}, "stability": {"variants": {}}}
        commit_outs(tmp_path, outs, tmp_path / ".dvc/cache", {"params.yaml": json.dumps(params), ".dvc/config": ""})
    command = [sys.executable, "-m", "tools.selection_diff", "HEAD~1", "HEAD", "spread"]
    start = time.monotonic()
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=-1, text=True
    ) as process:
        shown = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
    seconds, gigabytes = time.monotonic() - start, used.ru_maxrss / 2**20
    with capsys.disabled():
        print(f"\n{shown[:600]}\n{seconds:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of CPU, {gigabytes:.2f} GiB")
    assert status == 0
    assert used.ru_utime + used.ru_stime < 10
    assert gigabytes < 1.5


def make_tables(folder, numbers, draw, revision):
    """Return the three tables of a corpus with these rows, 500 cells and 10 % selected, as bytes by path."""
    ids = [f"{number * 2654435761:016x}" for number in numbers]
    words = np.array([f"{n}번째 낱말을 넣은 조금 긴 지시문 " for n in range(1000)], dtype=object)
    instruction = words[numbers % 1000] + words[numbers // 1000] + numbers.astype(str)
    rows = pd.DataFrame({"id": ids, "source": "koquality", "instruction": instruction, "output": instruction * 4})
    cell = (numbers * 7919 % 500 + revision * 123) % 500
    cell = np.where(draw.random(len(cell)) < 0.1, draw.integers(0, 500, len(cell)), cell)
    rows = rows.assign(length_group=cell // 100, cluster=cell % 100, distance=0.5, tokens=9, nll=1.0, characters=9)
    rows = rows.assign(ppl=np.exp(np.random.default_rng(2).normal(4, 1, 2 * ROWS_OF_KOQUALITY)[numbers]), reason=None)
    rows = rows.assign(nll_answer=None, nll_answer_alone=None, ifd=None, turns=None, final=None)
    selected = draw.random(len(rows)) < 0.1
    why = rows.assign(score=rows["ppl"], rank=1, selected=selected, reason=np.where(selected, "selected", "outside"))
    tables = {
        "data/raw.parquet": (rows, merge.RAW),
        "data/candidates.parquet": (rows.assign(score=None), candidates.CANDIDATES),
        "data/samples/spread.parquet": (why, sample.SAMPLE),
    }
    for path, (table, schema) in tables.items():
        write_table(folder / path, table, schema)
    return {path: (folder / path).read_bytes() for path in tables}
