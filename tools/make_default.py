"""Compose the bundled data from the hand-written parts in tools/default: `python -m tools.make_default`.

    tools/default/topics/*.yaml, others.yaml -> data/inputs/*, data/pretrain/*, tests/planted.csv
    tools/default/conversations.yaml -> data/inputs/counsel.jsonl
    tools/default/benchmark/*.yaml -> data/benchmark_inputs/<task>/<split>.jsonl
    tools/default/topics/*.yaml -> data/preference_inputs/politeness.jsonl

Each phrasing of a question goes either to the inputs or to pretrain, never to both. tests/planted.csv lists the noise
that is planted in the inputs: duplicates, empty rows, garbage, other languages, rows that are too long, rows with
shuffled words, and a whole source, `scraped`, of shuffled questions with boilerplate for answers.
"""

import csv
import io
import json
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from tools.plain_style import to_plain_style

PARTS = Path(__file__).parent / "default"
HOMES = {  # the source that the rows of a topic go to; its short questions go to chat
    "요리": "life",
    "건강과 운동": "life",
    "국내 여행지": "life",
    "컴퓨터와 인터넷": "assistant",
    "과학 현상": "assistant",
    "생활 금융": "faq",
    "화초와 텃밭 식물": "faq",
    "한국사 인물": "knowledge",
}
SUMMARIZE = (
    "다음 글을 한 문장으로 요약해 주세요.",
    "아래 글의 요점을 한 문장으로 정리해 주세요.",
    "이어지는 글을 읽고 핵심을 한 문장으로 말해 주세요.",
)
ARTICLES = 6
"""Documents about each topic. For each item, pretrain also has a document with the questions about it."""
SCRAPED = 450
"""Rows of the source `scraped`."""
PAIRS = 200
"""Pairs of a formal and a plain answer."""
READ_ALOUD = dict(zip("0123456789", "영일이삼사오육칠팔구", strict=True)) | dict(
    zip(ascii_uppercase, "이비씨디이프지치이이이엘엠엔오피큐알스티유이유스이트", strict=True)
)
"""The last syllable of the name of a digit or a letter: 치 for H, because H is 에이치."""
PARTICLES = {"은": "는", "이": "가", "을": "를", "과": "와", "으로": "로", "이라": "라", "이나": "나"}


@dataclass(frozen=True)
class BundledRow:
    source: str
    topic: str
    instruction: str
    output: str
    input: str = ""
    kind: str = "clean"
    """`clean`, `shuffled`, `scraped`, or the reason that the row must have in dropped.parquet."""
    broken: bytes = b""
    """The whole line, if it must be unreadable."""

    @property
    def text(self) -> str:
        """The instruction as `merge` joins it from instruction and input."""
        return f"{self.instruction} {self.input}".strip()


def with_particles(pattern: str, name: str) -> str:
    """Fill in the name, and replace each particle in braces with the form that fits the syllable before it.

    A digit or a Latin letter counts as it is read aloud: CPU가, URL이, 2가, 3이.
    """
    parts = re.split(r"\{(\w+)\}", pattern.replace("{이름}", name))
    text = parts[0]
    for particle, rest in zip(parts[1::2], parts[2::2], strict=True):
        final = final_consonant(text[-1])
        bare = final == 0 or (particle == "으로" and final == 8)  # ㄹ takes 로
        text += (PARTICLES[particle] if bare else particle) + rest
    return text


def final_consonant(character: str) -> int:
    """Return the number of the final consonant, 0 for none, as in Unicode's Hangul syllables."""
    syllable = READ_ALOUD.get(character.upper(), character)
    if not "가" <= syllable <= "힣":
        raise ValueError(f"no particle fits {character!r}; a name ends in a Hangul syllable, a digit or a Latin letter")
    return (ord(syllable) - ord("가")) % 28


def topics() -> list[dict[str, Any]]:
    return [YAML(typ="safe").load(path) for path in sorted((PARTS / "topics").glob("*.yaml"))]


