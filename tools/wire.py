"""Write the code deps of dvc.yaml: `python -m tools.wire`.

A stage depends on its own file and on all of `stages/lib/core`. If it imports from another wing, directly or not, it
depends on that whole folder; a stage that is expensive to rerun depends on only the files that it imports.
"""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

from stages.lib.core.errors import UserError
from stages.lib.core.params import read_yaml
from tools.output import print_lines

PIPELINE = Path("dvc.yaml")
EXPENSIVE = ("fetch_model", "ppl", "embed", "rate", "train", "prefer", "evaluate", "generate")
CORE = "stages/lib/core"
DEPS = re.compile(r"^( *)deps: \[.*?\]$", re.DOTALL | re.MULTILINE)


def wired(text: str, stages: dict[str, Any]) -> str:
    """Return the text of dvc.yaml with the code deps that the imports require.

    Raises UserError unless every stage has one list `deps: [...]`.
    """
    if len(DEPS.findall(text)) != len(stages):
        raise UserError(f"{PIPELINE}: every stage needs its deps as one list, `deps: [...]`")
    lists = iter([data_deps(stage) + code_deps(module_of(stage)) for stage in stages.values()])
    return DEPS.sub(lambda found: rendered(next(lists), found[1]), text)


def read_stages() -> dict[str, Any]:
    """Return the stages of dvc.yaml; if a stage runs several times, what is under its `do`."""
    return {name: stage.get("do", stage) for name, stage in read_yaml(PIPELINE)["stages"].items()}


def data_deps(stage: dict[str, Any]) -> list[str]:
    return [dep for dep in stage["deps"] if not is_code(dep)]


def is_code(dep: str) -> bool:
    """Return whether `wire` writes this dep; a dep under stages/ that depends on params is written by hand."""
    return dep.startswith("stages/") and "${" not in dep


def module_of(stage: dict[str, Any]) -> str:
    """Return the name of the stage's file."""
    return str(stage["cmd"].split()[2].removeprefix("stages."))


def code_deps(stage: str) -> list[str]:
    """Return the files and wings that a stage's file needs."""
    files = {str(path_of(module)) for module in closure(f"stages.{stage}")} - {f"stages/{stage}.py"}
    wings = {str(Path(file).parent) for file in files} | {CORE}
    if stage not in EXPENSIVE:
        return [f"stages/{stage}.py", CORE, *sorted(wings - {CORE})]
    return [f"stages/{stage}.py", CORE, *sorted(file for file in files if not file.startswith(f"{CORE}/"))]


def closure(module: str) -> set[str]:
    """Return a module and all first-party modules that it imports, directly or not."""
    seen: set[str] = set()
    todo = {module}
    while todo:
        seen |= todo
        todo = {found for name in todo for found in imports(path_of(name))} - seen
    return seen


def imports(path: Path) -> set[str]:
    """Return the first-party modules that a file imports anywhere in it, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.parts[: len(path.parts) - node.level] if node.level else ()
            module = ".".join([*package, *filter(None, [node.module])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in found if path_of(name).is_file()}


def path_of(module: str) -> Path:
    return Path(module.replace(".", "/") + ".py")


def rendered(deps: list[str], indent: str) -> str:
    """Return a `deps:` list of lines of at most 120 characters, data before code."""
    start = f"{indent}deps: ["
    wrapper = TextWrapper(width=118 - len(start), break_long_words=False, break_on_hyphens=False)
    lines: list[str] = []
    for part in ([dep for dep in deps if not is_code(dep)], [dep for dep in deps if is_code(dep)]):
        lines += wrapper.wrap("".join(f'"{dep}", ' if "${" in dep else f"{dep}, " for dep in part))
    return start + f"\n{' ' * len(start)}".join(lines).removesuffix(",") + "]"


def misnamed_flags(stages: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the flags of the commands, such as two paths that were swapped.

    The flags must be the parameters of the stage's function, and each word of a flag must be in its path: `--held_out
    data/held_out.jsonl`.
    """
    for name, stage in stages.items():
        function = getattr(importlib.import_module(f"stages.{module_of(stage)}"), module_of(stage))
        parameters = {p.name: p for p in list(inspect.signature(function).parameters.values())[1:]}
        flags = dict(re.findall(r"--(\w+) (\S+)", stage["cmd"]))
        required = {p.name for p in parameters.values() if p.default is p.empty}
        yield from (f"{name}: --{flag} is missing" for flag in sorted(required - set(flags)))
        yield from (f"{name}: --{flag} is not a flag of the stage" for flag in sorted(set(flags) - set(parameters)))
        for flag in sorted(set(flags) & set(parameters)):
            is_path, value = parameters[flag].annotation is not str, flags[flag]
            if (is_path and not shares_words(flag, value)) or (not is_path and "/" in value):
                yield f"{name}: --{flag} names {value}; are two paths swapped?"


def shares_words(flag: str, path: str) -> bool:
    """Return whether every word of a flag is the beginning of a word of the path, or the other way round."""
    words = re.findall(r"[a-z]{3,}", path)
    return all(any(one.startswith(w) or w.startswith(one) for w in words) for one in flag.split("_"))


def lines() -> Iterator[str]:
    text = PIPELINE.read_text(encoding="utf-8")
    now = wired(text, read_stages())
    PIPELINE.write_text(now, encoding="utf-8")
    yield "dvc.yaml: code deps unchanged" if now == text else "dvc.yaml: code deps written; `git diff dvc.yaml`"
    if problems := list(misnamed_flags(read_stages())):
        raise UserError("\n".join(problems))


if __name__ == "__main__":
    sys.exit(print_lines(lines()))
