"""The rows of a source: its records, mapped as its entry says. A record that is not a row has a reason."""

import json
import logging
from collections.abc import Iterable, Iterator
from itertools import chain, count, groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from stages.lib.core.errors import UserError
from stages.lib.reading.containers import BROKEN, Member, find_files, matches, naming
from stages.lib.reading.entry import MergeSource, Turns
from stages.lib.reading.mapping import Field, NotTextError, Place, Step, ValuePath, follow
from stages.lib.reading.records import JSON_LINES, Record, printable, read_contents
from stages.lib.reading.turns import NO_GROUP, NO_RECORDS, UNREADABLE, NoRowError, TurnReader, UnknownRoleError
from stages.lib.text.conversations import Turn, settle

log = logging.getLogger("stages")
NOT_TEXT: dict[type, str] = {list: "a list", dict: "an object", bytes: "bytes"}
ONE_RECORD = 2**20
"""Largest broken file, in bytes, that counts as one unreadable row if there are other files: of many small files, a few
are often broken."""
SHOWN = 1000
"""Characters that are kept of a row without records, because it may be a whole file."""


class Mapped(NamedTuple):
    """A row, or a record that is not one."""

    file: str
    line: int
    source: str
    instruction: str
    request: str
    """The first field of the instruction that is not empty: the request, without the text that it is about."""
    output: str
    turns: list[Turn] | None = None
    """None if the row is one question and its answer."""
    reason: str | None = None
    """Why it is not a row; None if it is one."""
    original: str = ""
    """The record as it was, if there is a reason."""
    final: str | None = None
    """The final answer, without the reasoning."""


class Found(NamedTuple):
    """A record of a file, or the reason why there is none."""

    file: str
    line: int
    place: Place | None
    reason: str = ""
    original: str = ""


def read_source(folder: Path, source: MergeSource) -> Iterator[Mapped]:
    """Yield the rows of a source, in the order of its files' names and of their lines.

    Raises UserError if a file is unreadable as a whole, a field is in no record or is not text, or a role is unknown.
    """
    mapper, row = Mapper(source, folder), None
    has_rows = False
    records = read_records(folder, source)
    for row in mapper.group_rows(records) if source.group else map(mapper.to_row, records):
        has_rows = has_rows or row.reason != NO_RECORDS
        yield row
    if row is None:
        raise UserError(f"{folder}: no rows")
    if not has_rows:
        where = f"`records: {source.records}` of {source.where}"
        raise UserError(f"{folder}: no records at {where}; {row.file} has {row.original[:80]}")
    mapper.finish()


def read_records(folder: Path, source: MergeSource) -> Iterator[Found]:
    """Yield the records of every file whose name matches `source.files`, also inside archives."""
    names: list[str] = []

    def is_wanted(file: Member) -> bool:
        names.append(file.name.removeprefix(f"{folder}/"))
        return source.files is None or matches(names[-1], source.files)

    files = filter(is_wanted, find_files(folder))
    first, number = list(islice(files, 2)), 0
    for file in chain(first, files):
        number += 1
        yield from read_file(file, source, among_others=len(first) > 1)
    if source.files and not number:
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        where = f"`files: {source.files}` of {source.where}"
        raise UserError(f"{folder}: no file matches {where}; it has {listed or 'nothing'}")
    if len(names) > 1:
        log.info("%s: %d of %d files read", source.name, number, len(names))


def read_file(file: Member, source: MergeSource, among_others: bool) -> Iterator[Found]:
    steps = ValuePath(source.records).steps if source.records else ()
    numbers = count(1)
    with naming(file.name), file.open() as stream:
        try:
            contents = read_contents(stream, source.encoding)
        except BROKEN as error:
            if not among_others or file.size > ONE_RECORD:
                raise
            yield Found(file.name, 1, None, UNREADABLE, str(error))
            return
        for record in contents.rows:
            for found in expand(file.name, record, steps):
                yield found if contents.format == JSON_LINES or not steps else found._replace(line=next(numbers))


