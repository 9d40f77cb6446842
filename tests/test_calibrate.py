"""The table of `tools.calibrate` is what a plain count gives, with exact intervals."""

import json
import re
import shutil

import numpy as np
import pytest
from scipy.stats import beta

from tests.project import ROOT
from tools import calibrate


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    return tmp_path


def write(path, pairs):
    lines = [json.dumps(dict(zip(("a", "b", "same"), pair, strict=True)), ensure_ascii=False) for pair in pairs]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return str(path)


def clopper_pearson(k, n):
    """By the quantiles of the beta distribution, as in the textbooks."""
    low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
    return low, beta.ppf(0.975, k + 1, n - k) if k < n else 1.0


def numbers(line):
    return [float(number) for number in re.findall(r"\d\.\d+", line)]


@pytest.fixture
def known(monkeypatch):
    """Texts are numbers, and a vector is at that angle."""

    def embed_together(texts, *_):
        angles = np.array([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    monkeypatch.setattr(calibrate, "embed_together", embed_together)


def test_shares_and_intervals_are_those_of_a_plain_count(project, known, capsys):
    rng = np.random.default_rng(1)
    same = rng.random(300) < 0.5
    angle = np.abs(rng.normal(0, np.where(same, 0.3, 0.9)))
    write(project / "p", [("0", f"{a:.3f}", bool(s)) for a, s in zip(angle, same, strict=True)])
    assert calibrate.main(["p"]) == 0
    head, _, *lines, last = capsys.readouterr().out.splitlines()
    assert head == f"300 pairs: {same.sum()} mean the same, {(~same).sum()} do not"
    assert len(lines) == len(calibrate.THRESHOLDS)
    reached = []
    for line, threshold in zip(lines, calibrate.THRESHOLDS, strict=True):
        found = np.cos(np.round(angle, 3)) >= threshold
        counts = [((found & same).sum(), same.sum()), ((found & ~same).sum(), (~same).sum())]
        counts.append(((found & same).sum(), found.sum()))
        expected = [value for k, n in counts for value in (k / n, *clopper_pearson(k, n))]
        assert numbers(line) == pytest.approx([threshold, *expected], abs=6e-4)
        reached += [threshold] if expected[-2] >= 0.95 else []
    assert last == (
        f"{min(reached)} is the lowest threshold that has a precision with a lower end of at least 0.95"
        if reached
        else "no threshold has a precision with a lower end of at least 0.95; use more pairs or another encoder"
    )


def test_the_lowest_threshold_of_sufficient_precision_is_named(project, known, capsys):
    # 80 of 80 found pairs mean the same: the lower end is 0.955
    write(project / "p", [("0", "0.2", True)] * 80 + [("0", "0.9", False)] * 80)
    assert calibrate.main(["p"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0.64 is the lowest")
    write(project / "p", [("0", "0.2", True)] * 70 + [("0", "0.9", False)] * 80)  # 0.949
    assert calibrate.main(["p"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("no threshold")


def test_texts_are_embedded_with_the_encoder_that_is_named(project, encoder, questions, capsys):
    pairs = [(question, question, True) for question in questions[:5]]
    write(project / "p", [*pairs, (questions[0], questions[9], False)])
    assert calibrate.main(["p", "--encoder", str(encoder)]) == 0
    *_, highest, _ = capsys.readouterr().out.splitlines()
    assert numbers(highest)[:2] == [0.99, 1.0]  # equal texts have a cosine of 1
    assert calibrate.main(["p"]) == 1
    assert "models/hub/encoder" in capsys.readouterr().err


GOOD = ("가", "나", True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": "가", "b": "나", "same": true', "p, line 3: not JSON"),
        ('{"a": "가", "b": "나"}', "p, line 3: same: missing; expected"),
        ('{"a": "가", "b": 3, "same": "yes"}', "p, line 3: b: .* (got 3); same: .* (got 'yes')"),
        ("[1]", "p, line 3: "),
    ],
)
def test_a_malformed_line_is_named(line, message, project, capsys):
    path = project / "p"
    write(path, [GOOD, GOOD])
    path.write_text(path.read_text(encoding="utf-8") + line, encoding="utf-8")
    assert calibrate.main(["p"]) == 1
    assert re.search(message.replace("(", r"\(").replace(")", r"\)"), capsys.readouterr().err)


def test_a_file_that_cannot_tell_stops(project, capsys):
    write(project / "p", [GOOD] * 3)
    assert calibrate.main(["p"]) == 1
    assert "3 pairs; there must be some with same: true and some with same: false" in capsys.readouterr().err
    assert calibrate.main(["q"]) == 1
    assert "q: missing; usage" in capsys.readouterr().err
    assert [calibrate.main(words) for words in ([], ["--encoder", "x"], ["p", "x"])] == [2, 2, 2]
