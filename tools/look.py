"""Show what a file or folder contains, and propose entries for params.yaml that read it: `python -m tools.look FILE`.

It looks at the first rows of the first files. Comments above an entry mark what only you can know.
"""

import io
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from ruamel.yaml import YAML

from stages.lib.core.errors import UserError
from stages.lib.core.params import PARAMS, read_yaml
from stages.lib.reading.containers import Member, find_files, naming, plain, plain_path
from stages.lib.reading.entry import MergeSource, Turns
from stages.lib.reading.mapping import STEP, Field, Place, ValuePath, as_json, follow
from stages.lib.reading.records import Record, read_contents
from stages.lib.reading.rows import Found, Mapped, Mapper, expand
from stages.lib.reading.turns import TurnReader, marker_pattern
from tools import layouts
from tools.output import print_lines

FILES, ROWS, SHOWN = 20, 200, 60
Entry = dict[str, Any]
UNKNOWN: Entry = {"instruction": ["WHICH COLUMN"], "output": "WHICH COLUMN"}


class Sample(NamedTuple):
    path: Path
    files: list[str]
    formats: list[str]
    """Of the files whose rows are here."""
    rows: list[tuple[str, Record]]
    """Each with the name of its file."""
    broken: list[str]
    """What is wrong with the files that could not be read."""


class Guess(NamedTuple):
    title: str
    entry: Entry
    rows: list[Mapped]
    notes: tuple[str, ...] = ()
    """What only a person can know."""


def look(path: Path) -> Iterator[str]:
    """Yield the lines that describe a file and propose its entries. Raises UserError if it is unreadable."""
    if not path.exists():
        raise UserError(f"{path}: missing")
    sample = take_sample(path)
    yield from describe_files(sample)
    guess = guess_entry(sample) or Guess("nothing known: docs/mapping.md shows how to write an entry", UNKNOWN, [])
    yield from describe_columns(sample, guess.entry.get("records", ""))
    usable = [row for row in guess.rows if is_usable(row)]
    yield f"looks like {guess.title}"
    if usable:
        yield f"{len(usable)} of the first {len(guess.rows)} rows have a question and an answer, such as:"
        yield from describe_row(usable[0])
    yield from propose(path, guess)


def take_sample(path: Path) -> Sample:
    """Return the first rows of the first files. Raises UserError if there are none."""
    sample = Sample(path, [], [], [], [])
    for file in find_files(path):
        sample.files.append(file.name)
        if len(sample.files) <= FILES and len(sample.rows) < ROWS:
            try:
                sample.rows.extend((file.name, record) for record in read_sample(file, sample.formats))
            except UserError as error:
                sample.broken.append(str(error))
    if not sample.rows:
        raise UserError(next(iter(sample.broken), f"{path}: no rows"))
    return sample


def read_sample(file: Member, formats: list[str]) -> list[Record]:
    """Return the first rows of a file, and add its format to `formats`."""
    with naming(file.name), file.open() as stream:
        contents = read_contents(stream, "auto")
        encoding = (contents.encoding or "").removesuffix("-sig")
        formats.append(f"{contents.format} in {encoding}" if encoding else contents.format)
        return list(islice(contents.rows, ROWS))


def guess_entry(sample: Sample) -> Guess | None:
    """Return the first known layout that reads the sample, otherwise one guessed by the names of its columns."""
    for title, entry in layouts.LAYOUTS:
        if found := try_entry(sample, title, entry):
            return found
    values = [record.value for _, record in sample.rows if record.value is not None]
    for records in record_paths(values[0] if values else None):
        places = list(islice(chain.from_iterable(places_of(value, records) for value in values), ROWS))
        for title, entry, notes in general_entries(places):
            found = try_entry(sample, title, ({"records": records} if records else {}) | entry)
            if found:
                return found._replace(notes=notes)
    return None


def places_of(value: Any, records: str) -> Iterator[Place]:
    return follow(Place(value), ValuePath(records).steps if records else ())


def try_entry(sample: Sample, title: str, entry: Entry) -> Guess | None:
    """Return a guess if the entry, without the fields that no row has, can read at least half the rows."""
    for _ in range(2):
        try:
            mapper = Mapper(MergeSource.model_validate({"name": "x"} | entry), sample.path)
            found = list(islice(found_in(sample, entry.get("records")), ROWS))
            rows = list(mapper.group_rows(found) if "group" in entry else map(mapper.to_row, found))
        except (UserError, ValidationError):
            return None
        missing = mapper.missing()
        if not missing:
            return Guess(title, entry, rows) if 2 * sum(map(is_usable, rows)) >= max(len(rows), 1) else None
        entry = without(entry, set(missing))
    return None


def found_in(sample: Sample, records: str | None) -> Iterator[Found]:
    steps = ValuePath(records).steps if records else ()
    return chain.from_iterable(expand(file, record, steps) for file, record in sample.rows)


