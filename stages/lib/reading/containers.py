"""Find the files of a source in folders, in zips and in tars of zip parts, and unpack nothing to disk."""

import io
import re
import tarfile
import unicodedata
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

from stages.lib.core.errors import UserError

DEEPEST = 3
"""Most archives nested in each other."""
SMALL = 2**27
"""Bytes that an archive may always unpack to, however small it is."""
MOST_PACKED = 200
"""Most bytes that a byte of the outermost file may unpack to; in Korean JSON up to 20, in a zip bomb 1,000 or more."""
PART = re.compile(r"(?P<whole>.+)\.part(?P<number>\d+)")
NOT_DATA = re.compile(r"(?:.*/)?(?:\.|~\$|__MACOSX/|Thumbs\.db$|desktop\.ini$)")
"""Files that macOS, Windows and Excel leave beside the data."""
BROKEN = (
    *(LookupError, ValueError, RecursionError, OSError, EOFError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, tarfile.TarError),
)
"""What reading can raise if a file is damaged or has another format."""
PACKED = {b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7z", b"Rar!": "RAR", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


class Member(NamedTuple):
    name: str
    """Its path; inside an archive, the archive's path, a slash and its path in the archive."""
    size: int
    """In bytes."""
    open: Callable[[], BinaryIO]


class Parts(io.RawIOBase):
    """Parts of a file, read one after the other as one file."""

    def __init__(self, parts: list[Member]) -> None:
        self.streams = [part.open() for part in parts]
        *self.starts, self.size = offsets(parts)
        self.place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence])
        return self.place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self.place >= self.size:
            return 0
        part = next(number for number in reversed(range(len(self.starts))) if self.starts[number] <= self.place)
        stream = self.streams[part]
        stream.seek(self.place - self.starts[part])
        content = stream.read(len(buffer))
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)

    def close(self) -> None:
        for stream in self.streams:
            stream.close()
        super().close()


def offsets(parts: list[Member]) -> list[int]:
    """Return where each part begins in the whole, and where the whole ends."""
    return list(accumulate((part.size for part in parts), initial=0))


def plain(text: str) -> str:
    """Return a name in the form in which names are compared: in NFC, because macOS writes NFD, and stripped."""
    return unicodedata.normalize("NFC", text).strip()


def plain_path(name: str) -> str:
    """Return a path with plain names, a slash between them and none before the first."""
    return "/".join(filter(None, map(plain, name.replace("\\", "/").split("/"))))


def matches(name: str, pattern: str) -> bool:
    """Return whether a name matches a pattern, in which * stands for any characters, also /, and ? for one."""
    return fnmatchcase(plain_path(name), plain_path(pattern).replace("[", "[[]"))


def listed_files(folder: Path) -> dict[str, Path]:
    """Return the files in a folder and its subfolders by plain path, in the order of these paths.

    Raises ValueError if two files have the same plain path.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = plain_path(path.relative_to(folder).as_posix())
        if path.is_file() and not NOT_DATA.match(name):
            if name in files:
                raise ValueError(f"{path} and {files[name]} have the same name in NFC; rename one")
            files[name] = path
    return dict(sorted(files.items()))


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Turn the errors that damaged files raise into a UserError that names the file."""
    try:
        yield
    except BROKEN as error:
        raise UserError(f"{where}: {' '.join(str(error).split()) or type(error).__name__}") from error


def find_files(path: Path) -> Iterator[Member]:
    """Yield the file, or the folder's files in the order of their names; of an archive, yield the files inside it.

    Raises UserError if an archive is damaged, needs a password, lacks a part or is a zip bomb.
    """
    with naming(str(path)):
        files = listed_files(path) if path.is_dir() else {"": path}
        found = [
            Member(f"{path}/{name}".removesuffix("/"), file.stat().st_size, partial(open_file, file))
            for name, file in files.items()
        ]
        members = list(join_parts(found))
    for member in members:
        yield from unpack(member, max(SMALL, MOST_PACKED * member.size))


def unpack(member: Member, limit: int, depth: int = 0) -> Iterator[Member]:
    """Yield a file or, of an archive, the files inside it; an archive may unpack to at most `limit` bytes."""
    with naming(member.name):
        stream = member.open()
        list_members = archive_reader(stream)
        if list_members and depth == DEEPEST:
            raise ValueError(f"archives are nested {depth + 1} deep, at most {DEEPEST} are read; unpack this one first")
        inside = list_members(seekable(stream), limit) if list_members else ()
        members = list(join_parts(sorted(inside, key=lambda inner: inner.name)))
    if not list_members:
        stream.close()
        yield member
    for inner in members:
        yield from unpack(inner._replace(name=f"{member.name}/{inner.name}"), limit, depth + 1)