def compose() -> tuple[list[BundledRow], list[BundledRow], list[str]]:
    """Return the input rows (noise included), and the pairs and the documents of pretrain."""
    rng = random.Random(20240501)
    inputs, pretrain, spare, documents, questions = [], [], [], [], []
    for topic in topics():
        documents += articles(rng, topic)
        for number, name in enumerate(topic["items"]):
            rows = [facet_rows(rng, topic, name, facet) for facet in topic["asks"]]
            inputs += [row for taken, _, _ in rows for row in taken]
            left = [row for _, left, _ in rows for row in left]
            spare += [reserve for _, _, reserve in rows]
            questions.append("\n".join(row.instruction for row in rng.sample(left, len(left))))
            pretrain += left
            inputs += whole_rows(rng, topic, name, number, pretrain)
    inputs += other_rows(pretrain)
    rng.shuffle(spare)
    pretrain += spare[40:]
    inputs += [shuffled(rng, row) for row in spare[:40]]
    inputs += other_noise(rng, inputs, documents)
    order = list(range(len(inputs)))
    rng.shuffle(order)
    rng.shuffle(pretrain)
    inputs = [inputs[i] for i in order]
    return [*duplicates_last(inputs), *scraped(inputs)], pretrain, documents + questions


def articles(rng: random.Random, topic: dict[str, Any]) -> Iterator[str]:
    """Yield documents about four items of a topic, with a paragraph for each."""
    for _ in range(ARTICLES):
        paragraphs = [said_about(topic, name) for name in rng.sample(list(topic["items"]), 4)]
        yield "\n".join(" ".join(rng.sample(paragraph, len(paragraph))) for paragraph in paragraphs)


def said_about(topic: dict[str, Any], name: str) -> list[str]:
    """Return sentences about an item; the first one names it."""
    facts = topic["items"][name]
    first = [facts["소개"]] if "소개" in facts else []
    return first + [facts[facet][0] for facet in topic["asks"]]


def facet_rows(
    rng: random.Random, topic: dict[str, Any], name: str, facet: str
) -> tuple[list[BundledRow], list[BundledRow], BundledRow]:
    """Return the rows about a facet of an item: those for the inputs, those for pretrain, and one in reserve.

    The first of the two answers is formal (합니다체). The second (해요체 or 반말) belongs to two long questions and a
    short one; at most one of these three rows is in the inputs, so no answer is in the inputs twice.
    """
    home, (first, second) = HOMES[topic["topic"]], topic["items"][name][facet]
    formal, casual, (short,) = (
        [BundledRow(home, topic["topic"], with_particles(ask, name), answer) for ask in asks]
        for asks, answer in zip(topic["asks"][facet].values(), (first, second, second), strict=True)
    )
    short = replace(short, source="chat")
    rng.shuffle(formal)
    rng.shuffle(casual)
    other = rng.choices((short, casual[0], None), (0.4, 0.4, 0.2))[0]
    taken = [formal[0]] + ([other] if other else [])
    return taken, [row for row in (*formal[2:], *casual, short) if row is not other], formal[1]


def whole_rows(
    rng: random.Random, topic: dict[str, Any], name: str, number: int, pretrain: list[BundledRow]
) -> Iterator[BundledRow]:
    """Yield the rows that ask about an item as a whole: a paragraph or a list, and for every other item a summary.

    The rows that are not yielded are added to `pretrain`.
    """
    facts, body = topic["items"][name], " ".join(said_about(topic, name))
    listed = "\n".join(f"- {heading}: {facts[facet][0]}" for facet, heading in topic["headings"].items())
    asks = [(ask, body) for ask in topic["whole"]["글"]] + [(ask, listed) for ask in topic["whole"]["목록"]]
    rng.shuffle(asks)
    first, *rest = (
        BundledRow(HOMES[topic["topic"]], topic["topic"], with_particles(ask, name), text) for ask, text in asks
    )
    yield first
    pretrain += rest
    summary = BundledRow("assistant", topic["topic"], SUMMARIZE[number % 3], facts["요약"], input=body)
    if number % 2:
        yield summary
    else:
        pretrain.append(replace(summary, instruction=summary.text, input=""))


