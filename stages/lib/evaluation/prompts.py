"""Read prompt files: what is asked, and which constraints an answer must satisfy.

A file is JSON Lines or Parquet with the columns of IFEval (google-research/instruction_following_eval), as
allganize/IFEval-Ko has them on the hub:

    key                  an integer or a string, unique in all files
    prompt               what is asked, with every constraint in words
    instruction_id_list  the ids of the constraints, each a key of ARGUMENTS; may be empty
    kwargs               for each id an object with its arguments. Null ones are ignored, because the hub's export has
                         every argument in every object
    final                optional: the right final number of a word problem

Only the arguments are checked here. The checks of answers are in `constraints`, which no expensive stage imports: a
corrected check must not make every model answer again.
"""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow.parquet as pq
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from stages.lib.core.errors import UserError
from stages.lib.core.params import Section, describe

Text = Annotated[str, Field(pattern=r"\S")]
Texts = Annotated[list[Text], Field(min_length=1)]
Number = Annotated[int, Field(ge=1, strict=False)]
"""Not strict, because a Parquet column with nulls may come as 3.0."""
Relation = Literal["less than", "at least", "at most", "exactly"]
"""IFEval has only the first two."""
Language = Literal[
    "ko", "ja", "zh", "th", "he", "el", "bn", "ta", "te", "kn", "gu", "pa", "ml", "hi", "mr", "ne", "ar", "fa", "ur",
    "ru", "bg", "uk", "en", "de", "fr", "es", "pt", "it", "fi", "vi", "sw",
]  # fmt: skip
COLUMNS = {"key", "prompt", "instruction_id_list", "kwargs"}
LISTED = 20
"""Most mistakes that one error lists."""
MOST_CONSTRAINTS = 9
"""Of a prompt, because metrics/items stores how many it has as one digit."""


class Nothing(Section):
    pass


class Keywords(Section):
    keywords: Texts


class KeywordFrequency(Section):
    keyword: Text
    frequency: Number
    relation: Relation


class ForbiddenWords(Section):
    forbidden_words: Texts


class Words(Section):
    num_words: Number
    relation: Relation


class Sentences(Section):
    num_sentences: Number
    relation: Relation


class Paragraphs(Section):
    num_paragraphs: Number


class FirstWord(Section):
    num_paragraphs: Number
    nth_paragraph: Number
    first_word: Text

    @model_validator(mode="after")
    def within(self) -> "FirstWord":
        if self.nth_paragraph > self.num_paragraphs:
            raise ValueError(f"nth_paragraph is {self.nth_paragraph}, but num_paragraphs {self.num_paragraphs}")
        return self


class Placeholders(Section):
    num_placeholders: Number


class Postscript(Section):
    postscript_marker: Text


class Bullets(Section):
    num_bullets: Number


class Highlights(Section):
    num_highlights: Number


class Sections(Section):
    section_spliter: Text
    """Spelled as in IFEval."""
    num_sections: Number


class Options(Section):
    options: Texts | None = None
    """IFEval has none: its options are in the prompt."""


class Repeated(Section):
    prompt_to_repeat: Text


class Phrase(Section):
    end_phrase: Text


class Spoken(Section):
    language: Language


class Syllables(Section):
    num_syllables: Number
    relation: Relation


class SpeechLevel(Section):
    level: Literal["합쇼체", "해요체", "해라체"]


class Numbered(Section):
    num_items: Number


class Start(Section):
    phrase: Text


class Acrostic(Section):
    word: Annotated[str, Field(pattern=r"^[가-힣]{2,}$")]


ARGUMENTS: dict[str, type[Section]] = {
    "keywords:existence": Keywords,
    "keywords:frequency": KeywordFrequency,
    "keywords:forbidden_words": ForbiddenWords,
    "length_constraints:number_words": Words,
    "length_constraints:number_sentences": Sentences,
    "length_constraints:number_paragraphs": Paragraphs,
    "length_constraints:nth_paragraph_first_word": FirstWord,
    "detectable_content:number_placeholders": Placeholders,
    "detectable_content:postscript": Postscript,
    "detectable_format:number_bullet_lists": Bullets,
    "detectable_format:number_highlighted_sections": Highlights,
    "detectable_format:multiple_sections": Sections,
    "detectable_format:json_format": Nothing,
    "detectable_format:title": Nothing,
    "detectable_format:constrained_response": Options,
    "combination:repeat_prompt": Repeated,
    "combination:two_responses": Nothing,
    "startend:end_checker": Phrase,
    "startend:quotation": Nothing,
    "punctuation:no_comma": Nothing,
    "language:response_language": Spoken,
    "ko:syllables": Syllables,
    "ko:speech_level": SpeechLevel,
    "ko:hangul_only": Nothing,
    "ko:numbered_list": Numbered,
    "ko:starts_with": Start,
    "ko:acrostic": Acrostic,
}
"""The arguments of every constraint. `constraints` says what each id demands."""


