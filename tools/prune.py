"""Drop from dvc.lock the stages that the pipeline no longer has: `python -m tools.prune`.

DVC leaves the stages of a removed arm there, and after every stage that runs it reads and writes the whole file. What
those stages wrote stays in the cache and on the remote; the commits that had their arms still name it.
"""

import sys
from collections.abc import Iterator

from stages.lib.core.artifacts import atomic
from stages.lib.core.errors import UserError
from stages.lib.scoring.committed import LOCK, parse_lock
from tools.output import print_lines
from tools.pipeline import pipeline_stages


def prune() -> Iterator[str]:
    """Write dvc.lock without those stages; yield their names. Raises UserError if DVC cannot read the pipeline."""
    from dvc.utils.serialize import dump_yaml

    if not LOCK.is_file():
        raise UserError(f"{LOCK}: missing; `dvc repro` writes it")
    stages, lock = pipeline_stages(), parse_lock(LOCK.read_bytes())
    gone = [name for name in lock["stages"] if name not in stages]
    if gone:
        for name in gone:
            del lock["stages"][name]
        with atomic(LOCK) as part:
            dump_yaml(part, lock)
    yield from (f"dropped: {name}" for name in gone)
    yield f"{LOCK}: {len(gone)} stages dropped, {len(lock['stages'])} kept"


if __name__ == "__main__":
    sys.exit(print_lines(prune()))
