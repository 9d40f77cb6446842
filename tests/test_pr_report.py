"""The report on a pull request: what it says is true, most of it needs no remote, and no row can break it."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from stages.lib.core.errors import UserError
from stages.lib.core.params import read_yaml
from tests.clones import Team
from tests.project import ROOT, commit, run
from tools import pr_report, report_arms
from tools.gates import Result
from tools.lock_diff import compare_locks, edges
from tools.markdown import BREAK, LONGEST, as_text, code
from tools.report_arms import Reading
from tools.report_metrics import changed_values, metric_changes
from tools.selection_diff import SelectionDiff

HOSTILE = [
    "<script>alert(1)</script>",
    "a | b || c",
    "`code` ``` fence ~~~",
    "@everyone and @org/team",
    "<!-- dvc-report -->",
    "![x](http://example.org/pixel.png) [y](javascript:alert(1)) <http://example.org>",
    "www.example.org http://example.org a@example.org #1 org/repo#2",
    "**bold** _em_ ~~gone~~ $x$ :smile: \\| \\",
    "first\nsecond\r\n\n# title\n- item\n| row |",
    "&lt;script&gt; &#60; &amp;",
    "left\u202eright\u0000\u200f",
]
PAGE = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def cells(text: str) -> list[list]:
    """Return the inline tokens of each cell of a rendered table whose second row has the text."""
    tokens = PAGE.parse(f"| a | b |\n| --- | --- |\n| {as_text(text)} | last |\n")
    assert tokens[-1].type == "table_close"
    return [token.children or [] for token in tokens if token.type == "inline"][2:]


def assert_harmless(text: str) -> None:
    first, last = cells(text)
    assert {token.type for token in first} <= {"text"}
    assert [token.content for token in last] == ["last"]
    shown = "".join(token.content for token in first).replace(BREAK, "")
    printable = "".join(char for char in text if char.isprintable() or char.isspace())
    assert shown == " ".join(printable.split()) or len(shown) == LONGEST or not text.isprintable()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_row_is_shown_as_text(text: str) -> None:
    assert_harmless(text)
    for word in ("<", "|", "`", "@everyone", "dvc-report -->", "http://", "www.", "\n"):
        assert word not in as_text(text)
    assert not re.search(rf"[@#](?!{BREAK})", re.sub(r"&#\d+;", lambda found: chr(int(found[0][2:-1])), as_text(text)))


@given(st.text())
def test_any_text_is_shown_as_text(text: str) -> None:
    assert_harmless(text)


@pytest.mark.parametrize("name", ["stages/sample.py", "arms.middle.fraction", "2 rows", "1 %"])
def test_a_plain_name_is_code(name: str) -> None:
    assert code(name) == f"`{name}`"


def test_a_name_that_could_end_code_is_text() -> None:
    assert "`" not in code("a`b")


def stage(deps: str, out: str) -> dict:
    return {"cmd": "run", "deps": [{"path": "in", "md5": deps}], "outs": [{"path": "out", "md5": out}]}


def test_a_stage_that_ran_is_one_whose_inputs_differ() -> None:
    before = {"stages": {name: stage("a", "x") for name in ("kept", "ran", "same", "edited", "gone")}}
    here = {name: stage("a", "x") for name in ("kept",)} | {"ran": stage("b", "y"), "same": stage("b", "x")}
    found = compare_locks(before, {"stages": here | {"edited": stage("a", "z"), "new": stage("a", "x")}})
    assert found.reran == ["ran", "same", "new"]
    assert found.same == ["kept", "same"]
    assert found.unexplained == ["edited"]


def test_the_graph_is_that_of_dvc_yaml() -> None:
    found = set(edges(read_yaml(ROOT / "dvc.lock")))
    assert {("merge", "ppl"), ("sample", "train"), ("train", "evaluate"), ("compare", "report")} <= found
    assert not [(one, other) for one, other in found if one == other or (other, one) in found]


def test_stages_of_the_same_arms_stand_together() -> None:
    names = ["cluster", "sample@a", "sample@b", "train@a", "train@b", "evaluate@a", "report"]
    assert pr_report.stage_names(names) == "`cluster`, `report` · `sample`, `train` of `a`, `b` · `evaluate` of `a`"


def test_the_headline_names_what_is_broken_before_what_is_unclear() -> None:
    results = [Result(name, "", "", "", holds) for name, holds in (("one", True), ("two", False), ("three", None))]
    assert pr_report.headline(results) == "❌ 1 of 3 gates broken: two"
    assert pr_report.headline([results[0], results[2]]) == "⚠️ 1 of 2 gates cannot be judged: three"
    assert pr_report.headline(results[:1]) == "✅ all 1 gates hold"


def test_changed_values_are_named_by_their_path() -> None:
    before, here = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 2, "c": [1]}, "e": {}}
    assert changed_values(before, here) == [("a.b", 1, 2), ("e", "–", {}), ("d", 2, "–")]


def test_an_interval_is_one_metric_and_the_largest_move_comes_first() -> None:
    estimate = {"est": 0.5, "lo": 0.25, "hi": 0.75, "p": 0.5}
    before = {"rows": 100, "x": {"vs": estimate}, "gone": 3, "kept": 1}
    here = {"rows": 101, "x": {"vs": estimate | {"est": 0.25, "p": 0.1}}, "kept": 1}
    assert metric_changes(before, here) == [
        ("gone", "3", "–"),
        ("x.vs", "+0.500 [+0.250, +0.750]", "+0.250 [+0.250, +0.750]"),
        ("rows", "100", "101"),
    ]


def selection(came: list[str], went: list[str], instruction: str = "질문") -> SelectionDiff:
    def rows(ids: list[str]) -> pd.DataFrame:
        columns = {"source": "life", "instruction": instruction, "cause": "quota"}
        return pd.DataFrame({"id": ids}).assign(**columns)

    shares = pd.DataFrame({"before": [0.5, 0.5], "after": [0.25, 0.75]}, index=["life", "faq"])
    names = ("source", "length", "ppl")
    counts = ({"quota": len(came)}, {"quota": len(went)})
    return SelectionDiff(
        "spread",
        4,
        4 + len(came) - len(went),
        rows(came),
        rows(went),
        1,
        len(came) - 1,
        *counts,
        dict.fromkeys(names, shares),
    )


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Reading:
    """Two rows came for one that went, and the rows of another arm are unreadable."""
    monkeypatch.setattr(report_arms, "params_at", lambda _: {"arms": {"spread": {}, "full": {}}, "control": "random"})
    estimate = {"est": 0.5, "lo": 0.25, "hi": 0.75}
    compared = {
        "vs_control": {"held_out_loss": {"all": estimate}, "scores": {"0-shot": {"mean": {"macro_f1": estimate}}}}
    }
    before = {"arms": {"spread": {"sample": {"rows": 4}}, "full": {}}}
    here = {
        "arms": {"spread": {"sample": {"rows": 5}} | compared, "full": {}},
        "methods": {"spread": compared | {"runs": 3}},
    }
    selections = {"spread": selection(["a", "b"], ["c"]), "full": UserError("the remote is <down>")}
    return Reading(None, before, here, selections)


def test_the_row_of_an_arm_has_its_difference_and_its_moves(reading: Reading) -> None:
    change = type("Change", (), {"base": "b", "head": "h"})()
    lines = list(report_arms.arms(reading._replace(change=change)))
    moved = "– → **+0.500 [+0.250, +0.750]**"
    assert lines[2] == f"| `spread` ×3 | 4 → 5 | {moved} | {moved} | 2 / 1 | 1 | 1 (20%) |"
    assert not any(line.startswith("No row and no result changed") for line in lines)
    assert "⚠️ the rows of `full` cannot be compared: the remote is &#60;down&#62;" in lines


def test_causes_shares_and_examples_are_those_of_the_arms_that_moved(reading: Reading) -> None:
    assert next(iter(report_arms.causes(reading))) == "`spread`, why in: quota 2. Why out: quota 1."
    assert "life: 50% → 25%, faq: 50% → 75%" in list(report_arms.shares(reading))[2]
    rows = [line for line in report_arms.examples(reading) if line.startswith(("| in", "| out"))]
    assert [row.split(" | ")[:2] for row in rows] == [["| in", "`a`"], ["| in", "`b`"], ["| out", "`c`"]]


def test_rows_do_no_harm_in_the_examples(reading: Reading) -> None:
    for text in HOSTILE:
        moved = reading._replace(selections={"spread": selection(["a"], [], text)})
        lines = "\n".join(report_arms.examples(moved))
        inside = [token for block in PAGE.parse(lines) for token in block.children or []]
        assert {token.type for token in inside} <= {"text", "code_inline"}
        assert lines.count("<") == 4  # of `details` and `summary`


def test_a_part_that_fails_says_so_and_the_rest_stands(reading: Reading) -> None:
    forged = reading._replace(here={"arms": [], "cost": {"selection": {"rows": "many"}}})
    assert pr_report.shown("what it cost", lambda _: [pr_report.describe_selection_cost(forged.here)], forged) == [
        "⚠️ what it cost cannot be shown: Cannot specify ',' with 's'.",
        "",
    ]


def test_ten_rows_are_shown_of_each_side(reading: Reading) -> None:
    many = [f"{number:03}" for number in range(30)]
    moved = reading._replace(selections={"spread": selection(many, many[:20])})
    assert sum(line.startswith(("| in", "| out")) for line in report_arms.examples(moved)) == 20


def report_in(
    folder: Path, base: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> tuple[int, str, str]:
    monkeypatch.chdir(folder)
    status = pr_report.main([base])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_the_report_of_a_pull_request_from_an_unpulled_clone(team: Team, tmp_path: Path, monkeypatch, capsys) -> None:
    mate = team.unpulled(tmp_path)
    status, out, _ = report_in(mate, team.base, monkeypatch, capsys)
    assert status == 0, out
    assert out.startswith("<!-- dvc-report -->\n### ✅ all 10 gates hold\n")
    assert "**Changed** `stability.fraction` 0.1 → 0.2" in out
    assert "**Ran again** `stability`, `report`" in out
    assert "No row and no result changed: `spread`, `random`, `full`" in out
    assert re.search(r"Metrics that moved \(\d+ of \d", out)
    changes = json.loads(run(mate, "dvc", "metrics", "diff", team.base, "--json"))["metrics/summary.json"]
    assert all(f"`{name}`" in out for name in changes if not name.endswith((".lo", ".hi", ".p")))
    assert run(mate, "git", "status", "--porcelain") == ""


def test_without_the_remote_the_rest_of_the_report_stands_and_it_is_no_pass(
    team: Team, tmp_path: Path, monkeypatch, capsys
) -> None:
    mate = team.unpulled(tmp_path)
    (mate / ".dvc/config.local").write_text(f"['remote \"team\"']\n    url = {tmp_path / 'nowhere'}\n")
    status, out, _ = report_in(mate, team.base, monkeypatch, capsys)
    assert status in (1, 2)
    assert "the rows of `spread` cannot be compared: " in out
    assert "**Changed** `stability.fraction` 0.1 → 0.2" in out
    assert "Metrics that moved" in out


def test_uncommitted_changes_and_unknown_bases_cannot_be_judged(
    team: Team, tmp_path: Path, monkeypatch, capsys
) -> None:
    mate = team.unpulled(tmp_path)
    assert report_in(mate, "nowhere", monkeypatch, capsys)[0] == 2
    (mate / "README.md").write_text("changed")
    status, out, err = report_in(mate, team.base, monkeypatch, capsys)
    assert (status, out) == (2, "")
    assert "commit or stash them" in err


def test_a_change_of_what_judges_is_named_first(team: Team, tmp_path: Path, monkeypatch, capsys) -> None:
    mate = team.unpulled(tmp_path)
    (mate / "tools/gates.py").write_text((mate / "tools/gates.py").read_text() + "\n")
    commit(mate, "another judge")
    monkeypatch.chdir(mate)
    head = run(mate, "git", "rev-parse", "HEAD").strip()
    change = type("Change", (), {"base": team.base, "head": head})()
    lines = list(pr_report.changed(Reading(change, None, {}, {})))
    assert "⚠️ **Read these first:** they decide how a pull request is judged: `tools/gates.py`" in lines


def test_a_wrong_command_line_is_2(capsys) -> None:
    assert pr_report.main([]) == 2
    assert "usage: python -m tools.pr_report BASE" in capsys.readouterr().err
