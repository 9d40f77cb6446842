"""Check params files against the params of every stage: `python -m tools.check params.yaml recipes/*.yaml`.

DVC would find a mistake in a late section only when its stage runs, after all the work before it.
"""

import importlib
import sys
from pathlib import Path

from stages.lib.core.errors import UserError
from stages.lib.core.params import read_params

STAGES = sorted(path.stem for path in (Path(__file__).parent.parent / "stages").glob("[a-z]*.py"))


def check(path: Path) -> list[str]:
    """Return what is wrong with a params file, each message once."""
    problems: dict[str, None] = {}
    for stage in STAGES:
        try:
            read_params(importlib.import_module(f"stages.{stage}").Params, path)
        except UserError as stop:
            problems |= dict.fromkeys(line.strip() for line in str(stop).splitlines()[1:] or [str(stop)])
    return list(problems)


def main(paths: list[str]) -> int:
    wrong = {path: problems for path in paths if (problems := check(Path(path)))}
    for path, problems in wrong.items():
        print(f"{path}: {len(problems)} to correct", *problems, sep="\n  ", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["params.yaml"]))
