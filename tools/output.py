"""Print the lines of a command, or its error."""

import sys
from collections.abc import Iterator

from stages.lib.core.errors import UserError


def print_lines(lines: Iterator[str]) -> int:
    """Print all lines; if they raise UserError, print only its message, on standard error. Return the exit status."""
    try:
        print(*lines, sep="\n")
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