def other_rows(pretrain: list[BundledRow]) -> Iterator[BundledRow]:
    """Yield the rows that fit no template. Their other phrasings are added to `pretrain`."""
    for topic, entries in YAML(typ="safe").load(PARTS / "others.yaml").items():
        for entry in entries:
            first, *rest = (BundledRow(HOMES[topic], topic, ask, entry["answer"]) for ask in entry["asks"])
            yield first
            pretrain += rest


def shuffled(rng: random.Random, row: BundledRow) -> BundledRow:
    """Return the row with the words of its instruction in another order that ends in another word."""
    return replace(row, instruction=shuffle_words(rng, row.instruction), kind="shuffled")


def shuffle_words(rng: random.Random, text: str) -> str:
    words = text.split()
    mixed = words[:]
    while mixed[-1] == words[-1]:
        rng.shuffle(mixed)
    return " ".join(mixed)


def other_noise(rng: random.Random, rows: list[BundledRow], documents: list[str]) -> Iterator[BundledRow]:
    """Yield the noise that `merge` must drop."""
    clean = [row for row in rows if row.kind == "clean" and not row.input]
    picked = rng.sample(clean, 40)
    for row in picked[:18]:
        yield replace(row, kind="duplicate")
    for row in [row for row in picked[18:] if row.source in ("life", "assistant")][:3]:  # both come before chat
        yield replace(row, kind="duplicate", source="chat")
    for row in [row for row in picked[21:] if row.source != "faq"][:3]:  # cp949 cannot encode decomposed Hangul
        yield replace(row, kind="duplicate", instruction=unicodedata.normalize("NFD", row.instruction))
    for row in picked[34:36]:
        yield replace(row, kind="duplicate", instruction=f"  {row.instruction}\n")
    for number, row in enumerate(rng.sample(clean, 12)):
        empty = {"instruction": ("", "   ")[number % 2]} if number < 6 else {"output": ("", "\n ")[number % 2]}
        yield replace(row, kind="empty", **empty)
    noise = YAML(typ="safe").load(PARTS / "noise.yaml")
    homes = ["life", "assistant", "chat", "knowledge"]
    for number, (instruction, output) in enumerate(noise["other_languages"] + noise["garbage"]):
        yield BundledRow(homes[number % 4], "", instruction, output, kind="not_korean")
    for source in ("life", "assistant", "knowledge"):
        long = " ".join(rng.sample(documents, 4)).replace("\n", " ")
        yield BundledRow(source, "", f"다음 글을 세 문장으로 요약해 주세요. {long}", long[:200], kind="too_long")
    good = json.dumps({"instruction": clean[0].instruction, "output": clean[0].output}, ensure_ascii=False).encode()
    yield BundledRow("life", "", "", "", kind="unreadable", broken=good[:-20])
    yield BundledRow("life", "", "", "", kind="unreadable", broken=good[:40] + b"\xff\xfe" + good[40:])
    yield BundledRow("assistant", "", "", "", kind="unreadable", broken=b'{"id": "science_0", "instruction": ')


def scraped(rows: list[BundledRow]) -> Iterator[BundledRow]:
    """Yield noise that `merge` keeps: questions whose words are shuffled, answered with the boilerplate of a web page.

    An arm should avoid it: its perplexities are high, and what it teaches is wrong.
    """
    rng, noise = random.Random(20240503), YAML(typ="safe").load(PARTS / "noise.yaml")
    clean = [row for row in rows if row.kind == "clean" and not row.input and len(row.instruction.split()) > 3]
    for row in rng.sample(clean, SCRAPED):
        question, answer = shuffle_words(rng, row.instruction), rng.choice(noise["boilerplate"])
        yield replace(row, source="scraped", instruction=question, output=answer, kind="scraped")


def duplicates_last(rows: list[BundledRow]) -> list[BundledRow]:
    """Return the rows with all duplicates last, so that `merge` keeps the clean row and drops the duplicate."""
    return [row for row in rows if row.kind != "duplicate"] + [row for row in rows if row.kind == "duplicate"]