def is_usable(row: Mapped) -> bool:
    return bool(row.reason is None and row.instruction and row.output)


def without(entry: Any, missing: set[str]) -> Any:
    """Return an entry without those alternatives of its fields that have a missing path."""
    if isinstance(entry, dict):
        return {key: left for key, value in entry.items() if (left := without(value, missing)) not in ("", [])}
    if isinstance(entry, list):
        return [left for value in entry if (left := without(value, missing))]
    choices = [choice for choice in entry.split(" | ") if not missing & {path.written for path in Field(choice).paths}]
    return " | ".join(choices)


def record_paths(value: Any, path: str = "", depth: int = 5) -> Iterator[str]:
    """Yield the paths that may lead to records, beginning with those nearest to the row."""
    if isinstance(value, dict) and is_keyed(value):
        yield from record_paths(next(iter(value.values())), f"{path}[]", depth - 1)
        return
    yield path
    if isinstance(value, dict) and depth:
        objects = [(dotted(path, key), one) for key, one in value.items() if isinstance(one, dict)]
        lists = [(dotted(path, key), one) for key, one in value.items() if isinstance(one, list)]
        objects += [(f"{name}[]", one[0]) for name, one in lists if one and isinstance(one[0], dict)]
        for name, one in objects:
            yield from record_paths(one, name, depth - 1)


def is_keyed(value: dict[str, Any]) -> bool:
    """Return whether an object is like a list with keys: it contains two or more objects, which share keys."""
    objects = [set(one) for one in value.values() if isinstance(one, dict)]
    return len(value) == len(objects) > 1 and bool(set.intersection(*objects))


def general_entries(places: list[Place]) -> Iterator[tuple[str, Entry, tuple[str, ...]]]:
    """Yield entries guessed by names, each with a title and notes."""
    if not places:
        return
    columns = columns_of(places)
    yield from turn_entries(places, columns)
    first = places[0]
    instruction = named(columns, layouts.INSTRUCTION_KEYS)
    output = named([path for path in columns if path != instruction], layouts.OUTPUT_KEYS)
    if instruction and output:
        others = [path for path in columns if path not in (instruction, output)]
        extra = [path for key in layouts.INPUT_KEYS if (path := named(others, [key])) and path != instruction]
        around = ["^context"] if first.around and "context" in first.around[0] else []
        system = named(others, layouts.SYSTEM_KEYS)
        entry = {"instruction": [*around, instruction, *extra], "output": output}
        yield "a question and an answer in each row", ({"system": system} if system else {}) | entry, ()


def turn_entries(places: list[Place], columns: dict[str, Any]) -> Iterator[tuple[str, Entry, tuple[str, ...]]]:
    """Yield entries for lists of messages, bare lists of texts, and texts with markers."""
    for path, messages in turn_lists(places[0].value):
        where = {"path": path} if path else {}
        if isinstance(messages[0], str):
            alternate = "a list of texts, user and assistant in turn"
            yield alternate, {"turns": where}, ("the first text counts as the user's",)
            continue
        keys = columns_of([Place(message) for message in messages])
        role, text = named(keys, layouts.ROLE_KEYS), named(keys, layouts.TEXT_KEYS)
        if role and text:
            reader, steps = TurnReader(Turns.model_validate(where)), ValuePath(role).steps
            said = chain.from_iterable(map(reader.messages, places))
            roles, notes = roles_of({str(one.value).strip() for message in said for one in follow(message, steps)})
            yield "conversations", {"turns": where | {"role": role, "text": text} | roles}, notes
    for path in columns:
        text = "\n".join(str(value) for place in places for value in ValuePath(path).values(place))
        for markers in layouts.MARKERS:
            there = {marker: role for marker, role in markers.items() if marker_pattern([marker]).search(text)}
            if {"user", "assistant"} <= set(there.values()):
                note = f"check who is who: {', '.join(there)}"
                yield "a text with markers", {"turns": {"path": path, "roles": there}}, (note,)


def turn_lists(value: Any, path: str = "", depth: int = 3) -> Iterator[tuple[str, list[Any]]]:
    """Yield the lists in a record that may be its turns, with their paths."""
    content = as_json(value) if isinstance(value, str) else value
    if isinstance(content, list) and content:
        is_bare = all(isinstance(one, str) for one in content) and len(content) > 1
        if isinstance(content[0], dict) or (is_bare and path.rpartition(".")[2] in ("", *layouts.LIST_KEYS)):
            yield path, content
    if isinstance(content, dict) and depth:
        for key, inner in content.items():
            yield from turn_lists(inner, dotted(path, key), depth - 1)


