"""How many altered copies of KoBEST's test items the contamination check finds, and how many clean rows it lists.

    python -m benchmarks.contamination [data/benchmark data/raw.parquet]

The folder has KoBEST's <task>/<split>.jsonl; the rows should contain none of its items. Every text that identifies a
test item is copied as it stands, spaces and punctuation included, once with one letter replaced, once with one word
left out and once in another style of speech. A row has the copy as its whole instruction, or quoted in a sentence.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmarks.measure import table
from stages.decontaminate import Params
from stages.lib.core.artifacts import read_jsonl, read_table
from stages.lib.core.params import read_params
from stages.lib.evaluation.contamination import FOUND, read_benchmark, rows_with_items
from stages.lib.evaluation.kobest import KOBEST
from stages.lib.text.overlap import normalise

DEFAULT = ["data/benchmark", "data/raw.parquet"]
FRAMES = {"alone": "{}", "quoted": "친구가 '{}'라고 했는데, 무슨 뜻인지 설명해 주세요."}
SYLLABLES = "가나다라마바사아자차카타파하고는도를에의이기지리시"
LENGTHS = [5, 7, 10, 13, 21, 10**6]
"""Letters and digits with which a line of the table begins."""
FINAL_SS = 20
"""Number of the final consonant ㅆ (했, 갔) in Unicode's order."""


def main(arguments: list[str]) -> None:
    folder, raw = map(Path, arguments or DEFAULT)
    texts = read_benchmark(folder, read_params(Params).decontaminate)
    print(table(list(shares_found(identifying(folder), texts))))
    print(f"\n{table([clean_rows(read_table(raw), texts)])}")


def identifying(folder: Path) -> pd.DataFrame:
    """Return the distinct texts that identify a test item by themselves, with length and punctuation."""
    items = [(task, item) for task in KOBEST for item in read_jsonl(folder / task / "test.jsonl")]
    texts = pd.DataFrame({"text": [item[column] for task, item in items for column in KOBEST[task].identifying]})
    texts["normalised"] = texts["text"].map(normalise)
    texts["length"] = pd.cut(texts["normalised"].str.len(), LENGTHS, right=False)
    texts["inner"] = texts["text"].map(has_inner_punctuation)
    return texts.dropna(subset="length").drop_duplicates("normalised").reset_index(drop=True)


def has_inner_punctuation(text: str) -> bool:
    return bool(re.search(r"\w\s*[^\w\s][\s\S]*\w", text))


def shares_found(copied: pd.DataFrame, texts: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield, by length and inner punctuation, the share of the copies whose text is found."""
    found = pd.DataFrame(
        {f"{name}, {frame}": are_found(copied, edit, form, texts)
         for name, edit in EDITS.items() for frame, form in FRAMES.items()}
    )  # fmt: skip
    for (length, inner), group in found.groupby([copied["length"], copied["inner"]], observed=True):
        label = f"{length.left} or more" if length.right == LENGTHS[-1] else f"{length.left} to {length.right - 1}"
        yield {"syllables": label, "inner punctuation": "yes" if inner else "no", "texts": len(group), **group.mean()}


def are_found(copied: pd.DataFrame, edit: "Edit", form: str, texts: pd.DataFrame) -> list[float]:
    """Return for every text 1 if its copy is found, 0 if it is not, and NaN if the edit leaves no copy."""
    dice = np.random.default_rng(1)
    copies = [edit(text, dice) for text in copied["text"]]
    rows = pd.DataFrame({"instruction": [form.format(copy) for copy in copies], "output": "답"})
    hits = {(row, text) for row, _, _, _, _, text in search(rows, texts)}
    return [float((row, text) in hits) if copies[row] else np.nan for row, text in enumerate(copied["normalised"])]


def search(rows: pd.DataFrame, texts: pd.DataFrame) -> list[tuple[Any, ...]]:
    rule = read_params(Params).decontaminate.rule()
    table = pa.Table.from_pandas(rows.assign(id="", turns=None), preserve_index=False)
    return list(rows_with_items(table, list(texts["normalised"].unique()), rule))


def replace_a_letter(text: str, dice: np.random.Generator) -> str:
    place = dice.choice([place for place, letter in enumerate(text) if letter.isalnum()])
    others = [syllable for syllable in SYLLABLES if syllable != text[place]]
    return f"{text[:place]}{dice.choice(others)}{text[place + 1 :]}"


def leave_a_word_out(text: str, dice: np.random.Generator) -> str:
    words = text.split(" ")
    return " ".join(np.delete(words, dice.integers(len(words))))


def change_the_style(text: str, dice: np.random.Generator) -> str:
    """Return a past tense with another ending and without 을 or 를 (예약 했어요 for 예약을 했다), else no text."""
    past = re.fullmatch(r"([\s\S]*[가-힣])다(\W*)", text)
    if not past or (ord(past[1][-1]) - ord("가")) % 28 != FINAL_SS:
        return ""
    ending = dice.choice(["습니다", "어요", "어", "네요", "음"])
    return re.sub("(?<=[가-힣])[을를] ", " ", f"{past[1]}{ending}{past[2]}", count=1)


Edit = Callable[[str, np.random.Generator], str]
EDITS: dict[str, Edit] = {
    "a letter replaced": replace_a_letter,
    "a word left out": leave_a_word_out,
    "another style": change_the_style,
}


def clean_rows(corpus: pd.DataFrame, texts: pd.DataFrame) -> dict[str, Any]:
    """Return how many of the clean rows are listed, by kind, and the CPU seconds of the search."""
    started = process_time()
    hits = pd.DataFrame(search(corpus, texts), columns=FOUND)
    seconds = process_time() - started
    kinds = hits.groupby("kind")["row"].nunique().to_dict()
    return {"rows": len(corpus), "listed": hits["row"].nunique(), **kinds, "CPU seconds": seconds}


if __name__ == "__main__":
    main(sys.argv[1:])