def seekable(stream: BinaryIO) -> BinaryIO:
    """Return a stream that can seek fast; a file in a zip is read into memory, because going back unpacks it again."""
    return io.BytesIO(stream.read()) if isinstance(stream, zipfile.ZipExtFile) else stream


def archive_reader(stream: BinaryIO) -> Callable[[BinaryIO, int], Iterator[Member]] | None:
    """Return the function that lists an archive's members, or None if the stream is not an archive; an .xlsx is not."""
    head = stream.read(262)
    stream.seek(0)
    if head[257:262] == b"ustar":
        return tar_members
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        is_workbook = "xl/workbook.xml" in open_zip(seekable(stream)).namelist()
        stream.seek(0)
        return None if is_workbook else zip_members
    kind = next((kind for magic, kind in PACKED.items() if head.startswith(magic)), None)
    if kind:
        raise ValueError(f"packed with {kind}; unpack it, or pack it again as a zip")
    return None


def open_zip(stream: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(stream)
    except zipfile.BadZipFile as error:
        raise ValueError(f"a zip that is cut short ({error}); is its last part missing? Download it again") from None


def tar_members(stream: BinaryIO, _limit: int) -> Iterator[Member]:
    archive = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115  # stays open, because its members are read later
    for info in archive:
        name = plain_path(info.name)
        if info.isfile() and not NOT_DATA.match(name):
            yield Member(name, info.size, partial(archive.extractfile, info))  # type: ignore[arg-type]  # of a file: never None


def zip_members(stream: BinaryIO, limit: int) -> Iterator[Member]:
    archive = open_zip(stream)
    infos = [info for info in archive.infolist() if not info.is_dir()]
    total = sum(info.file_size for info in infos)
    if total > limit:
        raise ValueError(
            f"a zip that unpacks to {total:,} bytes, more than the allowed {limit:,}, as a zip bomb does; "
            "if you trust it, unpack it first"
        )
    for info in infos:
        name = plain_path(decoded_name(info))
        if info.flag_bits & 1:
            raise ValueError(f"{name} in it needs a password; unpack the zip first")
        if not NOT_DATA.match(name):
            yield Member(name, info.file_size, partial(archive.open, info))  # type: ignore[arg-type]  # reads bytes


def decoded_name(info: zipfile.ZipInfo) -> str:
    """Return an entry's name. If the zip does not say utf-8, it is still utf-8 (macOS) or cp949 (Korean Windows)."""
    if not info.flag_bits & 0x800:
        for encoding in ("utf-8", "cp949"):
            try:
                return info.filename.encode("cp437").decode(encoding)
            except UnicodeError:
                continue
    return info.filename


def join_parts(members: Iterable[Member]) -> Iterator[Member]:
    """Yield the members; those called `NAME.part0`, `NAME.part1073741824`, ... are joined into one called NAME.

    The number is the place of the part's first byte (AI Hub), or the number of the part.
    """
    parts: dict[str, dict[int, Member]] = defaultdict(dict)
    for member in members:
        match = PART.fullmatch(member.name)
        if match:
            parts[match["whole"]][int(match["number"])] = member
        else:
            yield member
    for name, numbered in parts.items():
        numbers = sorted(numbered)
        ordered = [numbered[number] for number in numbers]
        require_every_part(name, numbers, ordered)
        size = sum(part.size for part in ordered)
        yield Member(name, size, partial(open_parts, ordered))


def open_file(path: Path) -> BinaryIO:
    return path.open("rb")


def open_parts(parts: list[Member]) -> BinaryIO:
    return io.BufferedReader(Parts(parts))


def require_every_part(name: str, numbers: list[int], parts: list[Member]) -> None:
    """Raise ValueError if there is a gap between the parts. Only the joined archive shows whether the last is there."""
    starts = offsets(parts)
    counted = list(range(numbers[0], numbers[0] + len(numbers)))
    if numbers == starts[:-1] or (numbers == counted and numbers[0] in (0, 1) and len(numbers) > 1):
        return
    gap = next(number for number, start in zip(numbers, starts, strict=False) if number != start)
    raise ValueError(
        f"{name}: a part is missing before .part{gap}; there are {', '.join(f'.part{number}' for number in numbers)}; "
        "download it again"
    )
