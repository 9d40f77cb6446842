"""Which of many short texts stand in which rows, verbatim or nearly: the arithmetic of the contamination check.

Texts are compared by their letters and digits alone. Korean joins particles to its words and spaces them freely, so
n-grams are of characters, not of words. Containment is the share of a text's distinct n-grams that a row has (Broder
1997, On the resemblance and containment of documents).

Few pairs are ever looked at: of G distinct n-grams of which a row must have `need`, it must have k of any G - need + k,
so only the rarest ones of each text are looked up (prefix filtering: Chaudhuri, Ganti and Kaushik 2006, A primitive
operator for similarity joins in data cleaning). Nothing is approximated.

Axes: M n-grams, T texts, P pairs.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
CHUNK = 1_000_000
"""Characters of rows that are looked at together; it bounds the memory and changes nothing else."""
SHORT = 0.4
"""Share of a short text's n-grams that are left where one syllable of it is another: such rows are looked at."""
LIKE = 0.85
"""Likeness of a sentence that is a near copy of a short text ..."""
SYLLABLES = 7
"""... of so many syllables at the least, for one other syllable leaves less of a shorter one."""
SENTENCE = re.compile(r"[^\w\s]+|\n")
"""What ends a sentence, a line or a quotation."""
REACH = 1.5
"""A near copy lies within this many lengths of its text: n-grams that a long row has here and there are none."""


class Rule(NamedTuple):
    ngram: int
    """Characters of an n-gram."""
    share: float
    """Share of a text's distinct n-grams that a near copy has."""
    least: int
    """N-grams that a near copy has at the least; a text of fewer has near copies only where a sentence is like it."""

    def near(self, text: str, share: float) -> bool:
        """Return whether a row with this share of the text's distinct n-grams has a near copy."""
        return share >= max(self.share, self.least / len(set(ngrams(text, self.ngram))))

    def short(self, text: str) -> bool:
        """Return whether `share` of the text's n-grams are fewer than `least`, yet the text can have near copies."""
        return len(text) >= SYLLABLES and self.share * len(set(ngrams(text, self.ngram))) < self.least


class Ngrams(NamedTuple):
    """The distinct n-grams of every text, by text [M]."""

    hashes: NDArray[np.uint64]
    owner: Ints


@dataclass(frozen=True)
class Index:
    vocabulary: NDArray[np.uint64]
    """Hashes of all n-grams, ascending; below an n-gram is its place here."""
    ngrams: Ints
    first: Ints
    """Where in `ngrams` those of a text begin [T]."""
    count: Ints
    need: Ints
    """N-grams that a row must have."""
    rare_need: Ints
    """Those among the rare ones that it must have."""
    rare_texts: Ints
    """Texts that have an n-gram among their rare ones, by n-gram."""
    rare_first: Ints
    rare_count: Ints


def normalise(text: str) -> str:
    """Return the letters and digits of a text, NFKC and lower case: no spaces, no punctuation."""
    return re.sub(r"[\W_]+", "", fold(text))


def fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def overlapping(rows: Sequence[str], texts: Sequence[str], rule: Rule) -> Iterator[tuple[int, int]]:
    """Yield (row, text), by row, where the row has the n-grams that the rule asks for, wherever in the row they are.

    Both are normalised, and no text is shorter than an n-gram.
    """
    index = make_index(texts, rule)
    ends = np.cumsum([len(row) for row in rows])
    chunks = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(ends // CHUNK)) + 1)
    for chunk in chunks:
        found = pairs([rows[row] for row in chunk], index, rule.ngram)
        yield from ((int(chunk[0]) + row, text) for row, text in found.tolist())


def make_index(texts: Sequence[str], rule: Rule) -> Index:
    hashes, owner = distinct_ngrams(texts, rule.ngram)
    vocabulary, ngrams, spread = np.unique(hashes, return_inverse=True, return_counts=True)
    count = np.bincount(owner, minlength=len(texts))
    need = needed(count, rule)
    rare_need = -(-need // 4)
    first = np.cumsum(count) - count

    by_rarity = np.lexsort((spread[ngrams], owner))
    place = np.arange(len(owner)) - first[owner]  # in its text, the rarest first
    rare = by_rarity[place < (count - need + rare_need)[owner]]
    rare = rare[np.argsort(ngrams[rare], kind="stable")]
    rare_count = np.bincount(ngrams[rare], minlength=len(vocabulary))
    rare_first = np.cumsum(rare_count) - rare_count
    return Index(vocabulary, ngrams, first, count, need, rare_need, owner[rare], rare_first, rare_count)


def needed(count: Ints, rule: Rule) -> Ints:
    """Return how many of `count` distinct n-grams a row must have: `SHORT` of a short text, all of the shortest."""
    short = np.where(count > SYLLABLES - rule.ngram, SHORT, 1.0)
    share = np.where(rule.share * count < rule.least, short, rule.share)
    need: Ints = np.ceil(share * count - 1e-9).astype(np.int64)
    return need


def distinct_ngrams(texts: Sequence[str], n: int) -> Ngrams:
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    starts = max(len(codes) - n + 1, 0)
    hashes = np.zeros(starts, dtype=np.uint64)
    for k in range(n):
        hashes = hashes * MULTIPLIER + codes[k : k + starts]  # modulo 2**64
    inside = owner[:starts] == owner[n - 1 :]
    hashes, owner = hashes[inside], owner[:starts][inside]
    order = np.lexsort((hashes, owner))
    hashes, owner = hashes[order], owner[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
    return Ngrams(hashes[new], owner[new])


def pairs(rows: Sequence[str], index: Index, n: int) -> Ints:
    """Return (row, text) [P, 2] where the row has the n-grams needed, by row, then text."""
    hashes, row = distinct_ngrams(rows, n)
    ngram, known = places(index.vocabulary, hashes)
    ngram, row = ngram[known], row[known]
    there = np.sort(row * len(index.vocabulary) + ngram)

    text = index.rare_texts[ranges(index.rare_first[ngram], index.rare_count[ngram])]
    pair, shared = np.unique(np.repeat(row, index.rare_count[ngram]) * len(index.need) + text, return_counts=True)
    row, text = np.divmod(pair[shared >= index.rare_need[pair % len(index.need)]], len(index.need))

    count = index.count[text]
    wanted = np.repeat(row, count) * len(index.vocabulary) + index.ngrams[ranges(index.first[text], count)]
    shared = np.bincount(np.repeat(np.arange(len(text)), count), places(there, wanted)[1], minlength=len(text))
    return np.stack([row, text], axis=1)[shared >= index.need[text]]


def places(ascending: NDArray[np.generic], values: NDArray[np.generic]) -> tuple[Ints, NDArray[np.bool_]]:
    """Return the place of each value in `ascending`, and whether it is there at all."""
    if not len(ascending):
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return place, ascending[place] == values


def ranges(firsts: Ints, counts: Ints) -> Ints:
    """Return firsts[0], firsts[0] + 1, ... (counts[0] numbers), then those of firsts[1], and so on."""
    before = np.cumsum(counts) - counts
    numbers: Ints = np.arange(int(counts.sum())) + np.repeat(firsts - before, counts)
    return numbers


def ngrams(text: str, n: int) -> list[str]:
    return [text[i : i + n] for i in range(len(text) - n + 1)]


def containment(row: str, text: str, n: int) -> float:
    """Return the highest share of the text's distinct n-grams that one place of the row has, `REACH` texts wide."""
    wanted = set(ngrams(text, n))
    hits = [(place, ngram) for place, ngram in enumerate(ngrams(row, n)) if ngram in wanted]
    inside: Counter[str] = Counter()
    best = first = 0
    for place, ngram in hits:
        inside[ngram] += 1
        while place + n - hits[first][0] > REACH * len(text):
            inside[hits[first][1]] -= 1
            first += 1
        best = max(best, len(+inside))
    return best / len(wanted)


def likeness(text: str, instruction: str, output: str) -> float:
    """Return how like the text (normalised) the likest sentence of the row is, 0 below `LIKE`.

    Twice what they share, by their lengths: Ratcliff and Obershelp's measure, as difflib has it.
    """
    matcher = SequenceMatcher(b=text, autojunk=False)
    best = 0.0
    for sentence in split_sentences(instruction, output):
        if 2 * min(len(sentence), len(text)) >= LIKE * (len(sentence) + len(text)):
            matcher.set_seq1(sentence)
            best = max(best, matcher.ratio())
    return best if best >= LIKE else 0.0


@lru_cache(maxsize=1)  # a row is held against many texts, one after the other
def split_sentences(instruction: str, output: str) -> list[str]:
    """Return the row's sentences, lines and quotations, normalised."""
    return [normalise(part) for part in SENTENCE.split(fold(f"{instruction}\n{output}"))]


def stands_alone(text: str, instruction: str, output: str) -> bool:
    """Return whether the text (normalised) begins a sentence, line or quotation of the row, or ends its instruction.

    That a few syllables stand somewhere in a row says little: `추천드립니다` ends many a sentence.
    """
    spaced = r"[\W_]*".join(map(re.escape, text))
    begins, ends = rf"(?:^|[^\w\s]|\n)\s*{spaced}(?!\w)", rf"(?<!\w){spaced}[\W_]*\Z"
    searches = ((begins, instruction), (begins, output), (ends, instruction))
    return any(re.search(pattern, fold(part)) for pattern, part in searches)
