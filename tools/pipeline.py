"""What DVC says of the pipeline."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.lib.core.errors import UserError
from stages.lib.scoring.committed import open_project


@contextmanager
def reading_pipeline() -> Iterator[None]:
    """Turn the errors of DVC about dvc.yaml, params.yaml and dvc.lock into a UserError that says what to do next."""
    from dvc.exceptions import DvcException

    try:
        yield
    except DvcException as error:
        raise UserError(f"DVC cannot read the pipeline: {error}; `python -m tools.check` checks params.yaml") from None


def pipeline_stages() -> set[str]:
    """Return the names of the stages of dvc.yaml; dvc.lock may have more. Raises UserError if DVC cannot read it."""
    with reading_pipeline():
        return {stage.addressing for stage in open_project(Path.cwd()).index.stages}