def roles_of(names: set[str]) -> tuple[Entry, tuple[str, ...]]:
    """Return `roles` for these speakers, and what to check; nothing if all are unknown."""
    known = {name: layouts.ROLES[name.casefold()] for name in sorted(names) if name.casefold() in layouts.ROLES}
    unknown = sorted(names - set(known))
    if not known:
        return {}, ("the first to speak counts as the user, the second as the assistant; if not, add `roles`",)
    guessed = dict.fromkeys(unknown, "assistant" if "assistant" not in known.values() else "user")
    notes = (f"who is {', '.join(unknown)}?",) if unknown else ()
    return {"roles": known | guessed}, notes


def columns_of(places: Iterable[Place]) -> dict[str, Any]:
    """Return the paths of the texts and numbers in records, each with the first value that is not empty."""
    columns: dict[str, Any] = {}
    for place in places:
        for path, value in leaves(place.value):
            if path and (path not in columns or columns[path] in ("", None)):
                columns[path] = value
    return columns


def leaves(value: Any, path: str = "", depth: int = 4) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and depth:
        for key, inner in value.items():
            yield from leaves(inner, dotted(path, key), depth - 1)
    elif isinstance(value, list) and value and depth:
        step = "[0]" if isinstance(value[0], dict) else "[]"
        yield from leaves(value[0], f"{path}{step}", depth - 1)
    elif not isinstance(value, dict | list):
        yield path, value


def dotted(path: str, key: Any) -> str:
    """Return the path of a key inside a path, quoted if it has to be."""
    name = plain(str(key))
    found = STEP.match(name)
    name = name if found and found["key"] == name else f'"{name}"'
    return f"{path}.{name}" if path else name


def named(columns: Iterable[str], names: list[str]) -> str | None:
    """Return the column that has one of these names as its last key, else as any key, else as a word of a key."""
    keys = {path: [key.strip('"') for key in re.sub(r"\[[^\]]*\]", "", path).split(".")] for path in columns}
    words = {path: [word for key in found for word in key.split()] for path, found in keys.items()}
    last = {path: found[-1:] for path, found in keys.items()}
    for known in (last, keys, words):
        for name in names:
            for path, found in known.items():
                if name in found:
                    return path
    return None


def describe_files(sample: Sample) -> Iterator[str]:
    names = [name.removeprefix(f"{sample.path}/") for name in sample.files]
    more = f", ... ({len(names)} files)" if len(names) > 3 else ""
    yield f"{sample.path}: {', '.join(dict.fromkeys(sample.formats))}"
    if names != [str(sample.path)]:
        yield f"  {', '.join(names[:3])}{more}"
    yield from (f"  not readable: {problem}" for problem in sample.broken)


def describe_columns(sample: Sample, records: str) -> Iterator[str]:
    places = [found.place for found in islice(found_in(sample, records), ROWS) if found.place]
    yield f"records: {records or 'the rows themselves'}; the first {len(places)} have these columns:"
    columns = columns_of(places)
    width = max((len(path) for path in columns), default=0)
    yield from (f"  {path:{width}}  {shortened(value)}" for path, value in columns.items())


def shortened(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def describe_row(row: Mapped) -> Iterator[str]:
    turns = row.turns or [("instruction", row.instruction), ("output", row.output)]
    yield from (f"  {role}: {shortened(text)}" for role, text in turns)


def propose(path: Path, guess: Guess) -> Iterator[str]:
    """Yield the entries to paste into params.yaml."""
    now = Path(read_yaml(PARAMS)["fetch"]["inputs"]) if PARAMS.exists() else Path("data/inputs")
    is_inside = now.resolve() in path.resolve().parents
    inputs = now if is_inside else path if path.is_dir() else path.parent
    name = plain_path(path.resolve().relative_to(inputs.resolve()).as_posix())
    source = re.sub(r"[^\w]+", "_", plain(path.name.partition(".")[0])).strip("_") or "mine"
    fetch = {"from": "file", "name": "*" if name == "." else name, "revision": None, "config": None, "split": None}
    note = "" if is_inside else f"  # replaces {now} and its sources"
    yield from ("", "fetch:", f"  inputs: {inputs}{note}", "  sources:", f"    {in_one_line({source: fetch})[1:-1]}")
    yield from ("merge:", "  sources:", *(f"    # {note}" for note in guess.notes))
    yield f"    - {in_one_line({'name': source} | guess.entry)}"
    if not is_inside:
        yield f"  # held_out.sources: [{source}]"


def in_one_line(entry: Entry) -> str:
    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style, yaml.width, yaml.allow_unicode = True, 10**6, True
    yaml.sort_base_mapping_type_on_output = False
    yaml.dump(entry, text)
    return text.getvalue().strip()


def main(words: list[str]) -> int:
    if len(words) != 1:
        print("usage: python -m tools.look FILE", file=sys.stderr)
        return 2
    return print_lines(look(Path(words[0])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