def write_inputs(rows: list[BundledRow], folder: Path) -> Iterator[dict[str, Any]]:
    """Write the six files, and yield an entry of planted.csv for each planted row."""
    by_source = {source: [row for row in rows if row.source == source] for source in SOURCES}
    for source, write in SOURCES.items():
        write(folder, by_source[source])
        for line, row in enumerate(by_source[source], 1):
            if row.kind != "clean":
                yield {"source": source, "line": line, "kind": row.kind}


def join_lines(records: Iterable[bytes]) -> bytes:
    return b"".join(record + b"\n" for record in records)


def to_json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode()


def write_life(folder: Path, rows: list[BundledRow]) -> None:
    records = (row.broken or to_json({"instruction": row.instruction, "output": row.output}) for row in rows)
    (folder / "life.jsonl").write_bytes(join_lines(records))


def write_assistant(folder: Path, rows: list[BundledRow]) -> None:
    def record(number: int, row: BundledRow) -> bytes:
        group = {"컴퓨터와 인터넷": "computing", "과학 현상": "science"}.get(row.topic, "summary")
        content = {"id": f"{group}_{number}", "instruction": row.instruction, "input": row.input, "output": row.output}
        return row.broken or to_json(content)

    (folder / "assistant.jsonl").write_bytes(join_lines(record(number, row) for number, row in enumerate(rows, 1)))


def write_chat(folder: Path, rows: list[BundledRow]) -> None:
    table = {"user_translated": [r.instruction for r in rows], "chip2_translated": [r.output for r in rows]}
    pq.write_table(pa.table(table), folder / "chat.parquet")


