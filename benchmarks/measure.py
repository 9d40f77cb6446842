"""Take the time and the memory of ways to do the same thing, in turns, and print them as a table."""

import ctypes
import gc
import os
import platform
import re
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

GIB = 2**30
Way = Callable[[], Any]


class Timed(NamedTuple):
    seconds: list[float]
    """One for each round: of the CPU, whatever else it does meanwhile, or where there is a GPU of the clock."""
    peak: float | None
    """Most memory in GiB, of the GPU where there is one, else of the whole process; None where nobody says."""
    value: Any
    """What the last round returned."""


def alternate(ways: dict[str, Way], rounds: int) -> dict[str, Timed]:
    """Run every way once in every round, so that a busy neighbour slows all of them alike."""
    runs: dict[str, list[tuple[float, float | None, Any]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            runs[name].append(once(way))
    return {name: Timed([s for s, _, _ in run], most(p for _, p, _ in run), run[-1][2]) for name, run in runs.items()}


def once(way: Way) -> tuple[float, float | None, Any]:
    forget_peak()
    gpu = cuda()
    clock = time.process_time if gpu is None else time.perf_counter
    started = clock()
    value = way()
    if gpu is not None:
        gpu.synchronize()
    return clock() - started, peak(), value


def most(peaks: Any) -> float | None:
    return max((value for value in peaks if value is not None), default=None)


def ratio(reference: Timed, ours: Timed) -> float:
    """Return how many times faster than the reference: the median over the rounds."""
    return median(slow / fast for slow, fast in zip(reference.seconds, ours.seconds, strict=True))


def cuda() -> Any:
    """Return torch's side of the GPU, or None; torch is imported late, for it is large and not all measure with it."""
    import torch

    return torch.cuda if torch.cuda.is_available() else None


def seconds(timed: Timed) -> float:
    """Return those of the median round."""
    return median(timed.seconds)


def forget_peak() -> None:
    """Start the high-water mark anew: the GPU's, and on Linux the process's."""
    gc.collect()
    if (gpu := cuda()) is not None:
        gpu.reset_peak_memory_stats()
    elif platform.system() == "Linux":
        ctypes.CDLL(None).malloc_trim(0)  # else what the last way freed still counts
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float | None:
    if (gpu := cuda()) is not None:
        return float(gpu.max_memory_allocated() / GIB)
    if platform.system() != "Linux":
        return None
    mark = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(mark[1]) * 1024 / GIB if mark else None


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table, without the columns that nobody fills."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    lines = [names, ["---", *["--:"] * (len(names) - 1)], *[[show(row[name]) for name in names] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def machine() -> str:
    """Say on what, with what and when."""
    name = next(iter(re.findall(r"model name\s*: (.+)", read("/proc/cpuinfo"))), platform.processor())
    bf16 = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in read("/proc/cpuinfo")]
    gpu = cuda()
    cores = f"{os.cpu_count()} cores of {name} ({', '.join(bf16) or 'no bf16'})"
    return f"{date.today()}, {cores}, {gpu.get_device_name() if gpu else 'no GPU'}, torch {version('torch')}"


def read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""
