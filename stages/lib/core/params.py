"""Read params.yaml and validate the sections that a stage uses."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.lib.core.errors import UserError

PARAMS = Path("params.yaml")


P = TypeVar("P", bound=BaseModel)
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every library takes: numpy, torch and scikit-learn."""
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A section of params.yaml: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


def read_params(model: type[P], path: Path = PARAMS) -> P:
    """Return the sections that `model` names, validated. Raises one UserError that lists every mistake.

    A stage looks only at its own sections, so a new section does not affect it; `tools.check` looks at all of them.
    """
    content = read_yaml(path)
    wanted = {name: content[name] for name in model.model_fields if name in content}
    try:
        return model.model_validate(wanted)
    except ValidationError as error:
        errors = [describe(item) for item in error.errors()]
        listed = "".join(f"\n  {message}" for message in errors)
        raise UserError(f"{path}: {len(errors)} to correct{listed}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML 1.2 mapping: like DVC, ruamel.yaml reads `1e-5` as a number."""
    try:
        content = YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; `cp recipes/NAME.yaml {path}` makes a recipe active") from None
    except YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of sections, got {type(content).__name__}")
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
