"""The committed pictures are what the committed figures give."""

import csv
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from tools import figures


@pytest.mark.parametrize("name", figures.pictures())
def test_the_committed_picture_is_what_the_command_draws(name: str) -> None:
    assert (figures.DOCS / f"images/{name}.svg").read_text(encoding="utf-8") == figures.pictures()[name]


def test_every_difference_is_drawn_inside_its_panel() -> None:
    metrics = {metric: panel for panel in (figures.LOSS, figures.SCORES) for metric in panel.metrics}
    with (figures.DOCS / "results/real_rows.csv").open(encoding="utf-8", newline="") as file:
        rows = [figures.difference(row) for row in csv.DictReader(file)]
    assert len(rows) == 7 * len(metrics)
    for row in rows:
        assert row.lo <= row.est <= row.hi
        assert metrics[row.metric].low < row.lo
        assert row.hi < metrics[row.metric].high


def test_another_figure_is_another_picture(tmp_path) -> None:
    table = (figures.DOCS / "results/real_rows.csv").read_text(encoding="utf-8")
    assert ",-0.003,-0.102,0.095" in table
    (tmp_path / "table.csv").write_text(table.replace(",-0.003,-0.102,0.095", ",-0.1,-0.2,-0.05"), encoding="utf-8")
    dots = [
        {(dot.get("cx"), dot.get("cy")) for dot in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}circle")}
        for picture in (figures.pictures()["forest"], figures.forest(tmp_path / "table.csv"))
    ]
    assert len(dots[0] - dots[1]) == len(dots[1] - dots[0]) == 1


def test_no_two_boxes_of_the_pipeline_share_a_place_and_no_arrow_points_back() -> None:
    places = {name: (column, row) for name, (column, row, _) in figures.STAGES.items()}
    assert len(set(places.values())) == len(places)
    for chain in figures.ARROWS.strip().splitlines():
        for start, end in pairwise(chain.split(" > ")):
            assert places[start][0] <= places[end][0]
