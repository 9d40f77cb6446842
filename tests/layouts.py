"""Made-up files in the layouts of published Korean sets, and the rows that plain loops find in them."""

import csv
import io
import json
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.corpus import parquet

TOPICS = ("첨성대", "막차 시간", "주말 등산", "전세 계약", "김장 양념", "와이파이")
PAIRS = [
    (f"{topic}에 대해 알려 주세요.", f"{topic}의 답은 {number}번 설명에 있습니다.")
    for number, topic in enumerate(TOPICS)
]
CONTEXT = "한라산은 제주도에 있으며 높이는 1947미터이다."


class Layout(NamedTuple):
    write: Callable[[Path], Path]
    """Write the file or folder into a folder and return its path."""
    rows: list[tuple[str, str]]
    """Instruction and output of each row, by plain loops."""
    by_hand: dict[str, Any] = {}  # noqa: RUF012
    """What a person must change in the proposed entry."""


def file(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


def folder(files: dict[str, bytes]) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        return [file(name, content)(path) for name, content in files.items()][-1].parent

    return write


def as_json(value: Any, encoding: str = "utf-8", **options: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, **options).encode(encoding)


def jsonl(rows: list[Any], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def table(header: list[str], rows: list[list[str]], encoding: str = "utf-8", separator: str = ",") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator).writerows([header, *rows])
    return text.getvalue().encode(encoding)


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def zip_in_cp949(files: dict[str, bytes]) -> bytes:
    """Return a zip whose names are in cp949, without a flag that says so."""
    stand_ins = {f"{number:0{len(name.encode('cp949'))}d}": name for number, name in enumerate(files)}
    content = zipped({stand_in: files[name] for stand_in, name in stand_ins.items()})
    for stand_in, name in stand_ins.items():
        content = content.replace(stand_in.encode(), name.encode("cp949"))
    return content


def tar_of_parts(name: str, content: bytes, cuts: list[int], lost: int | None = None) -> bytes:
    """Return a file as AI Hub delivers it: a tar of a zip's parts, named by their first byte; one may be missing."""
    out = io.BytesIO()
    starts = [0, *cuts]
    with tarfile.open(fileobj=out, mode="w") as archive:
        parts = zip(starts, [*cuts, len(content)], strict=True)
        for start, end in sorted(parts, key=lambda part: str(part[0])):  # 1000 before 200, as folders list them
            info = tarfile.TarInfo(f"3.개방데이터/1.데이터/Training/{name}.part{start}")
            info.size = end - start
            if start != lost:
                archive.addfile(info, io.BytesIO(content[start:end]))
    return out.getvalue()


def workbook(header: list[Any], rows: list[list[Any]]) -> bytes:
    from openpyxl import Workbook

    book, out = Workbook(), io.BytesIO()
    for row in [header, *rows]:
        book.active.append(row)
    book.save(out)
    return out.getvalue()


def flat(instruction: str, output: str, **others: Any) -> list[dict[str, Any]]:
    return [{instruction: question, output: answer} | others for question, answer in PAIRS]


def sentences(number: int, question: str, answer: str) -> list[dict[str, str]]:
    """Return two sentences of a caller and two of an agent, one row each, not in order."""
    said = [("고객", "고객질문(요청)", "여보세요."), ("고객", "고객질문(요청)", question)]
    said += [("상담사", "상담사답변", answer), ("상담사", "상담사답변", "더 궁금한 점이 있으신가요?")]
    empty = dict.fromkeys(["고객질문(요청)", "상담사질문(요청)", "고객답변", "상담사답변"], "")
    rows = [
        {"도메인": "다산콜센터", "대화셋일련번호": f"B{number}", "화자": who, "문장번호": str(place)}
        | empty
        | {column: text, "개체명 ": "막차"}
        for place, (who, column, text) in enumerate(said, 9)  # 10 is after 9 as a number, not as text
    ]
    return rows[::-1]


def human_dialogue(question: str, answer: str, **names: str) -> list[dict[str, str]]:
    role, text, one, other = (names[key] for key in ("role", "text", "one", "other"))
    return [{role: one, text: question, "note": ""}, {role: other, text: answer, "note": ""}]


CALLS = [row for number, pair in enumerate(PAIRS) for row in sentences(number, *pair)]
CALL_ROWS = [(f"여보세요.\n{q}", f"{a}\n더 궁금한 점이 있으신가요?") for q, a in PAIRS]
SFT = {
    "data_info": [
        {
            "data_id": str(number),
            "data_category": {"main": "인문", "middle": "역사"},
            "question": question,
            "question_count": 13,
            "answer": {"contents": answer, "answer_count": 9},
        }
        for number, (question, answer) in enumerate(PAIRS)
    ]
}
CIVIL = [
    {
        "source": "가온시",
        "consulting_content": f"Q : {q}\nA : {a}",
        "instructions": [
            {"tuning_type": "질의응답", "data": [{"task": "질의응답", "instruction": q, "input": "", "output": a}]}
        ],
    }
    for q, a in PAIRS
]
FINANCE = {
    "source": {"source_institution": "가나은행", "consulting_content": "TX…\nRX…"},
    "qa_data": [
        {
            "qa_topic": "대출문의",
            "instruction": "다음 상담을 읽고 답하세요.",
            "input": {"question": q, "answer": "확인하겠습니다.", "follow_up_question": "언제까지요?"},
            "output": a,
        }
        for q, a in PAIRS
    ],
}
FINANCE_ROWS = [(f"다음 상담을 읽고 답하세요.\n{q}\n확인하겠습니다.\n언제까지요?", a) for q, a in PAIRS]
SQUAD = {
    "data": [
        {
            "title": "한라산",
            "paragraphs": [
                {"context": CONTEXT, "qas": [{"id": q, "question": q, "answers": [{"text": a, "answer_start": 0}]}]}
            ],
        }
        for q, a in PAIRS
    ]
}
MRC = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "question": q,
                            "is_impossible": False,
                            "answers": {"text": a, "answer_start": 0, "clue_text": ""},
                        }
                        for q, a in PAIRS
                    ],
                }
            ]
        }
    ]
}
KORQUAD2 = {
    "data": [
        {
            "title": "한라산",
            "context": CONTEXT,
            "qas": [{"id": 1, "question": q, "answer": {"text": a}} for q, a in PAIRS],
        }
    ]
}
QUESTION_1 = {
    "dataset": {
        "context_info": [
            {"context": CONTEXT, "qas": [{"question-1": q, "question-2": "다른 질문", "answer": a} for q, a in PAIRS]}
        ]
    }
}
IN_CONTEXT = [(f"{CONTEXT}\n{q}", a) for q, a in PAIRS]
LAW = {
    f"{number}.json": as_json(
        {
            "info": {"doc_class": "판결문", "id": str(number)},
            "taskinfo": {"instruction": "판결문을 읽고 답하라", "output": a, "sentences": ["본문 1", "본문 2"]}
            | ({"input": q} if number % 2 else {}),
        }
    )
    for number, (q, a) in enumerate(PAIRS)
}
LAW_ROWS = [
    (f"본문 1\n본문 2\n판결문을 읽고 답하라{f'{chr(10)}{q}' if number % 2 else ''}", a)
    for number, (q, a) in enumerate(PAIRS)
]
ARCHIVE = {
    "data": [
        {
            "context": CONTEXT,
            "title": "제목",
            "labels": [
                {
                    "instructs": [{"text": "너는 기록 연구사다."}, {"text": "한 문장으로 답하라."}, {"text": q}],
                    "response": a,
                }
            ],
        }
        for q, a in PAIRS
    ]
}
FACEBOOK = {
    "info": [
        {
            "category": "여가",
            "annotations": {
                "subject": "주말",
                "text": "1 : 뭐 해?\n2 : 등산",
                "lines": [
                    {"id": 1, "speaker": {"id": "1번", "sex": "여"}, "text": f"1 : {q}", "norm_text": q},
                    {"id": 2, "speaker": {"id": "2번", "sex": "남"}, "text": f"2 : {a}", "norm_text": a},
                ],
            },
        }
        for q, a in PAIRS[:1]
    ]
}
NIKL = {
    f"국립국어원/SDRW{number}.json": as_json(
        {
            "id": f"SDRW{number}",
            "metadata": {"title": "대화"},
            "document": [
                {
                    "id": f"SDRW{number}.1",
                    "metadata": {"topic": "여행", "speaker": [{"id": f"SD{number}", "age": "20대"}]},
                    "utterance": human_dialogue(
                        q, a, role="speaker_id", text="form", one=f"SD{number}", other=f"SD{number}0"
                    ),
                }
            ],
        }
    )
    for number, (q, a) in enumerate(PAIRS)
}
SNS = {
    "data": [
        {
            "header": {"dialogueInfo": {"topic": "일상"}},
            "body": [
                {"utteranceID": "U1", "turnID": "T1", "participantID": "P01", "date": "2021-01-01", "utterance": q},
                {"utteranceID": "U2", "turnID": "T2", "participantID": "P02", "date": "2021-01-01", "utterance": a},
            ],
        }
        for q, a in PAIRS
    ]
}
UTTERANCES = {
    "dataset": {
        "conversations": [
            {"utterances": [{"speaker_id": 1, "utterance_text": q}, {"speaker_id": 0, "utterance_text": a}]}
            for q, a in PAIRS
        ]
    }
}
SUMMARY = [
    {
        "id": f"nikluge-2024-일상 대화 요약-train-{number:06}",
        "input": {
            "conversation": [{"speaker": "SD1", "utterance": q}, {"speaker": "SD2", "utterance": "그래요?"}],
            "subject_keyword": ["여행"],
        },
        "output": a,
    }
    for number, (q, a) in enumerate(PAIRS)
]
SHAREGPT = [
    {"id": f"s{n}", "conversations": [{"from": "human", "value": q}, {"from": ("gpt", "bard")[n % 2], "value": a}]}
    for n, (q, a) in enumerate(PAIRS)
]
OPENAI = [
    {
        "messages": [
            {"role": "developer", "content": "짧게 답하라."},
            {"role": "user", "content": [{"type": "text", "text": q}] if n % 2 else q},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "w", "arguments": '{"c":"서울"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "맑음"},
            {"role": "assistant", "content": a, "weight": 1},
        ]
    }
    for n, (q, a) in enumerate(PAIRS)
]
KAKAO = "".join(
    f"--------------- 2026년 10월 {day}일 금요일 ---------------\n[강이슬] [오후 3:15] {q}\n둘째 줄\n"
    f"[나 #1] [오후 3:16] {a}\n"
    for day, (q, a) in enumerate(PAIRS, 1)
)
KAKAO_ROWS = [(f"{q}\n둘째 줄", a) for q, a in PAIRS]
ANDROID = "".join(
    f"2026년 10월 {day}일 오후 3:15\n2026년 10월 {day}일 오후 3:15, 강이슬 : {q}\n2026년 10월 {day}일 15:16, 나 : {a}\n"
    for day, (q, a) in enumerate(PAIRS, 1)
)
IPHONE = "".join(
    f"2026. 10. {day}. 오후 3:15, 강이슬 : {q}\n2026. 10. {day}. 오후 3:16: 박나무님이 들어왔습니다.\n"
    f"2026. 10. {day}. 오후 3:17, 나 : {a}\n"
    for day, (q, a) in enumerate(PAIRS, 1)
)
TITLE = "강이슬 님과 카카오톡 대화\n저장한 날짜 : 2026-10-02 22:58:30\n\n"
NFD = unicodedata.normalize("NFD", "02.라벨링데이터/민원.json")
LAYOUTS: dict[str, Layout] = {
    "KoAlpaca v1, JSON array": Layout(
        file("koalpaca.json", as_json(flat("instruction", "output", input="nan"))), PAIRS
    ),
    "KoAlpaca v1.1, JSON Lines": Layout(
        file("koalpaca.jsonl", jsonl(flat("instruction", "output", url="https://a.b"))), PAIRS
    ),
    "dolly-15k-ko, Parquet": Layout(
        file("dolly.parquet", parquet(flat("instruction", "response", context=CONTEXT, category="qa"))),
        [(f"{q}\n{CONTEXT}", a) for q, a in PAIRS],
    ),
    "ShareGPT-ko": Layout(file("sharegpt.json", as_json(SHAREGPT, indent=1)), PAIRS),
    "open-korean-instructions, markers": Layout(
        file("oki.jsonl", jsonl([{"source": "oki", "text": f"<usr> {q}\n<bot> {a}"} for q, a in PAIRS])), PAIRS
    ),
    "guanaco-ko, markers": Layout(
        file("guanaco.jsonl", jsonl([{"text": f"### Human: {q}### Assistant: {a}"} for q, a in PAIRS])), PAIRS
    ),
    "KoChatGPT, an array called .jsonl": Layout(
        file("kochatgpt_1_SFT.jsonl", as_json(flat("prompt", "completion", tokens=3), indent=2)), PAIRS
    ),
    "OpenOrca-KO, system text": Layout(
        file("orca.jsonl", jsonl(flat("question", "response", system_prompt="너는 비서다."))), PAIRS
    ),
    "OIG-small-chip2-ko": Layout(
        file("oig.jsonl", jsonl(flat("user_translated", "chip2_translated", user="hi", chip2="hello", index=1))), PAIRS
    ),
    "KoCoT": Layout(
        file(
            "cot.json",
            as_json([{"source": q, "target": "3", "rationale": a, "task": "cot", "type": "CoT"} for q, a in PAIRS]),
        ),
        [(q, f"{a}\n\n정답: 3") for q, a in PAIRS],
    ),
    "HRC, lines called .json, commas and spaces in keys": Layout(
        file(
            "hrc.jsonl.json",
            jsonl(flat("질의", "상담례, 결정례 기반 답변", **{"ChatGPT API 답변": "다른 답", "종류": "상담"})),
        ),
        PAIRS,
    ),
    "CounselGPT, an array per line": Layout(
        file(
            "counsel.jsonl",
            jsonl([[{"speaker": "내담자", "utterance": q}, {"speaker": "상담사", "utterance": a}] for q, a in PAIRS]),
        ),
        PAIRS,
    ),
    "glaive-ko, JSON inside a string": Layout(
        file(
            "glaive.jsonl",
            jsonl(
                [
                    {"conversations_ko": json.dumps([{"from": "human", "value": q}, {"from": "gpt", "value": a}])}
                    for q, a in PAIRS
                ]
            ),
        ),
        PAIRS,
    ),
    "KULLM3, bare lists": Layout(file("kullm3.jsonl", jsonl([{"data": [q, a]} for q, a in PAIRS])), PAIRS),
    "songys Chatbot, CSV in cp949": Layout(
        file("ChatbotData .csv", table(["Q", "A", "label"], [[q, a, "0"] for q, a in PAIRS], "cp949")), PAIRS
    ),
    "Korean-Instruction, TSV": Layout(
        file("ki.tsv", table(["Instruction", "Response"], [[q, a] for q, a in PAIRS], "utf-8-sig", "\t")), PAIRS
    ),
    "Ko-StrategyQA, keyed by id": Layout(
        file(
            "strategy.json",
            as_json({f"q{n}": {"term": "", "question": q, "answer": a} for n, (q, a) in enumerate(PAIRS)}),
        ),
        PAIRS,
    ),
    "OpenAI messages with tools": Layout(file("openai.jsonl", jsonl(OPENAI)), PAIRS),
    "a workbook": Layout(
        file("상담.xlsx", workbook(["질문 ", "답변", "비고"], [[q, a, None] for q, a in PAIRS])), PAIRS
    ),
    "AI Hub 71748: a tar of zip parts, names with a leading slash": Layout(
        file(
            "download.tar",
            tar_of_parts(
                "TL_02.RLHF데이터.zip",
                content := zipped({"/SFTlabel.json": as_json(SFT, "utf-8-sig")}),
                [*(len(content) * cut // 12 for cut in range(1, 12))],
            ),
        ),
        PAIRS,
    ),
    "AI Hub 71852: a zip with cp949 names": Layout(
        file(
            "TL_질의응답.zip",
            zip_in_cp949({"공공/민원 1.json": as_json(CIVIL[:3]), "공공/민원 2.json": as_json(CIVIL[3:])}),
        ),
        PAIRS,
    ),
    "AI Hub 금융: a file per call": Layout(file("금융/1.json", as_json(FINANCE)), FINANCE_ROWS),
    "AI Hub 98: a row per sentence, a zip with NFD names": Layout(
        file("콜센터.zip", zipped({NFD: as_json(CALLS, "cp949"), "__MACOSX/._민원.json": b"\0"})), CALL_ROWS
    ),
    "AI Hub 543: a folder of files, one broken": Layout(
        folder(
            {f"TL_02. FACEBOOK/{n}.json": as_json(FACEBOOK) for n in range(149)}
            | {"TL_02. FACEBOOK/X.json": b'{"info": [{"id": (x),}]}'}
        ),
        PAIRS[:1] * 149,
    ),
    "AI Hub 86, a record per line with a comma": Layout(
        file("감성.json", jsonl([{"talk": {"content": {"HS01": q, "SS01": a, "HS02": ""}}} for q, a in PAIRS], ",\n")),
        PAIRS,
        by_hand={"instruction": ["talk.content.HS01"], "output": "talk.content.SS01"},
    ),
    "AI Hub MRC, answers as an object": Layout(file("mrc.json", as_json(MRC)), IN_CONTEXT),
    "AI Hub 71533, question-1": Layout(file("TL_span.json", as_json(QUESTION_1)), IN_CONTEXT),
    "AI Hub law: a record per file": Layout(file("law.zip", zipped(LAW)), LAW_ROWS),
    "AI Hub 71875, medical": Layout(
        file(
            "medical.zip",
            zipped({f"{n}.json": as_json({"qa_id": n, "question": q, "answer": a}) for n, (q, a) in enumerate(PAIRS)}),
        ),
        PAIRS,
    ),
    "AI Hub 71788, records": Layout(file("기록물.json", as_json(ARCHIVE)), [(f"{CONTEXT}\n{q}", a) for q, a in PAIRS]),
    "AI Hub 71773": Layout(
        file("71773.json", as_json(UTTERANCES)), PAIRS, by_hand={"turns": {"roles": {"0": "assistant", "1": "user"}}}
    ),
    "AI Hub 114, SNS": Layout(file("sns.json", as_json(SNS)), PAIRS),
    "NIKL dialogue": Layout(file("NIKL_DIALOGUE.zip", zipped(NIKL)), PAIRS),
    "AI 말평 2024": Layout(file("nikluge.json", as_json(SUMMARY)), [(f"{q}\n그래요?", a) for q, a in PAIRS]),
    "KorQuAD 1.0": Layout(file("korquad1.json", as_json(SQUAD)), IN_CONTEXT),
    "KorQuAD 2.1": Layout(file("korquad2.json", as_json(KORQUAD2)), IN_CONTEXT),
    "KakaoTalk, PC": Layout(file("KakaoTalk.txt", (TITLE + KAKAO).encode("utf-8-sig")), KAKAO_ROWS),
    "KakaoTalk, Android in cp949": Layout(file("android.txt", (TITLE + ANDROID).encode("cp949")), PAIRS),
    "KakaoTalk, iPhone": Layout(file("iphone.txt", (TITLE + IPHONE).encode()), PAIRS),
    "KakaoTalk, Mac": Layout(
        file(
            "mac.csv",
            table(
                ["Date", "User", "Message"],
                [
                    row
                    for day, (q, a) in enumerate(PAIRS, 1)
                    for row in ([f"2026-10-0{day} 15:15:00", "강이슬", q], [f"2026-10-0{day} 15:16:00", "나", a])
                ],
            ),
        ),
        PAIRS,
    ),
}