class Constraint(Section):
    id: str
    kwargs: dict[str, Any]
    """The arguments of the constraint, without those that are null."""

    @field_validator("id")
    @classmethod
    def is_known(cls, name: str) -> str:
        if name not in ARGUMENTS:
            raise ValueError(f"unknown constraint; known are {', '.join(ARGUMENTS)}")
        return name

    @field_validator("kwargs")
    @classmethod
    def are_its_arguments(cls, kwargs: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "id" not in info.data:
            return kwargs
        model = ARGUMENTS[info.data["id"]]
        try:
            return model.model_validate(kwargs).model_dump(exclude_none=True)
        except ValidationError as error:
            takes = ", ".join(model.model_fields) or "no arguments"
            wrong = "; ".join(describe(item) for item in error.errors())
            raise ValueError(f"{info.data['id']} takes {takes}; {wrong}") from None


class Prompt(Section):
    """A prompt of a file. All its texts are in NFC."""

    id: Text
    prompt: Text
    constraints: tuple[Constraint, ...]
    final: str | None = None

    @field_validator("constraints")
    @classmethod
    def are_few(cls, constraints: tuple[Constraint, ...]) -> tuple[Constraint, ...]:
        if len(constraints) > MOST_CONSTRAINTS:
            raise ValueError(
                f"expected at most {MOST_CONSTRAINTS}, because their number is stored as one digit, not "
                f"{len(constraints)}; drop some, or make two prompts of it"
            )
        return constraints

    @field_validator("final")
    @classmethod
    def is_number(cls, final: str | None) -> str | None:
        try:
            finite = final is None or Decimal(final.replace(",", "")).is_finite()
        except InvalidOperation:
            finite = False
        if not finite:
            raise ValueError("expected a number, such as 27 or 1,200.5")
        return final

    def constraints_json(self) -> str:
        """Return the constraints as a JSON list of `{"id": ..., "kwargs": {...}}`."""
        return json.dumps([constraint.model_dump() for constraint in self.constraints], ensure_ascii=False)


def read_prompts(folder: Path, files: Sequence[str]) -> list[Prompt]:
    """Return the prompts of the files in `folder`, in order of the files and their lines.

    Raises one UserError that names the file and the line (in Parquet, the row) of every mistake: an unreadable file, a
    missing or unknown column, an empty prompt, an unknown constraint, arguments that it does not take, over nine
    constraints, a repeated key.
    """
    found: list[Prompt] = []
    mistakes: list[str] = []
    seen: dict[str, str] = {}
    for where, row in (pair for name in files for pair in rows_of(folder / name)):
        try:
            prompt = Prompt.model_validate(prompt_fields(row))
        except ValidationError as error:
            mistakes += [f"{where}: {describe(item)}" for item in error.errors()]
        except ValueError as error:
            mistakes.append(f"{where}: {error}")
        else:
            if prompt.id in seen:
                mistakes.append(f"{where}: key {prompt.id} is also that of {seen[prompt.id]}; give each prompt its own")
            seen.setdefault(prompt.id, where)
            found.append(prompt)
    if mistakes:
        more = f"\n  and {len(mistakes) - LISTED} more" if len(mistakes) > LISTED else ""
        listed = "".join(f"\n  {mistake}" for mistake in mistakes[:LISTED])
        raise UserError(f"generate.files: {len(mistakes)} to correct{listed}{more}")
    return found


def rows_of(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row of a file and where it is. Raises UserError if the file is missing or cannot be read."""
    try:
        if path.suffix == ".parquet":
            yield from ((f"{path}, row {number}", row) for number, row in enumerate(pq.read_table(path).to_pylist(), 1))
            return
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
            if line.strip():
                yield f"{path}, line {number}", json_or_text(line)
    except FileNotFoundError:
        known = ", ".join(sorted(file.name for file in path.parent.glob("*.*"))) or "no files"
        raise UserError(
            f"{path}: missing; name a file of {path.parent} in generate.files; {path.parent} has {known}"
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: neither JSON Lines in UTF-8 nor .parquet: {error}") from None


def json_or_text(line: str) -> Any:
    """Return the JSON value in the line, or the line itself if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line


def prompt_fields(row: Any) -> dict[str, Any]:
    """Return the fields of a `Prompt` from a row with IFEval's columns. Raises ValueError if it has others."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {row!r}")
    if not row.keys() >= COLUMNS or not row.keys() <= COLUMNS | {"final"}:
        expected = ", ".join(sorted(COLUMNS))
        raise ValueError(f"expected the columns {expected} and perhaps final, got {', '.join(row) or 'none'}")
    ids, kwargs, final = row["instruction_id_list"], row["kwargs"], row.get("final")
    if not isinstance(ids, list) or not isinstance(kwargs, list) or len(ids) != len(kwargs):
        raise ValueError(f"expected a list of ids and as many kwargs, got {ids!r} and {kwargs!r}")
    if not all(isinstance(value, dict | None) for value in kwargs):
        raise ValueError(f"kwargs: expected objects, got {kwargs!r}")
    return {
        "id": nfc(row["key"] if isinstance(row["key"], str) else "" if row["key"] is None else str(row["key"])),
        "prompt": nfc(row["prompt"]),
        "constraints": tuple(
            {"id": name, "kwargs": {key: nfc(value) for key, value in (given or {}).items() if value is not None}}
            for name, given in zip(ids, kwargs, strict=True)
        ),
        "final": None if final is None else str(final),
    }


def nfc(value: Any) -> Any:
    """Return the text, or the texts in the list, in NFC, because a Mac writes 한 as three characters."""
    if isinstance(value, list):
        return [nfc(item) for item in value]
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value
