"""The notation for where a field of a row is; docs/mapping.md explains it.

    question                       a key; `"a.b"` if it contains one of . [ ] ^ | { }
    answer.contents                a key inside an object
    answers[0].text, turns[-1]     an item of a list
    sentences[]                    every item of a list, or every value of an object; texts are joined by a newline
    ^context, ^^title              a key of the object around the record, a key of the object around that one
    rationale | target             the first field that is not empty
    {rationale}\n\n정답: {target}    a template; empty if one of its fields is empty

If a value on the way is a string, it is read as JSON.
"""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from stages.lib.reading.containers import plain
from stages.lib.text.korean import strip_blank

STEP = re.compile(r'\.?(?:"(?P<quoted>[^"]+)"|(?P<key>[^.\[\]"{}^|]+))|\[(?P<index>-?\d+)?\]')
PLACE = re.compile(r"\{([^{}]*)\}")
EACH = slice(None)
"""The step `[]`."""
EMPTY = ("nan", "NaN")
"""How pandas writes an empty cell."""
Step = str | int | slice


class Place(NamedTuple):
    """A record and the objects around it, the nearest first."""

    value: Any
    around: tuple[Any, ...] = ()


class NotTextError(ValueError):
    """A field is a list, an object or bytes."""

    def __init__(self, field: str, value: Any) -> None:
        super().__init__(field)
        self.field, self.value = field, value


class ValuePath:
    """The way to values inside a record."""

    def __init__(self, written: str) -> None:
        """Raise ValueError if the text is not a path."""
        self.written = plain(written)
        rest = self.written.lstrip("^")
        self.up = len(self.written) - len(rest)
        self.steps = tuple(parse_steps(self.written, rest))
        self.key = self.steps[0] if len(self.steps) == 1 and not self.up and isinstance(self.steps[0], str) else None
        """The key, if the path is only one key."""
        self.found = False
        """Whether any record had the path."""

    def values(self, place: Place) -> list[Any]:
        """Return the values at the path; none if a key or an item on the way is missing."""
        if self.key is not None and isinstance(place.value, dict) and self.key in place.value:  # for speed
            self.found = True
            return [place.value[self.key]]
        if self.up > len(place.around):
            return []
        start = place.around[self.up - 1] if self.up else place.value
        found = [end.value for end in follow(Place(start), self.steps)]
        self.found = self.found or bool(found)
        return found

    def text(self, place: Place) -> str:
        """Return the texts at the path, joined by a newline. Raises NotTextError."""
        texts = [to_text(self.written, value) for value in self.values(place)]
        return texts[0] if len(texts) == 1 else "\n".join(filter(None, texts))


class Field:
    """One or more paths or templates; the first that is not empty gives the text."""

    def __init__(self, written: str) -> None:
        """Raise ValueError if the text is not a field."""
        self.written = written
        self.paths: list[ValuePath] = []
        self.choices = [self.parse_choice(choice) for choice in written.split(" | ")]

    def parse_choice(self, written: str) -> Callable[[Place], str]:
        if not PLACE.search(written):
            return self.add_path(written).text
        *pairs, end = PLACE.split(written)
        parts = [(before, self.add_path(path)) for before, path in zip(pairs[::2], pairs[1::2], strict=True)]

        def fill(place: Place) -> str:
            texts = [path.text(place) for _, path in parts]
            return (
                "".join(f"{before}{text}" for (before, _), text in zip(parts, texts, strict=True)) + end
                if all(texts)
                else ""
            )

        return fill

    def add_path(self, written: str) -> ValuePath:
        self.paths.append(ValuePath(written))
        return self.paths[-1]

    def text(self, place: Place) -> str:
        """Return the text of the field, empty if it is missing. Raises NotTextError."""
        for choice in self.choices:
            if text := choice(place):
                return text
        return ""


def parse_steps(written: str, rest: str) -> Iterator[Step]:
    if not rest:
        raise ValueError(f"{written!r}: not a field; docs/mapping.md shows how to write one")
    while rest:
        found = STEP.match(rest)
        if not found:
            raise ValueError(f"{written!r}: not a field, because of {rest!r}; docs/mapping.md shows how to write one")
        key = found["quoted"] or found["key"]
        yield plain(key) if key else int(found["index"]) if found["index"] else EACH
        rest = rest[found.end() :]


def follow(place: Place, steps: tuple[Step, ...]) -> Iterator[Place]:
    """Yield the places that the steps lead to, each with the objects on the way to it."""
    if not steps:
        yield place
        return
    value = as_json(place.value) if isinstance(place.value, str) else place.value
    around = (value, *place.around) if isinstance(value, dict) else place.around
    for inner in take_step(value, steps[0]):
        yield from follow(Place(inner, around), steps[1:])


def take_step(value: Any, step: Step) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values()) if step is EACH else take_key(value, step) if isinstance(step, str) else []
    if isinstance(value, list) and not isinstance(step, str):
        return value[step] if isinstance(step, slice) else value[step:][:1] if -len(value) <= step else []
    return []


def take_key(value: dict[Any, Any], key: str) -> list[Any]:
    """Return the value of a key, which the file may have in NFD or with spaces around it."""
    if key in value:
        return [value[key]]
    return next(([value[name]] for name in value if plain(str(name)) == key), [])


def as_json(text: str) -> Any:
    """Return the list or object that a text contains as JSON, or None."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def to_text(field: str, value: Any) -> str:
    """Return a scalar as text, without spaces around it; null, NaN and the word nan give an empty text."""
    if isinstance(value, str):
        text = strip_blank(unicodedata.normalize("NFC", value))
        return "" if text in EMPTY else text
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | dict | bytes):
        raise NotTextError(field, value)
    return json.dumps(value) if isinstance(value, bool | int | float) else str(value)  # dates and decimals
