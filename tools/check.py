"""Check params files and the wiring: `python -m tools.check [params.yaml recipes/NAME.yaml ...]`.

DVC would find a mistake in a late section only when its stage runs, after all the work before it.
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from stages.lib.core.errors import UserError
from stages.lib.core.params import PARAMS, read_params, read_yaml
from stages.lib.core.portable import asks_to_be_portable, cannot_be_portable
from tools.wire import misnamed_flags, read_stages

STAGES = sorted(path.stem for path in (Path(__file__).parent.parent / "stages").glob("[a-z]*.py"))
READERS = [*(f"stages.{stage}" for stage in STAGES), "tools.gates"]
"""The modules whose `Params` say which sections they read."""


def check_params(path: Path) -> list[str]:
    """Return what is wrong with a params file, each message once."""
    problems: dict[str, None] = {}
    known: set[str] = set()
    for module in READERS:
        model = importlib.import_module(module).Params
        known |= set(model.model_fields)
        try:
            read_params(model, path)
        except UserError as error:
            problems |= dict.fromkeys(line.strip() for line in str(error).splitlines()[1:] or [str(error)])
    return [*unknown_sections(path, known), *problems]


def unknown_sections(path: Path, known: set[str]) -> Iterator[str]:
    """Yield sections that no stage reads. A single stage does not see them, because it only looks at its own."""
    try:
        content = read_yaml(path)
    except UserError:
        return  # every stage has reported it
    yield from (f"{name}: unknown section; no stage reads it" for name in content if name not in known)


def main(paths: list[str]) -> int:
    checked = {path: check_params(Path(path)) for path in paths} | {"dvc.yaml": list(misnamed_flags(read_stages()))}
    wrong = {path: problems for path, problems in checked.items() if problems}
    for path, problems in wrong.items():
        print(f"{path}: {len(problems)} to correct", *problems, sep="\n  ", file=sys.stderr)
    for path in paths:
        if asks_to_be_portable(Path(path)) and (reason := cannot_be_portable()):
            print(f"{path}: portable: true does not hold on this machine: {reason}; its numbers differ in last digits")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [str(PARAMS)]))
