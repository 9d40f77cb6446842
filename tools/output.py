"""What every command here does with its lines."""

import sys
from collections.abc import Iterator

from stages.lib.core.errors import UserError


def print_lines(lines: Iterator[str]) -> int:
    """Print all lines, or, where they stop, the reason alone on standard error; return the exit status."""
    try:
        print(*lines, sep="\n")
    except UserError as stop:
        print(stop, file=sys.stderr)
        return 1
    return 0