def write_faq(folder: Path, rows: list[BundledRow]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(["번호", "질문", "답변"])
    writer.writerows([number, row.instruction, row.output] for number, row in enumerate(rows, 1))
    (folder / "faq.csv").write_bytes(text.getvalue().encode("cp949"))


def write_knowledge(folder: Path, rows: list[BundledRow]) -> None:
    content = {str(n): {"question": row.instruction, "answer": row.output} for n, row in enumerate(rows, 1)}
    (folder / "knowledge.json").write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8-sig")


def write_scraped(folder: Path, rows: list[BundledRow]) -> None:
    records = (to_json({"prompt": row.instruction, "completion": row.output}) for row in rows)
    (folder / "scraped.jsonl").write_bytes(join_lines(records))


def write_conversations(folder: Path) -> None:
    """Write the conversations in OpenAI's layout: `messages`, each with `role` and `content`."""
    records = []
    for entry in YAML(typ="safe").load(PARTS / "conversations.yaml"):
        turns = [("system", entry["system"])] if "system" in entry else []
        turns += zip(cycle(("user", "assistant")), entry["turns"], strict=False)
        records.append(to_json({"messages": [{"role": role, "content": text} for role, text in turns]}))
    (folder / "counsel.jsonl").write_bytes(join_lines(records))


SOURCES = {
    "life": write_life,
    "assistant": write_assistant,
    "chat": write_chat,
    "faq": write_faq,
    "knowledge": write_knowledge,
    "scraped": write_scraped,
}


def write_pretrain(pairs: list[BundledRow], documents: list[str], folder: Path) -> None:
    records = (to_json({"instruction": row.instruction, "output": row.output}) for row in pairs)
    (folder / "pairs.jsonl").write_bytes(join_lines(records))
    (folder / "documents.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")


def benchmark() -> dict[str, list[list[dict[str, Any]]]]:
    """Return the items of each task in groups that go to one split as a whole.

    Items of a group share a text; a group of HellaSwag has every label once.
    """
    rng = random.Random(20240502)
    parts = {path.stem: YAML(typ="safe").load(path) for path in sorted((PARTS / "benchmark").glob("*.yaml"))}
    words = [wic_items(rng, entry["word"], *entry["senses"]) for entry in parts["wic"]]
    endings = [hellaswag_item(rng, n, entry) for n, entry in enumerate(parts["hellaswag"])]
    return {
        "boolq": [boolq_items(entry) for entry in parts["boolq"]],
        "copa": [copa_items(rng, entry) for entry in parts["copa"]],
        "hellaswag": [endings[n : n + 4] for n in range(0, len(endings), 4)],
        "sentineg": [
            [{"sentence": good, "label": 1}, {"sentence": bad, "label": 0}]
            for good, bad in zip(parts["sentineg"]["positive"], parts["sentineg"]["negative"], strict=True)
        ],
        "wic": words,
    }


def boolq_items(entry: dict[str, str]) -> list[dict[str, Any]]:
    return [{"paragraph": entry["paragraph"], "question": entry[a], "label": n} for n, a in enumerate(("no", "yes"))]


def copa_items(rng: random.Random, entry: dict[str, Any]) -> list[dict[str, Any]]:
    items, label = [], rng.randrange(2)
    for question, (right, wrong) in (("원인", entry["cause"]), ("결과", entry["effect"])):
        label = 1 - label
        first, second = (right, wrong) if label == 0 else (wrong, right)
        item = {"premise": entry["premise"], "question": question, "alternative_1": first, "alternative_2": second}
        items.append(item | {"label": label})
    return items


def hellaswag_item(rng: random.Random, number: int, entry: dict[str, Any]) -> dict[str, Any]:
    right, *wrong = entry["endings"]
    rng.shuffle(wrong)
    label = number % 4
    endings = [*wrong[:label], right, *wrong[label:]]
    return {"context": entry["context"]} | {f"ending_{n}": e for n, e in enumerate(endings, 1)} | {"label": label}


def wic_items(rng: random.Random, word: str, one: list[str], other: list[str]) -> list[dict[str, Any]]:
    """Return three pairs of contexts with the same sense of the word, and three with different senses."""
    same = [(one[0], one[1]), (other[0], other[1]), rng.choice([(one[1], one[2]), (other[1], other[2])])]
    differ = list(zip(one, rng.sample(other, 3), strict=True))
    pairs = [(pair, 1) for pair in same] + [(pair, 0) for pair in differ]
    return [{"word": word, "context_1": a, "context_2": b, "label": label} for (a, b), label in pairs]


def write_benchmark(folder: Path) -> None:
    """Write the splits, with at least 12 train, 8 validation and 60 test items in each task."""
    for task, groups in benchmark().items():
        random.Random(task).shuffle(groups)
        minimum = {"train": 12, "validation": 8, "test": 60}
        for split, count in minimum.items():
            items: list[dict[str, Any]] = []
            while len(items) < count:
                items += groups.pop()
            random.Random(f"{task}/{split}").shuffle(items)
            path = folder / task / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(join_lines(to_json(item) for item in items))


def politeness(rows: list[BundledRow]) -> list[dict[str, str]]:
    """Return PAIRS pairs; the chosen answer is formal (합쇼체), the rejected one is the same in the plain style."""
    alone = [row for row in rows if row.kind == "clean" and not row.input]
    pairs = {row.output: (row.instruction, to_plain_style(row.output)) for row in alone}
    fitting = [
        {"prompt": instruction, "chosen": formal, "rejected": plain}
        for formal, (instruction, plain) in pairs.items()
        if plain
    ]
    return [fitting[number] for number in sorted(random.Random(14).sample(range(len(fitting)), PAIRS))]


def write_pairs(pairs: list[dict[str, str]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "politeness.jsonl").write_bytes(join_lines(map(to_json, pairs)))


def write_all(root: Path) -> None:
    for name in ("data/inputs", "data/pretrain", "tests"):
        (root / name).mkdir(parents=True, exist_ok=True)
    rows, pairs, documents = compose()
    planted = list(write_inputs(rows, root / "data/inputs"))
    write_conversations(root / "data/inputs")
    write_pretrain(pairs, documents, root / "data/pretrain")
    write_benchmark(root / "data/benchmark_inputs")
    write_pairs(politeness(rows), root / "data/preference_inputs")
    with (root / "tests/planted.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["source", "line", "kind"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(planted)


if __name__ == "__main__":
    write_all(Path())
