"""Rows of a training step as tensors: padded, or packed into one sequence in which no row sees another.

    B rows, T tokens of the longest, S tokens of all rows together

A pack is a list of rows that share a sequence; without packing, every pack has one row. Empty packs fill a step up to
the number of packs that all processes need; they present nothing.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorWithFlattening

from stages.lib.text.chat_format import Example

Pack = list[Example]
IGNORED = -100
"""The label that transformers leaves out of the loss."""


def pack(examples: Sequence[Example], max_tokens: int) -> list[Pack]:
    """Put rows into packs of at most `max_tokens`: the longest rows first, each into the fullest pack that has room."""
    packs: list[Pack] = []
    with_room: dict[int, list[Pack]] = defaultdict(list)
    rooms: list[int] = []
    for example in sorted(examples, key=lambda example: -len(example.ids)):
        place = bisect_left(rooms, len(example.ids))
        if place == len(rooms):
            packs.append([])
            with_room[max_tokens].append(packs[-1])
            rooms.append(max_tokens)
        room = rooms.pop(place)
        chosen = with_room[room].pop()
        chosen.append(example)
        with_room[room - len(example.ids)].append(chosen)
        insort(rooms, room - len(example.ids))
    return packs


def padded(packs: Sequence[Pack]) -> dict[str, torch.Tensor]:
    """Return ids, mask and labels [B, T].

    Not by a collator of transformers: those pad as the tokenizer does, which may have no padding token or pad left.
    """
    examples = present(packs)
    columns = {
        "input_ids": ([example.ids for example in examples], 0),
        "attention_mask": ([[1] * len(example.ids) for example in examples], 0),
        "labels": ([labels(example) for example in examples], IGNORED),
    }
    return {
        name: pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=filler)
        for name, (rows, filler) in columns.items()
    }


def flattened(packs: Sequence[Pack]) -> dict[str, torch.Tensor]:
    """Return ids, positions and labels [1, S]; transformers separates rows where positions start again at 0.

    The first token of a row is no label, because it would be predicted from the row before.
    """
    rows = [{"input_ids": example.ids, "labels": labels(example)} for example in present(packs)]
    batch: dict[str, torch.Tensor] = DataCollatorWithFlattening(separator_id=IGNORED)(rows)
    return batch


def tokens(pack: Pack) -> int:
    return sum(len(example.ids) for example in pack)


def token_pairs(step: Sequence[Pack], together: int | None) -> int:
    """Return how many pairs of tokens attention multiplies in one step.

    They are those inside each row; or, because rows that share a sequence are hidden from each other only after their
    products are computed, those inside each forward pass, of `together` packs.
    """
    if together is None:
        return sum(len(example.ids) ** 2 for pack in step for example in pack)
    passes = (step[start : start + together] for start in range(0, len(step), together))
    return sum(sum(map(tokens, packs)) ** 2 for packs in passes)


def labels(example: Example) -> list[int]:
    found = [IGNORED] * len(example.ids)
    for start, stop in example.answers:
        found[start:stop] = example.ids[start:stop]
    return found


def present(packs: Sequence[Pack]) -> list[Example]:
    """Return the rows of the packs; if there are none, one row without a label."""
    return [example for pack in packs for example in pack] or [Example([0], [])]
