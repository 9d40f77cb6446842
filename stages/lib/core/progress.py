"""Show the progress of long work: a bar on a terminal, a line every few seconds in a log."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger("stages")
SECONDS = 5.0
T = TypeVar("T")


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield the items; show `what` and how many of `total` are done."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, disable=not log.isEnabledFor(logging.INFO))
        return
    shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - shown > SECONDS or done == total:
            shown = time.monotonic()
            log.info("%s: %s of %s", what, f"{done:,}", f"{total:,}")
