"""Layouts of published Korean sets, and the words by which `tools.look` guesses others.

Each layout is an entry of merge.sources without its name. `tools.look` proposes the first that reads a file's rows.
"""

from typing import Any

SPEAKERS = {
    "user": "user human 사용자 고객 손님 질문자 사람 client customer <usr> 민원인 Q",
    "assistant": "assistant gpt chatgpt bard bing bot model ai 상담사 상담원 챗봇 시스템 답변자 <bot> A",
    "system": "system developer <sys>",
    "tool": "tool function observation ipython function_call",
}
ROLES = {word.casefold(): role for role, words in SPEAKERS.items() for word in words.split()}
MARKERS: list[dict[str, str]] = [
    {"<usr>": "user", "<bot>": "assistant", "<sys>": "system"},
    {"### Human:": "user", "### Assistant:": "assistant", "### System:": "system"},
    {"### 질문:": "user", "### 답변:": "assistant", "### 맥락:": "system"},
    {"고객:": "user", "고객 :": "user", "상담사:": "assistant", "상담사 :": "assistant"},
    {"Q:": "user", "Q :": "user", "A:": "assistant", "A :": "assistant"},
    {"A:": "user", "A :": "user", "B:": "assistant", "B :": "assistant"},
]
ROLE_KEYS = ["role", "from", "speaker", "speaker_id", "participantID", "speaker.id", "화자", "user", "author"]
TEXT_KEYS = ["content", "value", "text", "utterance", "form", "utterance_text", "message", "발화", "norm_text"]
LIST_KEYS = ["data", "conversation", "conversations", "dialog", "dialogue", "turns", "messages"]
INSTRUCTION_KEYS = [
    "instruction",
    "Instruction",
    "prompt",
    "question",
    "Question",
    "Q",
    "질문",
    "질의",
    "query",
    "user_translated",
    "input1",
    "source",
    "input",
    "text",
]
INPUT_KEYS = ["input", "context"]
OUTPUT_KEYS = [
    "output",
    "response",
    "Response",
    "completion",
    "answer",
    "Answer",
    "A",
    "답변",
    "답",
    "chip2_translated",
    "output1",
    "chosen",
    "target",
    "label",
]
SYSTEM_KEYS = ["system", "system_prompt"]

CALL = "{tool_calls[0].function.name} {tool_calls[0].function.arguments}"
SENTENCES = "고객질문(요청) | 상담사질문(요청) | 고객답변 | 상담사답변"
LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    (
        "AI Hub 98, 민원(콜센터) 질의-응답: a row per sentence",
        {
            "turns": {"role": "화자", "text": SENTENCES, "roles": {"고객": "user", "상담사": "assistant"}},
            "group": {"by": "대화셋일련번호", "order": "문장번호"},
        },
    ),
    (
        "KakaoTalk: a conversation for each day",
        {"turns": {"role": "user", "text": "message"}, "group": {"by": "date"}},
    ),
    (
        "AI Hub 71748, RLHF",
        {"records": "data_info[]", "instruction": ["question"], "output": "answer.contents"},
    ),
    (
        "AI Hub 71852, 공공 민원",
        {"records": "instructions[].data[]", "instruction": ["instruction", "input"], "output": "output"},
    ),
    (
        "AI Hub 금융 고객상담",
        {
            "records": "qa_data[]",
            "instruction": ["instruction", "input.question", "input.answer", "input.follow_up_question"],
            "output": "output",
        },
    ),
    (
        "AI Hub 543, 주제별 일상 대화",
        {
            "records": "info[].annotations",
            "turns": {"path": "lines", "role": "speaker.id", "text": "norm_text | text"},
        },
    ),
    (
        "AI Hub 71788, 국가기록물",
        {
            "records": "data[]",
            "system": "labels[0].instructs[0].text",
            "instruction": ["context", "labels[0].instructs[-1].text"],
            "output": "labels[0].response",
        },
    ),
    (
        "AI Hub 법률: a record per file",
        {
            "instruction": ["taskinfo.sentences[]", "taskinfo.instruction", "taskinfo.input"],
            "output": "taskinfo.output",
        },
    ),
    (
        "AI Hub 71533, MRC",
        {
            "records": "dataset.context_info[].qas[]",
            "instruction": ["^context", '"question-1"'],
            "output": "answer.text | answer",
        },
    ),
    (
        "KorQuAD 1.0, KLUE-MRC, AI Hub MRC",
        {
            "records": "data[].paragraphs[].qas[]",
            "instruction": ["^context", "question"],
            "output": "answers[0].text | answers.text",
        },
    ),
    (
        "KorQuAD 2.1",
        {"records": "data[].qas[]", "instruction": ["^context", "question"], "output": "answer.text"},
    ),
    (
        "모두의 말뭉치, 대화",
        {
            "records": "document[]",
            "turns": {"path": "utterance", "role": "speaker_id", "text": "form | note"},
        },
    ),
    (
        "AI 말평, 대화 요약",
        {"instruction": ["input.conversation[].utterance"], "output": "output"},
    ),
    (
        "OpenAI messages with tools",
        {
            "turns": {
                "path": "messages",
                "role": "role",
                "text": f"content[].text | content | {CALL}",
                "roles": {
                    "system": "system",
                    "developer": "system",
                    "user": "user",
                    "assistant": "assistant",
                    "tool": "tool",
                },
            }
        },
    ),
    (
        "Chain of thought",
        {"instruction": ["source"], "output": "{rationale}\n\n정답: {target}"},
    ),
]
