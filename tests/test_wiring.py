"""dvc.yaml is true: it names what each stage imports, reads and writes, and the params that it uses."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from stages.lib.core.errors import UserError
from stages.lib.core.params import read_yaml
from tests.project import ROOT, run
from tools import wire
from tools.wire import closure, code_deps, is_code, misnamed_flags, module_of, path_of

STAGES = wire.read_stages()
FILES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
LIB = ROOT / "stages/lib"
ARROWS = {
    "core": set(),
    "text": set(),
    "rating": {"text"},
    "reading": {"text"},
    "models": set(),
    "scoring": {"text", "models"},
    "selection": {"text"},
    "training": {"text", "models", "scoring"},
    "evaluation": {"text"},
    "statistics": {"evaluation"},
}
"""The wings that each wing may import, besides `core` and itself."""


def paths(values: list) -> list[str]:
    return [value if isinstance(value, str) else next(iter(value)) for value in values]


def outs(stage: str) -> list[str]:
    return paths(STAGES[stage].get("metrics", [])) + paths(STAGES[stage].get("outs", []))


def flags(stage: str) -> dict[str, str]:
    return dict(re.findall(r"--(\w+) (\S+)", STAGES[stage]["cmd"]))


def function_of(stage: str):
    module = module_of(STAGES[stage])
    return getattr(importlib.import_module(f"stages.{module}"), module)


def test_the_code_deps_are_those_that_wire_writes() -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert wire.wired(text, STAGES) == text


def test_deps_that_wire_cannot_read_are_an_error() -> None:
    text = (
        (ROOT / "dvc.yaml")
        .read_text(encoding="utf-8")
        .replace("deps: [data/sources", "deps:\n      - [data/sources", 1)
    )
    with pytest.raises(UserError, match="every stage needs its deps as one list"):
        wire.wired(text, STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_every_imported_file_is_covered_by_a_dep_and_every_code_dep_covers_one(stage: str) -> None:
    code = {dep for dep in STAGES[stage]["deps"] if is_code(dep)}
    files = {str(path_of(name)) for name in closure(f"stages.{module_of(STAGES[stage])}")}
    covers = {dep: {file for file in files if file == dep or file.startswith(f"{dep}/")} for dep in code}
    assert set().union(*covers.values()) == files
    assert all(covers.values())


def test_only_the_core_is_a_folder_to_the_stages_that_are_expensive_to_rerun() -> None:
    for stage in ("ppl", "embed", "train", "prefer", "evaluate", "evaluate_base", "generate"):
        folders = {dep for dep in STAGES[stage]["deps"] if is_code(dep) and (ROOT / dep).is_dir()}
        assert folders == {"stages/lib/core"}


@pytest.mark.parametrize("module", FILES)
def test_a_stage_never_imports_another_stage(module: str) -> None:
    assert {name for name in closure(f"stages.{module}") if not name.startswith("stages.lib.")} == {f"stages.{module}"}


def test_the_import_closure_sees_what_a_function_imports_and_relative_imports(tmp_path: Path) -> None:
    assert "stages.lib.scoring.log_likelihood" in closure("stages.ppl")  # imported inside a function
    assert "stages/lib/scoring/log_likelihood.py" in code_deps("ppl")
    relative = LIB / "scoring" / "relative_import_of_a_test.py"
    relative.write_text("def later():\n    from . import batching\n    from ..core import errors\n")
    try:
        found = wire.imports(relative.relative_to(ROOT))
    finally:
        relative.unlink()
    assert found == {"stages.lib.scoring.batching", "stages.lib.core.errors"}


@pytest.mark.parametrize("wing", ARROWS)
def test_arrows_between_the_wings_run_one_way(wing: str) -> None:
    imported = {
        name.split(".")[2]
        for path in (LIB / wing).glob("*.py")
        for name in wire.imports(path.relative_to(ROOT))
        if name.startswith("stages.lib.")
    }
    assert imported <= ARROWS[wing] | {"core", wing}


def test_every_module_of_lib_is_in_a_wing_and_every_wing_has_an_empty_init() -> None:
    assert [path.name for path in LIB.glob("*.py")] == ["__init__.py"]
    assert {path.name for path in LIB.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ARROWS)
    assert all((LIB / wing / "__init__.py").read_bytes() == b"" for wing in ARROWS)


@pytest.mark.parametrize("stage", STAGES)
def test_the_flags_of_a_command_are_the_parameters_of_its_function(stage: str) -> None:
    parameters = list(inspect.signature(function_of(stage)).parameters.values())[1:]
    required = {parameter.name for parameter in parameters if parameter.default is parameter.empty}
    assert required <= set(flags(stage)) <= {parameter.name for parameter in parameters}
    assert len(re.findall(r"--\w+", STAGES[stage]["cmd"])) == len(flags(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_the_flags_of_a_command_name_every_data_dep_and_every_out(stage: str) -> None:
    named = {
        path for path in flags(stage).values() if "/" in path or path.endswith((".inputs}", ".ledger}", ".prompts}"))
    }
    data = {dep for dep in wire.data_deps(STAGES[stage]) if not dep.startswith("stages/")}
    inside = {path: {dep for dep in data if dep == path or dep.startswith(f"{path}/")} for path in named}
    assert set().union(*inside.values()) | set(outs(stage)) == data | set(outs(stage))
    unused = {path for path, deps in inside.items() if not deps} - set(outs(stage))
    assert all(path.startswith(".checkpoints/") for path in unused)


def test_every_flag_is_named_after_its_artefact() -> None:
    assert list(misnamed_flags(STAGES)) == []


SWAPS = [
    (stage, one, other)
    for stage in STAGES
    for one in flags(stage)
    for other in flags(stage)
    if one < other and flags(stage)[one] != flags(stage)[other] and "/" in flags(stage)[one] + flags(stage)[other]
]


@pytest.mark.parametrize(("stage", "one", "other"), SWAPS)
def test_two_paths_that_trade_places_are_named(stage: str, one: str, other: str) -> None:
    words = STAGES[stage]["cmd"].split()
    first, second = (words.index(f"--{name}") + 1 for name in (one, other))
    words[first], words[second] = words[second], words[first]
    assert list(misnamed_flags({stage: STAGES[stage] | {"cmd": " ".join(words)}}))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_params_are_the_sections_that_its_model_reads(stage: str) -> None:
    model = importlib.import_module(f"stages.{module_of(STAGES[stage])}").Params
    assert {re.split(r"\.", name)[0] for name in STAGES[stage].get("params", [])} == set(model.model_fields)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_desc(stage: str) -> None:
    assert STAGES[stage]["desc"]


def test_every_file_in_stages_is_a_stage_and_every_stage_a_file() -> None:
    assert sorted({module_of(stage) for stage in STAGES.values()}) == FILES


def test_every_section_of_params_is_read_by_a_stage_or_by_the_gates() -> None:
    read = {re.split(r"\.", name)[0] for stage in STAGES.values() for name in stage.get("params", [])}
    assert read | {"gates"} == set(read_yaml(ROOT / "params.yaml"))


def test_expensive_stages_own_cached_outs_only() -> None:
    for stage in ("ppl", "embed", "train", "prefer", "evaluate", "fetch_model"):
        assert all(isinstance(out, str) for out in STAGES[stage]["outs"])
        assert not {"metrics", "plots"} & set(STAGES[stage])


def test_git_ignores_every_out_that_dvc_caches_and_no_other() -> None:
    every = [out for stage in STAGES.values() for out in [*stage.get("outs", []), *stage.get("metrics", [])]]
    cached = {out.replace("${key}", "name") for out in every if isinstance(out, str)}
    tracked = {path.replace("${key}", "name") for out in every if not isinstance(out, str) for path in out}
    ignored = run(
        ROOT, "git", "check-ignore", "--no-index", *(f"{path}/" for path in cached), *cached, *tracked, code=None
    )
    assert {path.rstrip("/") for path in ignored.split()} == cached


FUNCTIONS = [
    (str(path.relative_to(ROOT)), node)
    for path in [*(ROOT / "stages").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.FunctionDef)
]


def test_no_function_is_longer_than_60_lines() -> None:
    assert [(path, node.name) for path, node in FUNCTIONS if node.end_lineno - node.lineno >= 60] == []


def test_no_stage_has_more_than_eleven_parameters_besides_params_and_no_other_function_more_than_seven() -> None:
    def count(node: ast.FunctionDef) -> int:
        return len([one for one in node.args.args + node.args.kwonlyargs if one.arg not in ("self", "cls")])

    stages = {(f"stages/{name}.py", name) for name in FILES}
    most = {(path, node.name): 12 if (path, node.name) in stages else 7 for path, node in FUNCTIONS}
    assert [(path, node.name) for path, node in FUNCTIONS if count(node) > most[path, node.name]] == []


def test_no_two_functions_share_a_name_and_none_has_a_stages() -> None:
    top = [
        (node.name, str(path.relative_to(ROOT)))
        for path in (ROOT / "stages").rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    ]
    names = [name for name, _ in top]
    assert sorted({name for name in names if names.count(name) > 1}) == []
    assert [(name, path) for name, path in top if name in FILES and path != f"stages/{name}.py"] == []
