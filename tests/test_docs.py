"""The front pages stay short, and what they link to is there; mkdocs checks the links inside docs/."""

import re
from pathlib import Path

import pytest

from tests.project import ROOT
from tools import reference

FRONT = ["README.md", "README.ko.md", "CONTRIBUTING.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", FRONT)
def test_every_link_of_a_front_page_leads_somewhere(name: str) -> None:
    links = [link for link in LINK.findall((ROOT / name).read_text(encoding="utf-8")) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).is_file(), link
        assert not anchor or anchor in anchors(ROOT / path), link


@pytest.mark.parametrize("name", FRONT[:2])
def test_a_readme_fits_on_a_page_and_links_to_every_page_of_docs(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(text.encode()) <= 10 * 1024
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= set(LINK.findall(text))


def test_the_reference_pages_are_what_dvc_yaml_and_the_models_say() -> None:
    for path, text in reference.pages().items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, "run `python -m tools.reference`"


def test_every_key_of_params_and_every_stage_has_its_line() -> None:
    params, stages = (text for _, text in sorted(reference.pages().items()))
    assert "| `sources.<name>.from` | file, hub |  |" in params
    assert "| `fraction` | number or null | `null` | Share of the candidates" in params
    assert (
        "| `train@arm` | Fine-tune the base model on one arm (`stages/train.py`) | `data/samples/<arm>.jsonl`" in stages
    )


def test_the_page_of_the_stages_names_what_dvc_yaml_fills_in() -> None:
    page = reference.stages_page()
    assert "${" not in page
    assert "<>" not in page
    for name in ("`fetch_preferences@pairs`", "`prefer@preference`", "`models/<preference>`", "`models/<arm>`"):
        assert name in page
