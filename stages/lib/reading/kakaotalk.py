"""Messages of a KakaoTalk export: text of the PC, Android and iPhone apps, and the CSV of the Mac app.

Every message has `date`, `time`, `user` and `message`; a date in digits is written as 2026-10-02. Lines that no user
wrote (the title, dates, who came and left) are left out.
"""

import re
from collections.abc import Iterable, Iterator

Message = dict[str, str]
CSV_HEADER = ["Date", "User", "Message"]
CLOCK = r"(?P<time>(?:(?:오전|오후) ?)?\d{1,2}:\d\d(?::\d\d)?(?: ?[AP]M)?)"
DATE = r"(?P<date>\d{4}년 \d{1,2}월 \d{1,2}일|\d{4}\. ?\d{1,2}\. ?\d{1,2}\.|[A-Z][a-z]{2,8} \d{1,2}, \d{4})"
PC = re.compile(rf"\[(?P<user>.+?)\] \[{CLOCK}\] (?P<message>.*)")
PC_DAY = re.compile(r"-{9,} (?P<date>.*\d.*) -{9,}")
PHONE = re.compile(rf"{DATE}(?:,| at)? {CLOCK}, (?P<user>.+?) : (?P<message>.*)")
NO_MESSAGE = re.compile(
    rf"{DATE}(?:,| at)? {CLOCK}(?:[:,] .*)?"  # a new day on Android, who came and left on phones
    r"|\d{4}년 \d{1,2}월 \d{1,2}일 .요일"  # a new day on an iPhone
    r"|.+님[이을] (?:들어왔습니다|나갔습니다|내보냈습니다|초대했습니다)\..*"
)
HEADS = (PC, PC_DAY, PHONE)
LINES_TO_LOOK_AT = 30


def is_kakaotalk(head: str) -> bool:
    """Return whether one of the first lines of a text looks like one of KakaoTalk's."""
    lines = head.lstrip("\ufeff").splitlines()[:LINES_TO_LOOK_AT]
    return any(pattern.fullmatch(line) for line in lines for pattern in HEADS)


def read_messages(lines: Iterable[str]) -> Iterator[tuple[int, Message]]:
    """Yield each message with the number of its first line; a line that starts no message continues the one before."""
    day, first, message = "", 0, None
    for number, line in enumerate(map(str.rstrip, lines), 1):
        if found := PC_DAY.fullmatch(line):
            day = iso_date(found["date"])
        elif found := PC.fullmatch(line) or PHONE.fullmatch(line):
            if message:
                yield first, message
            first, message = number, {"date": day} | found.groupdict()
            message["date"] = iso_date(message["date"])
        elif message and not NO_MESSAGE.fullmatch(line):
            message["message"] += f"\n{line}"
    if message:
        yield first, message


def from_csv(row: Message) -> Message:
    """Return a row of the Mac app's CSV as a message."""
    date, _, time = row["Date"].partition(" ")
    return {"date": date, "time": time, "user": row["User"], "message": row["Message"]}


def iso_date(date: str) -> str:
    """Return `2026년 10월 2일 금요일` as 2026-10-02; a date with a month in words stays as it is."""
    numbers = re.findall(r"\d+", date)
    return "{}-{:0>2}-{:0>2}".format(*numbers[:3]) if len(numbers) >= 3 else date
