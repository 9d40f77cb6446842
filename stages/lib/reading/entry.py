"""An entry of `merge.sources`: what the files of a source contain."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, model_validator

from stages.lib.core.params import Section
from stages.lib.reading.containers import plain
from stages.lib.reading.mapping import Field, ValuePath, to_text

Role = Literal["system", "user", "assistant", "tool"]


def as_name(name: str) -> str:
    """Return the name of a source. Raises ValueError unless a folder can have this name."""
    name = plain(name)
    if not name or "/" in name or name.startswith("."):
        raise ValueError("a source's name must not be empty, contain a / or begin with a dot")
    return name


def as_field(written: str) -> str:
    Field(written)
    return written


def as_path(written: str) -> str:
    ValuePath(written)
    return written


def as_roles(roles: Any) -> Any:
    """Return a role map with its keys as text, because YAML reads `0: user` as a number."""
    return {to_text("roles", name): role for name, role in roles.items()} if isinstance(roles, dict) else roles


SourceName = Annotated[str, AfterValidator(as_name)]
FieldText = Annotated[str, AfterValidator(as_field)]
PathText = Annotated[str, AfterValidator(as_path)]
Roles = Annotated[dict[str, Role], BeforeValidator(as_roles)]


class Turns(Section):
    path: PathText | None = None
    """The list of messages, or a text with markers; null: the record itself, or with `group` its records."""
    role: FieldText | None = None
    """Field of a message with its speaker; null: user and assistant alternate, or markers name them."""
    text: FieldText | None = None
    """Field of a message with its text; null: the message is the text."""
    roles: Roles | None = None
    """Role of each speaker or marker; null: `role` has system, user, assistant or tool already, or else the first to
    speak is the user and the second the assistant."""


class Group(Section):
    by: FieldText
    """Field that has the same value in all records of a conversation; they must be in one file."""
    order: FieldText | None = None
    """Field with the number of a record in its conversation; null: the order of the file."""


class MergeSource(Section):
    name: SourceName
    """An entry of fetch.sources."""
    files: str | None = None
    """Which files to read, also inside archives: a pattern in which * stands for any characters; null: all."""
    records: PathText | None = None
    """Path to the records; null: the rows of the file."""
    instruction: list[FieldText] = []  # noqa: RUF012  # pydantic copies it
    """Fields that make up the instruction, joined by a newline."""
    output: FieldText | None = None
    """Field of the output."""
    final: FieldText | None = None
    """Field of the final answer only, if `output` has reasoning too, such as the steps of a word problem."""
    system: FieldText | None = None
    """Field of the system text."""
    turns: Turns | None = None
    """Where the turns of a conversation are, in place of `instruction` and `output`."""
    group: Group | None = None
    """Which records are the turns of one conversation; null: every record is a row."""
    source: FieldText | None = None
    """Field whose text before the first `_` is the row's source; null: the source is `name`."""
    encoding: str = "auto"
    """Encoding of text files: utf-8, cp949, ...; auto: utf-8 if the text is valid utf-8, otherwise cp949."""

    @property
    def where(self) -> str:
        """What an error calls this entry."""
        return f"{self.name} in merge.sources"

    @model_validator(mode="after")
    def has_one_mapping(self) -> "MergeSource":
        if self.turns is None and not (self.instruction and self.output):
            raise ValueError("needs `instruction` and `output`, or `turns`")
        if self.turns is not None and (self.instruction or self.output):
            raise ValueError("has `turns`, which replaces `instruction` and `output`; remove those two")
        if self.group is not None and (self.turns is None or self.turns.path or not self.turns.text):
            raise ValueError("has `group`, which needs `turns` with a `text` and without a `path`")
        return self
