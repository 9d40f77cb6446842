"""Every recipe is a complete params file that can be made active."""

import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from tests.clones import stages_of
from tests.project import ROOT, copy_project
from tools.check import check_params

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
FREE = {("fetch_benchmark", "revisions"), ("merge", "sources"), ("arms",), ("stability", "variants")}
FREE |= {("gates", "macro_f1"), ("gates", "held_out_loss"), ("fetch_preferences",), ("prefer",)}
OPTIONAL = {("decontaminate", "similar"), ("dedup", "lexical"), ("dedup", "semantic")}
OPTIONAL |= {("fetch_model", role, "small") for role in ("scorer", "encoder", "base")}
OPTIONAL |= {("train", "adapter"), ("train", "deepspeed")}


def skeleton(value: object, where: tuple[str, ...] = ()) -> object:
    """Return the keys of a params file in order, without those that recipes choose; of sources, the first's."""
    if where == ("fetch", "sources"):
        return skeleton(next(iter(value.values())))
    if not isinstance(value, dict) or where in FREE | OPTIONAL:
        return None
    return [(key, skeleton(item, (*where, key))) for key, item in value.items()]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_the_keys_of_the_default_in_its_order(recipe: Path) -> None:
    yaml = YAML(typ="safe")
    assert skeleton(yaml.load(recipe)) == skeleton(yaml.load(ROOT / "params.yaml"))


@pytest.mark.parametrize("recipe", [ROOT / "params.yaml", *RECIPES], ids=lambda path: path.stem)
def test_a_recipe_is_valid_for_every_stage(recipe: Path) -> None:
    assert check_params(recipe) == []


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(copy_project(tmp_path))
    return tmp_path


def stages_of_arms(recipe: Path) -> set[str]:
    params = YAML(typ="safe").load(recipe)
    arms = {stage for arm in params["arms"] for stage in stages_of(arm)}
    tuned = ("prefer", "evaluate_preferred", "generate_preferred", "compare_preferred")
    pairs = {f"fetch_preferences@{name}" for name in params["fetch_preferences"]}
    return arms | pairs | {f"{stage}@{name}" for stage in tuned for name in params["prefer"]}


def test_dvc_finds_the_stages_of_every_recipe(project: Path) -> None:
    for recipe in RECIPES:
        shutil.copyfile(recipe, "params.yaml")
        with Repo() as repo:
            assert {stage.addressing for stage in repo.index.stages} >= stages_of_arms(recipe)


@pytest.mark.slow
def test_dvc_can_plan_every_recipe(project: Path) -> None:
    for recipe in RECIPES:
        shutil.copyfile(recipe, "params.yaml")
        for folder in named_folders(recipe):
            stand_in(project / folder / "file.txt")
        with Repo() as repo:
            for out in repo.index.outs:  # DVC plans nothing after a folder that does not exist
                path = Path(out.fs_path)
                stand_in(path if path.suffix else path / "file.txt")
            planned = {stage.addressing for stage in repo.reproduce(dry=True)}
        assert planned >= stages_of_arms(recipe)
        assert planned >= {"merge", "candidates", "profile", "stability", "compare_base", "report"}


def stand_in(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def named_folders(recipe: Path) -> list[str]:
    params = YAML(typ="safe").load(recipe)
    sections = [params["fetch"], params["fetch_benchmark"], *params["fetch_model"].values()]
    return [*(section["inputs"] for section in sections), params["rate"]["ledger"]]
