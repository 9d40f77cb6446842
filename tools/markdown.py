"""Text for GitHub's and GitLab's Markdown. Whatever comes from rows, names or params is shown as plain text."""

import re
import string
import unicodedata
from collections.abc import Iterable, Iterator

HARMLESS = set(" -,/()%?.+='\";")
"""Punctuation that has no meaning inside a line; all other punctuation is written as character references."""
BREAK = "\u200b"
"""A zero-width space, because mentions and references are found after character references are decoded."""
NAME = re.compile(r"[\w./,=+% -]+")
LONGEST = 100
"""At most this many characters of a text are shown."""


def as_text(text: object) -> str:
    """Return any text as one line that Markdown shows as it is: no tag, link, mention, table cell or marker."""
    kept = "".join(char for char in str(text) if unicodedata.category(char) not in ("Cf", "Cc") or char.isspace())
    line = " ".join(kept.split())
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
    escaped = "".join(
        f"&#{ord(char)};" if char in string.punctuation and char not in HARMLESS else char for char in line
    )
    escaped = re.sub(r"(?i)www\.", lambda found: f"{found[0][:3]}&#46;", escaped)
    return escaped.replace("&#64;", f"&#64;{BREAK}").replace("&#35;", f"&#35;{BREAK}")


def code(name: object) -> str:
    """Return a name as inline code, or as plain text if it is not a plain name."""
    return f"`{name}`" if NAME.fullmatch(str(name)) and len(str(name)) <= LONGEST else as_text(name)


def grid(head: Iterable[str], align: str, rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield a table. `align` has a letter for each column: `l` or `r`. Its cells are Markdown already."""
    rules = {"l": "---", "r": "--:"}
    yield row_of(head)
    yield row_of(rules[letter] for letter in align)
    yield from map(row_of, rows)


def row_of(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def folded(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield from ("", f"<details><summary>{title}</summary>", "", *lines, "", "</details>")


def limited(items: list[str], most: int) -> str:
    """Return the items in one line: at most `most` of them, and how many others there are."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