def expand(file: str, record: Record, steps: tuple[Step, ...]) -> Iterator[Found]:
    """Yield the records inside a row of a file."""
    if record.value is None:
        yield Found(file, record.line, None, UNREADABLE, record.raw)
        return
    if not steps:
        yield Found(file, record.line, Place(record.value))
        return
    place = None
    for place in follow(Place(record.value), steps):
        yield Found(file, record.line, place)
    if place is None:
        yield Found(file, record.line, None, NO_RECORDS, as_written(record.value)[:SHOWN])


class Mapper:
    """An entry of merge.sources, applied to records."""

    def __init__(self, source: MergeSource, folder: Path) -> None:
        group = source.group
        self.source, self.folder = source, folder
        self.instruction = [Field(written) for written in source.instruction]
        self.output, self.final = map(to_field, (source.output, source.final))
        self.system, self.origin = map(to_field, (source.system, source.source))
        self.by, self.order = map(to_field, (group.by, group.order) if group else (None, None))
        self.turns = TurnReader(source.turns or Turns())
        self.keys: set[str] = set()
        """Keys that records had."""
        self.unanswered = 0
        """How many turns were left out because they are after the last answer of a conversation."""

    def to_row(self, found: Found) -> Mapped:
        if found.place is None:
            return self.no_row(found)
        try:
            return self.to_turns(found, found.place) if self.source.turns else self.to_pair(found, found.place)
        except NoRowError as reason:
            return self.no_row(found, str(reason))
        except ValueError as error:
            raise self.explained(found, error) from None

    def to_pair(self, found: Found, place: Place) -> Mapped:
        """Return a record's instruction and output, also as turns if there is a system text."""
        if not isinstance(place.value, dict):
            raise NoRowError(UNREADABLE)
        self.keys.update(place.value)
        parts = list(filter(None, [field.text(place) for field in self.instruction]))
        instruction = "\n".join(parts)
        output, system = text_at(self.output, place), text_at(self.system, place)
        turns = [Turn("system", system), Turn("user", instruction), Turn("assistant", output)]
        has_turns = system and instruction and output
        return self.written(found, parts, output, turns if has_turns else None)

    def to_turns(self, found: Found, place: Place) -> Mapped:
        if isinstance(place.value, dict):
            self.keys.update(place.value)
        return self.settled(found, self.turns.read(place))

    def settled(self, found: Found, turns: list[Turn]) -> Mapped:
        """Return the turns as a row, or why they are not one."""
        system = text_at(self.system, found.place)
        settled = settle([Turn("system", system), *turns] if system else turns)
        if settled.reason:
            return self.no_row(found, settled.reason, "\n".join(f"{role}: {text}" for role, text in turns))
        self.unanswered += settled.unanswered
        turns_or_none = None if settled.is_pair() else settled.turns
        return self.written(found, [settled.instruction], settled.output, turns_or_none)

    def group_rows(self, records: Iterable[Found]) -> Iterator[Mapped]:
        """Yield a row for each group of a file's records."""
        for _, of_file in groupby(records, key=lambda found: found.file):
            groups: dict[str, list[Found]] = {}
            for found in of_file:
                key = self.group_of(found)
                if key:
                    groups.setdefault(key, []).append(found)
                else:
                    yield self.no_row(found, found.reason or NO_GROUP)
            yield from map(self.to_group, groups.values())

    def group_of(self, found: Found) -> str:
        if found.place is None or not isinstance(found.place.value, dict):
            return ""
        self.keys.update(found.place.value)
        try:
            return text_at(self.by, found.place)
        except ValueError as error:
            raise self.explained(found, error) from None

    def to_group(self, group: list[Found]) -> Mapped:
        try:
            ordered = sorted(group, key=self.number_of) if self.order else group
            return self.settled(group[0], self.turns.to_turns([found.place for found in ordered if found.place]))
        except NoRowError as reason:
            return self.no_row(group[0], str(reason))
        except ValueError as error:
            raise self.explained(group[0], error) from None

    def number_of(self, found: Found) -> float:
        written = text_at(self.order, found.place)
        try:
            return float(written)
        except ValueError:
            where = f"{found.file}, row {found.line}: the group.order of {self.source.where}"
            raise UserError(f"{where} must be a number, got {written!r}") from None

    def written(self, found: Found, parts: list[str], output: str, turns: list[Turn] | None) -> Mapped:
        """Return a row; a text that cannot be written in utf-8 makes it unreadable."""
        origin = text_at(self.origin, found.place).split("_")[0] or self.source.name
        instruction, request = "\n".join(parts), next(iter(parts), "")
        final = text_at(self.final, found.place) or None
        row = Mapped(self.name_of(found), found.line, origin, instruction, request, output, turns, final=final)
        try:
            "".join([origin, instruction, output, final or "", *(turn.text for turn in turns or ())]).encode("utf-8")
        except UnicodeEncodeError:
            return self.no_row(found, UNREADABLE)
        return row

    def no_row(self, found: Found, reason: str | None = None, original: str | None = None) -> Mapped:
        """Return a record that is not a row, with the given reason or the one it was found with."""
        if original is None:
            original = found.original if found.place is None else as_written(found.place.value)
        why = reason or found.reason
        return Mapped(self.name_of(found), found.line, self.source.name, "", "", "", None, why, writable(original))

    def name_of(self, found: Found) -> str:
        """Return the path of a record's file inside the folder of the source."""
        return found.file.removeprefix(f"{self.folder}/")

    def explained(self, found: Found, error: ValueError) -> UserError:
        """Return an error that says what is wrong with a record, in which file and row, and what to do."""
        where, entry = f"{found.file}, row {found.line}", self.source.where
        if isinstance(error, UnknownRoleError):
            known = ", ".join(self.turns.roles or ())
            return UserError(
                f"{where}: the role {str(error)!r} is not in turns.roles of {entry}, which has {known}; add it there, "
                "as system, user, assistant or tool"
            )
        if isinstance(error, NotTextError):
            return UserError(
                f"{where}: expected text in the column {error.field}, got {NOT_TEXT[type(error.value)]}: "
                f"{str(error.value)[:80]}; {entry} must name a text inside it, or map a list of messages with `turns` "
                f"(docs/mapping.md); `python -m tools.look {found.file}` proposes an entry"
            )
        return UserError(f"{where}: {error}; see {entry}")

    def missing(self) -> list[str]:
        """Return the paths that were in no record."""
        optional = [self.output, self.final, self.system, self.origin, self.by, self.order]
        fields = [*self.instruction, *filter(None, [*optional, self.turns.role, self.turns.text])]
        paths = [path for field in fields for path in field.paths] + ([self.turns.path] if self.turns.path else [])
        return [path.written for path in paths if not path.found]

    def finish(self) -> None:
        """Log what was left out. Raises UserError if a field was in no record, although some were readable."""
        missing = self.missing()
        if missing and self.keys:
            listed = ", ".join(sorted(map(writable, map(str, self.keys))))
            raise UserError(
                f"{self.folder}: no column {', '.join(missing)}; it has {listed}; see {self.source.where} "
                "(a name that contains a dot or a bracket needs quotes: docs/mapping.md)"
            )
        if self.unanswered:
            log.info("%s: %d turns after the last answer are left out", self.source.name, self.unanswered)


def to_field(written: str | None) -> Field | None:
    return Field(written) if written else None


def text_at(field: Field | None, place: Place | None) -> str:
    return field.text(place) if field and place else ""


def as_written(value: Any) -> str:
    """Return a record as JSON, with U+FFFD for bytes in another encoding and with lone surrogates escaped."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        return printable(text)
    except UnicodeEncodeError:
        return json.dumps(value, default=str)


def writable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
