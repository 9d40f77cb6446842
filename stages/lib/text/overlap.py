"""Find which of many short texts are in which rows, verbatim or nearly: the algorithms of the contamination check.

Only letters and digits are compared. Korean joins particles to its words and spaces them freely, so n-grams are of
characters, not of words. Containment is the share of a text's distinct n-grams that a row has (Broder 1997, On the
resemblance and containment of documents).

Few pairs are compared. If a row must have `need` of G distinct n-grams, it must have at least k of any G - need + k of
them, so only the rarest n-grams of each text are looked up (prefix filtering: Chaudhuri, Ganti and Kaushik 2006, A
primitive operator for similarity joins in data cleaning). Nothing is approximated.

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
"""Characters of rows that are processed together. It bounds the memory and changes nothing else."""
SHORT = 0.4
"""Share of a short text's n-grams that a row must have to be compared: what is left if one syllable is changed."""
SIMILAR = 0.85
"""Similarity to a short text from which a sentence is a near copy ..."""
SYLLABLES = 7
"""... if the text has at least this many syllables. In a shorter one, a changed syllable leaves less similarity."""
SENTENCE = re.compile(r"[^\w\s]+|\n")
"""What ends a sentence, a line or a quotation, or is inside one, as a comma is."""
CHAT = re.compile(rf"(?<=[다요죠까])\s+|{SENTENCE.pattern}")
"""What ends a sentence, also in chats without punctuation: `너무 좋았어요 또 갈까 해요`."""
JAMO = re.compile("[ㄱ-ㆎﾡ-ￜ]+")
"""Single jamo (ㅋㅋ, ㅠㅠ). NFKC would join ㄳ to the syllable before it: 네ㄳ, 넧."""
QUOTING = "이?라[고는며]"
"""What follows a quotation, with or without quotation marks: 정말 맛있어요라는 리뷰."""
JOINED = 3
"""Most neighbouring pieces between punctuation that are compared as one sentence: `소들이 [풀]을 뜯는다` has three."""
PARTICLES = re.compile(
    "에게서|에게|에서|한테|께서|까지|부터|처럼|보다|마다|조차|하고|이라도|라도|이란|[은는이가을를의에로으와과랑도만서께요란나]"
)
"""Syllables that are particles, or part of one, wherever they stand: without spaces, no word has an end."""
CORE = 3
"""Letters that must be left without particles. Otherwise too much of the text looked like them."""
REACH = 1.5
"""Width, in lengths of the text, of the place that a near copy is in. N-grams scattered over a long row are no copy."""


class Rule(NamedTuple):
    ngram: int
    """Characters of an n-gram."""
    share: float
    """Minimum share of a text's distinct n-grams that a near copy has."""
    least: int
    """Minimum number of n-grams of a near copy. Near copies of a text with fewer are sentences similar to it."""

    def near(self, text: str, share: float) -> bool:
        """Return whether a row with this share of the text's distinct n-grams contains a near copy."""
        return share >= max(self.share, self.least / len(set(ngrams(text, self.ngram))))

    def short(self, text: str) -> bool:
        """Return whether the text has too few n-grams for `least`, but enough syllables for similar sentences."""
        return len(text) >= SYLLABLES and self.share * len(set(ngrams(text, self.ngram))) < self.least


class Ngrams(NamedTuple):
    """The n-grams of each text, in order of the texts [M]."""

    hashes: NDArray[np.uint64]
    owner: Ints


@dataclass(frozen=True)
class Index:
    vocabulary: NDArray[np.uint64]
    """Hashes of all n-grams, ascending. The other fields refer to an n-gram by its position here."""
    ngrams: Ints
    """The n-grams of the first text, then those of the second, and so on [M]."""
    first: Ints
    """Position in `ngrams` of each text's first n-gram [T]."""
    count: Ints
    """Distinct n-grams of each text [T]."""
    need: Ints
    """How many of them a row must have [T]."""
    rare_need: Ints
    """How many of the text's rare n-grams a row must have [T]."""
    rare_texts: Ints
    """The texts that have the first n-gram of the vocabulary among their rare ones, then those of the second, ..."""
    rare_first: Ints
    """Position in `rare_texts` of each n-gram's first text."""
    rare_count: Ints
    """Texts that have each n-gram among their rare ones."""


