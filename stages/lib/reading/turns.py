"""Turns of a conversation as files have them: messages, texts of alternating speakers, or one text with markers."""

import re
from typing import get_args

from stages.lib.reading.entry import Role, Turns
from stages.lib.reading.mapping import Field, Place, ValuePath, as_json, to_text
from stages.lib.text.conversations import Turn

UNREADABLE, NO_RECORDS, NO_GROUP = "unreadable", "no_records", "no_group"
NO_TURNS, NO_ROLE, SPEAKERS = "no_turns", "no_role", "speakers"
IN_ORDER: tuple[Role, ...] = ("user", "assistant")
"""Roles of the speakers in the order in which they first speak, if `roles` is null."""
OURS: dict[str, Role] = {role: role for role in get_args(Role)}


class NoRowError(Exception):
    """A record is not a row, for this reason."""


class UnknownRoleError(ValueError):
    """A speaker that `roles` does not name."""


class TurnReader:
    """`turns` of an entry, applied to records."""

    def __init__(self, settings: Turns) -> None:
        self.path = ValuePath(settings.path) if settings.path else None
        self.role = Field(settings.role) if settings.role else None
        self.text = Field(settings.text) if settings.text else None
        self.roles = settings.roles
        self.markers = marker_pattern(list(self.roles)) if self.roles and not self.role else None

    def read(self, record: Place) -> list[Turn]:
        """Return the turns of a record. Raises NoRowError, NotTextError and UnknownRoleError."""
        if self.markers:
            return self.split(self.path.text(record) if self.path else to_text("turns", record.value))
        return self.to_turns(self.messages(record))

    def messages(self, record: Place) -> list[Place]:
        """Return the messages of a record, each with the record as the object around it."""
        found = self.path.values(record) if self.path else [record.value]
        read = [as_json(value) if isinstance(value, str) else value for value in found]
        lists = [[one] if isinstance(one, dict) else one for one in read if isinstance(one, list | dict)]
        return [Place(message, (record.value, *record.around)) for messages in lists for message in messages]

    def to_turns(self, messages: list[Place]) -> list[Turn]:
        if not messages:
            raise NoRowError(NO_TURNS)
        roles = self.roles_of(messages)
        texts = (self.text.text(one) if self.text else to_text("turns", one.value) for one in messages)
        return [Turn(role, text) for role, text in zip(roles, texts, strict=True)]

    def roles_of(self, messages: list[Place]) -> list[Role]:
        """Return the role of each message, as `roles` says.

        Without `roles`, the names are roles already, or the first to speak is the user and the second the assistant.
        """
        if not self.role:
            return [IN_ORDER[number % 2] for number in range(len(messages))]
        names = [self.role.text(message) for message in messages]
        if self.roles is None:
            speakers = list(dict.fromkeys(names))
            ours = [OURS[name] for name in names if name in OURS]
            if len(ours) == len(names):
                return ours
            if ours or len(speakers) > len(IN_ORDER):
                raise NoRowError(SPEAKERS)
            return [IN_ORDER[speakers.index(name)] for name in names]
        for name in names:
            if name not in self.roles:
                raise UnknownRoleError(name)
        return [self.roles[name] for name in names]

    def split(self, text: str) -> list[Turn]:
        """Return the turns of a text with markers."""
        before, *rest = self.markers.split(text) if self.markers else [text]
        if not rest:
            raise NoRowError(NO_TURNS)
        if before.strip():
            raise NoRowError(NO_ROLE)
        roles = self.roles or {}
        return [Turn(roles[marker.strip()], said.strip()) for marker, said in zip(rest[::2], rest[1::2], strict=True)]


def marker_pattern(markers: list[str]) -> re.Pattern[str]:
    """Return a pattern for markers; one that begins with a letter or digit (`Q:`) must be at the start of a line."""
    patterns = [rf"^[ \t]*{re.escape(one)}" if one[:1].isalnum() else re.escape(one) for one in markers]
    return re.compile(f"({'|'.join(sorted(patterns, key=len, reverse=True))})", re.MULTILINE)
