"""Read params.yaml and check the part of it that a stage uses."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.lib.core.errors import Stop

PARAMS = Path("params.yaml")
SECTIONS = (
    "threads",
    "fetch",
    "fetch_benchmark",
    "fetch_model",
    "merge",
    "decontaminate",
    "ppl",
    "embed",
    "cluster",
    "arms",
    "control",
    "stability",
    "train",
    "evaluate",
    "compare",
)


P = TypeVar("P", bound=BaseModel)
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of params.yaml: frozen, every key stated, no other key allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


def read_params(model: type[P], path: Path = PARAMS) -> P:
    """Return the sections that `model` names, checked; raise Stop with every error at once.

    ruamel.yaml reads YAML 1.2, as DVC does: there `1e-5` is a number.
    """
    content = read_yaml(path)
    errors = [f"{name}: unknown section" for name in content if name not in SECTIONS]
    wanted = {name: content[name] for name in model.model_fields if name in content}
    try:
        params = model.model_validate(wanted)
    except ValidationError as error:
        errors += [describe(item) for item in error.errors()]
    if errors:
        listed = "".join(f"\n  {error}" for error in errors)
        raise Stop(f"{path}: {len(errors)} to correct{listed}")
    return params


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise Stop(f"{path}: missing; `cp recipes/NAME.yaml {path}` makes a recipe active") from None
    except YAMLError as error:
        raise Stop(f"{path}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise Stop(f"{path}: wanted a mapping of sections, got {type(content).__name__}")
    return content


def describe(error: Any) -> str:
    """Return one pydantic error as `arms.spread.fraction: what (got 2)`."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key (got {error['input']!r})"
    if error["type"] == "missing":
        return f"{where}: missing"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    got = "" if isinstance(error["input"], dict) else f" (got {error['input']!r})"
    return f"{where}: {message}{got}" if where else f"{message}{got}"