def normalise(text: str) -> str:
    """Return the letters and digits of a text in NFKC and lower case, without spaces, punctuation and ㅋㅋ."""
    return re.sub(r"[\W_]+", "", fold(text))


def fold(text: str) -> str:
    """Return the text in NFKC and lower case, with a line end in place of ㅋㅋ and the like, which end sentences."""
    return unicodedata.normalize("NFKC", JAMO.sub("\n", text)).lower()


def without_particles(text: str) -> str:
    """Return what two texts have in common that differ only in punctuation, spaces, case and particles."""
    letters = normalise(text)
    core = PARTICLES.sub("", letters)
    return core if len(core) >= CORE else letters or text


def overlapping(rows: Sequence[str], texts: Sequence[str], rule: Rule) -> Iterator[tuple[int, int]]:
    """Yield (row, text), sorted by row, if the row has the n-grams that the rule requires, anywhere in the row.

    Both are normalised, and no text is shorter than an n-gram.
    """
    index = build_index(texts, rule)
    ends = np.cumsum([len(row) for row in rows])
    chunks = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(ends // CHUNK)) + 1)
    for chunk in chunks:
        found = pairs([rows[row] for row in chunk], index, rule.ngram)
        yield from ((int(chunk[0]) + row, text) for row, text in found.tolist())


def build_index(texts: Sequence[str], rule: Rule) -> Index:
    hashes, owner = distinct_ngrams(texts, rule.ngram)
    vocabulary, ngrams, spread = np.unique(hashes, return_inverse=True, return_counts=True)
    count = np.bincount(owner, minlength=len(texts))
    need = needed(count, rule)
    rare_need = -(-need // 4)
    first = np.cumsum(count) - count

    by_rarity = np.lexsort((spread[ngrams], owner))
    rank = np.arange(len(owner)) - first[owner]  # within the text, by rarity
    rare = by_rarity[rank < (count - need + rare_need)[owner]]
    rare = rare[np.argsort(ngrams[rare], kind="stable")]
    rare_count = np.bincount(ngrams[rare], minlength=len(vocabulary))
    rare_first = np.cumsum(rare_count) - rare_count
    return Index(vocabulary, ngrams, first, count, need, rare_need, owner[rare], rare_first, rare_count)


def needed(count: Ints, rule: Rule) -> Ints:
    """Return how many of `count` distinct n-grams a row must have: `SHORT` of a short text's, all of the shortest's."""
    short = np.where(count > SYLLABLES - rule.ngram, SHORT, 1.0)
    share = np.where(rule.share * count < rule.least, short, rule.share)
    need: Ints = np.ceil(share * count - 1e-9).astype(np.int64)
    return need


def distinct_ngrams(texts: Sequence[str], n: int) -> Ngrams:
    hashes, owner = hash_ngrams(texts, n)
    order = np.lexsort((hashes, owner))
    hashes, owner = hashes[order], owner[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
    return Ngrams(hashes[new], owner[new])


def hash_ngrams(texts: Sequence[str], n: int) -> Ngrams:
    """Return every n-gram of each text, repeated ones too, in the order of the texts."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    starts = max(len(codes) - n + 1, 0)
    hashes = np.zeros(starts, dtype=np.uint64)
    for k in range(n):
        hashes = hashes * MULTIPLIER + codes[k : k + starts]  # modulo 2**64
    inside = owner[:starts] == owner[n - 1 :]
    return Ngrams(hashes[inside], owner[:starts][inside])


def pairs(rows: Sequence[str], index: Index, n: int) -> Ints:
    """Return the (row, text) [P, 2] whose row has the n-grams needed, sorted by row, then text."""
    hashes, row = distinct_ngrams(rows, n)
    ngram, known = find(index.vocabulary, hashes)
    ngram, row = ngram[known], row[known]
    in_rows = np.sort(row * len(index.vocabulary) + ngram)

    text = index.rare_texts[ranges(index.rare_first[ngram], index.rare_count[ngram])]
    pair, shared = np.unique(np.repeat(row, index.rare_count[ngram]) * len(index.need) + text, return_counts=True)
    row, text = np.divmod(pair[shared >= index.rare_need[pair % len(index.need)]], len(index.need))

    count = index.count[text]
    required = np.repeat(row, count) * len(index.vocabulary) + index.ngrams[ranges(index.first[text], count)]
    shared = np.bincount(np.repeat(np.arange(len(text)), count), find(in_rows, required)[1], minlength=len(text))
    return np.stack([row, text], axis=1)[shared >= index.need[text]]


def find(ascending: NDArray[np.generic], values: NDArray[np.generic]) -> tuple[Ints, NDArray[np.bool_]]:
    """Return the position of each value in `ascending`, and whether it is there at all."""
    if not len(ascending):
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=bool)
    position = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return position, ascending[position] == values


def ranges(firsts: Ints, counts: Ints) -> Ints:
    """Return counts[0] numbers from firsts[0] up, then counts[1] numbers from firsts[1] up, and so on."""
    before = np.cumsum(counts) - counts
    numbers: Ints = np.arange(int(counts.sum())) + np.repeat(firsts - before, counts)
    return numbers


def ngrams(text: str, n: int) -> list[str]:
    return [text[i : i + n] for i in range(len(text) - n + 1)]


def containment(row: str, text: str, n: int) -> float:
    """Return the highest share of the text's distinct n-grams in one place of the row, `REACH` text lengths wide."""
    of_text = set(ngrams(text, n))
    hits = [(start, ngram) for start, ngram in enumerate(ngrams(row, n)) if ngram in of_text]
    inside: Counter[str] = Counter()
    best = first = 0
    for start, ngram in hits:
        inside[ngram] += 1
        while start + n - hits[first][0] > REACH * len(text):
            inside[hits[first][1]] -= 1
            first += 1
        best = max(best, len(+inside))
    return best / len(of_text)


def similarity(text: str, instruction: str, output: str) -> float:
    """Return the similarity of the text (normalised) to the row's most similar sentence, or 0 below `SIMILAR`.

    The measure is Ratcliff and Obershelp's, as in difflib: twice what both share over the sum of their lengths.
    """
    shortest, longest = SIMILAR * len(text) / (2 - SIMILAR) - 1e-9, len(text) * (2 - SIMILAR) / SIMILAR + 1e-9
    matcher = SequenceMatcher(b=text, autojunk=False)
    best = 0.0
    for sentence in split_sentences(instruction, output):
        if shortest <= len(sentence) <= longest:
            matcher.set_seq1(sentence)
            if matcher.quick_ratio() >= SIMILAR:  # an upper bound, and much quicker
                best = max(best, matcher.ratio())
    return best if best >= SIMILAR else 0.0


@lru_cache(maxsize=1)  # a row is compared with many texts in turn
def split_sentences(instruction: str, output: str) -> list[str]:
    """Return the row's distinct sentences, normalised: pieces between punctuation or line ends, and `JOINED` together.

    A comma or a bracket inside a sentence cuts it too, so neighbouring pieces are joined. 다, 요, 죠 and 까 may also
    end a word inside a sentence, so the row is split twice, with and without them.
    """
    text, runs = fold(f"{instruction}\n{output}"), []
    for end in (SENTENCE, CHAT):
        pieces = [piece for part in end.split(text) if (piece := normalise(part))]
        runs += [pieces[first : first + count] for first in range(len(pieces)) for count in range(1, JOINED + 1)]
    return list(dict.fromkeys(map("".join, runs)))


def is_separate(text: str, instruction: str, output: str) -> bool:
    """Return whether the text (normalised) begins a sentence, line or quotation of the row, or ends its instruction.

    A few syllables somewhere in a row mean little: `추천드립니다` ends many sentences.
    """
    spaced = r"[\W_]*".join(map(re.escape, text))
    begins = rf"(?:^|[^\w\s]|\n|[다요죠까]\s)\s*{spaced}(?:(?!\w)|(?={QUOTING}))"
    ends = rf"(?<!\w){spaced}[\W_]*\Z"
    searches = ((begins, instruction), (begins, output), (ends, instruction))
    return any(re.search(pattern, fold(part)) for pattern, part in searches)
