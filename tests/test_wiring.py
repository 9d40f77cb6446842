"""dvc.yaml says what is true: what each stage imports, reads, writes and is set by."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.lib.core.params import SECTIONS
from tests.project import ROOT

PIPELINE = YAML(typ="safe").load(ROOT / "dvc.yaml")
STAGES = {name: stage.get("do", stage) for name, stage in PIPELINE["stages"].items()}
FILES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")


def module_of(stage: str) -> str:
    return re.search(r"python -m stages\.(\w+)", STAGES[stage]["cmd"]).group(1)


def file_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


def imports(path: Path) -> set[str]:
    """Return the first-party modules that a file imports anywhere in it, lazily or relatively too."""
    package = list(path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith(("stages", "tools", "tests")) and file_of(name).is_file()}


def closure(module: str) -> set[str]:
    seen: set[str] = set()
    todo = {module}
    while todo:
        seen |= todo
        todo = {found for name in todo for found in imports(file_of(name))} - seen
    return seen


def paths(values: list) -> list[str]:
    return [value if isinstance(value, str) else next(iter(value)) for value in values]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_code_deps_are_exactly_what_it_imports(stage: str) -> None:
    wanted = {str(file_of(name).relative_to(ROOT)) for name in closure(f"stages.{module_of(stage)}")}
    assert {path for path in paths(STAGES[stage]["deps"]) if path.endswith(".py")} == wanted


@pytest.mark.parametrize("module", FILES)
def test_a_stage_never_imports_another_stage(module: str) -> None:
    assert {name for name in closure(f"stages.{module}") if not name.startswith("stages.lib.")} == {f"stages.{module}"}


def test_the_import_closure_sees_what_a_function_imports() -> None:
    assert "stages.lib.scoring.log_likelihood" in closure(
        "stages.ppl"
    )  # imported only when it scores, for it brings torch


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_names_every_data_dep_and_every_out_in_order(stage: str) -> None:
    settings = STAGES[stage]
    words = settings["cmd"].split()[3:]
    data = [path for path in paths(settings["deps"]) if not path.endswith(".py")]
    outs = paths(settings.get("metrics", [])) + paths(settings.get("outs", []))
    words = [word for word in words if not word.startswith(".checkpoints/")]  # neither dep nor out
    arguments = [word for word in words if "/" in word or word in data or word.endswith(".inputs}")]
    assert list(dict.fromkeys(arguments)) == data + outs


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_params_are_the_sections_that_its_model_reads(stage: str) -> None:
    model = importlib.import_module(f"stages.{module_of(stage)}").Params
    assert {re.split(r"\.", name)[0] for name in STAGES[stage].get("params", [])} == set(model.model_fields)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_desc(stage: str) -> None:
    assert STAGES[stage]["desc"]


def test_every_file_in_stages_is_a_stage_and_every_stage_a_file() -> None:
    assert sorted({module_of(stage) for stage in STAGES}) == FILES


def test_every_section_of_params_is_read_by_a_stage_and_no_other() -> None:
    read = {re.split(r"\.", name)[0] for stage in STAGES.values() for name in stage.get("params", [])}
    assert read == set(SECTIONS) == set(YAML(typ="safe").load(ROOT / "params.yaml"))


def test_expensive_stages_own_cached_outs_only() -> None:
    for stage in ("ppl", "embed", "train", "evaluate", "fetch_model"):
        assert all(isinstance(out, str) for out in STAGES[stage]["outs"])
        assert not {"metrics", "plots"} & set(STAGES[stage])


def test_every_out_that_git_does_not_track_is_ignored_by_git() -> None:
    rules = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    outs = [out for stage in STAGES.values() for out in stage.get("outs", []) if isinstance(out, str)]
    for out in outs:
        assert any(f"/{out}".startswith(rule.rstrip("*/")) for rule in rules if rule.startswith(("/data", "/models")))


def test_no_function_is_longer_than_60_lines() -> None:
    for path in [*(ROOT / "stages").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"
