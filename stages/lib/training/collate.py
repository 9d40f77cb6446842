"""Rows of a training step as tensors: padded, or packed into one sequence without leaks between them.

    B rows, T tokens of the longest, S tokens of all

A pack is the rows that share a sequence; without packing, one. An empty pack fills a step up to what every process
wants; it presents nothing.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence

import torch

from stages.lib.text.chat_format import Example

Pack = list[Example]
IGNORED = -100
"""The label that transformers leaves out of the loss."""


def pack(examples: Sequence[Example], most: int) -> list[Pack]:
    """Put rows into packs of at most `most` tokens: the longest first, each where it leaves the least room."""
    packs: list[Pack] = []
    with_room: dict[int, list[Pack]] = defaultdict(list)
    rooms: list[int] = []
    for example in sorted(examples, key=lambda example: -len(example.ids)):
        place = bisect_left(rooms, len(example.ids))
        if place == len(rooms):
            packs.append([])
            with_room[most].append(packs[-1])
            rooms.append(most)
        room = rooms.pop(place)
        chosen = with_room[room].pop()
        chosen.append(example)
        with_room[room - len(example.ids)].append(chosen)
        insort(rooms, room - len(example.ids))
    return packs


def padded(packs: Sequence[Pack]) -> dict[str, torch.Tensor]:
    """Return ids, mask and labels [B, T]."""
    examples = present(packs)
    longest = max(len(example.ids) for example in examples)
    columns = {
        "input_ids": [(example.ids, 0) for example in examples],
        "attention_mask": [([1] * len(example.ids), 0) for example in examples],
        "labels": [(labels(example), IGNORED) for example in examples],
    }
    return {
        name: torch.tensor([values + [filler] * (longest - len(values)) for values, filler in column])
        for name, column in columns.items()
    }


def flattened(packs: Sequence[Pack]) -> dict[str, torch.Tensor]:
    """Return ids, positions and labels [1, S]: transformers keeps apart what starts again at position 0.

    The first token of a row is no label, for it would be predicted from the row before.
    """
    examples = present(packs)
    columns = {
        "input_ids": [token for example in examples for token in example.ids],
        "position_ids": [place for example in examples for place in range(len(example.ids))],
        "labels": [label for example in examples for label in [IGNORED, *labels(example)[1:]]],
    }
    return {name: torch.tensor([values]) for name, values in columns.items()}


def tokens(pack: Pack) -> int:
    return sum(len(example.ids) for example in pack)


def labels(example: Example) -> list[int]:
    return [IGNORED] * example.start + example.ids[example.start :]


def present(packs: Sequence[Pack]) -> list[Example]:
    """Return the rows of the packs, or one without a label where there are none."""
    return [example for pack in packs for example in pack] or [Example([0], 1)]
