"""Write docs/stages.md and docs/params.md: `python -m tools.reference`.

The first comes from dvc.yaml, the second from the `Params` models of the stages and the gates, and the docstrings of
their fields.
"""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from stages.lib.core.params import PARAMS, read_yaml
from tools.output import print_lines
from tools.wire import PIPELINE, data_deps, module_of

DOCS = Path("docs")
EACH = {"${arms}": "arm", "${fetch_model}": "role", "${fetch_preferences}": "pairs", "${prefer}": "preference"}
"""What an entry of each section is called that has a stage for every entry."""
WRITTEN = "<!-- Written by `python -m tools.reference`. -->"
PLAIN = [
    (r"Annotated\[(.*), Field\(.*?\)\]", r"\1"),
    (r"Literal\[(.*?)\]", r"\1"),
    (r"Positive", "integer from 1"),
    (r"Count|Seed", "integer from 0"),
    (r"Share", "number from 0 to 1"),
    (r"\b(Method|Format|Source)Name\b", "name"),
    (r"list\[FieldText\]", "list of fields"),
    (r"\bFieldText\b", "field"),
    (r"\bPathText\b", "path"),
    (r"\bRoles\b", "mapping"),
    (r"\bPooling\b|\bDtype\b|\bAlgorithm\b|\bInit\b|\bAllocation\b", "choice"),
    (r"\bstr\b", "text"),
    (r"\bint\b", "integer"),
    (r"\bfloat\b|\bFraction\b", "number"),
    (r"\bbool\b", "true or false"),
    (r" \| None", " or null"),
    (r" \| ", " or "),
    (r"dict\[.*\]", "mapping"),
    (r"list\[(.*)\]", r"list of \1"),
    (r"\bSeeds\b", "list of integers from 0"),
    (r"'", ""),
]


class Key(NamedTuple):
    type: str
    meaning: str


def stages_page() -> str:
    rows = ["| stage | does | reads | writes | params |", "|---|---|---|---|---|"]
    for name, entry in read_yaml(PIPELINE)["stages"].items():
        stage = entry.get("do", entry)
        each = EACH[entry["foreach"]] if "foreach" in entry else ""
        written = [*stage.get("outs", []), *stage.get("metrics", [])]
        outs = [out if isinstance(out, str) else next(iter(out)) for out in written]
        lists = [data_deps(stage), outs, stage.get("params", [])]
        cells = [", ".join(f"`{readable(item, each)}`" for item in items) for items in lists]
        title = f"`{name}@{each}`" if each else f"`{name}`"
        rows.append("| " + " | ".join([title, f"{stage['desc']} (`stages/{module_of(stage)}.py`)", *cells]) + " |")
    text = (
        "What each stage reads and writes according to dvc.yaml, except code. A stage `@arm` runs once for each arm; "
        "`@role`, `@pairs` and `@preference` mean the entries of `fetch_model`, `fetch_preferences` and `prefer`."
    )
    return "\n".join([WRITTEN, "", "# Stages", "", text, "", *rows, ""])


def readable(path: str, each: str) -> str:
    """Return a path with <name> for what dvc.yaml fills in; `each` is the name of an entry of its stage."""
    return re.sub(r"\$\{(?:item\.)?(.+?)\}", r"<\1>", path.replace("${key}", f"<{each}>"))


def params_page() -> str:
    """Return a section for each section of params.yaml, in its order."""
    lines = [WRITTEN, "", "# Params", "", "Every key of params.yaml. A key without a default is required."]
    for name in read_yaml(PARAMS):
        path, model = owner(name)
        key = keys(model)[name]
        lines += ["", f"## {name}", "", " ".join(filter(None, [key.meaning, f"In `{path}`."])), ""]
        inner = models_in(model.model_fields[name].annotation)
        head = ["| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [*head, *table(inner[0])] if inner else [f"Type: {key.type}."]
    return "\n".join([*lines, ""])


def owner(section: str) -> tuple[Path, type[BaseModel]]:
    """Return the file that a section belongs to: the one of that name, otherwise the one that documents it."""
    files = [*sorted(Path("stages").glob("[a-z]*.py")), Path("tools/gates.py")]
    models = {path: importlib.import_module(".".join(path.with_suffix("").parts)).Params for path in files}
    readers = {path: model for path, model in models.items() if section in model.model_fields}
    documenting = [path for path, model in readers.items() if keys(model)[section].meaning]
    path = next((path for path in readers if path.stem == section), None) or documenting[0]
    return path, readers[path]


def table(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield a row for each key of a model; the keys of an inner model follow the key that contains it."""
    known = keys(model)
    for name, field in model.model_fields.items():
        path, inner = f"{prefix}{field.alias or name}", models_in(field.annotation)
        default = (
            "" if field.default is PydanticUndefined else f"`{'null' if field.default is None else field.default}`"
        )
        kind = known[name].type if not inner else "list" if "list" in str(field.annotation) else "mapping"
        yield f"| `{path}` | {kind} | {default} | {known[name].meaning} |"
        for one in inner:
            yield from table(one, f"{path}{'.<name>' if 'dict' in str(field.annotation) else ''}.")


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a field's type mentions."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def keys(model: type[BaseModel]) -> dict[str, Key]:
    """Return the type and the docstring of each field, from the source."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(model)).body if isinstance(node, ast.ClassDef))
    found = {}
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            text = inspect.cleandoc(below.value.value) if is_text else ""
            found[node.target.id] = Key(
                plain(ast.unparse(node.annotation)), text.replace("\n", " ").replace("|", "\\|")
            )
    return found


def plain(annotation: str) -> str:
    """Return a type in words."""
    for pattern, word in PLAIN:
        annotation = re.sub(pattern, word, annotation)
    return annotation


def pages() -> dict[Path, str]:
    return {DOCS / "stages.md": stages_page(), DOCS / "params.md": params_page()}


def lines() -> Iterator[str]:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        yield f"{path}: written"


if __name__ == "__main__":
    sys.exit(print_lines(lines()))
