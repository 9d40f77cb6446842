"""Measure the time and memory of several ways to do the same thing, in turns, and print a table."""

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
    """One per round: CPU time of this process, so that other load does not count; with a GPU, time by the clock."""
    peak: float | None
    """Most memory in GiB: the GPU's if there is one, otherwise the process's; None if the system does not report it."""
    value: Any
    """Result of the last round."""


def alternate(ways: dict[str, Way], rounds: int) -> dict[str, Timed]:
    """Run every way once per round, so that other load slows all of them alike."""
    runs: dict[str, list[tuple[float, float | None, Any]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            runs[name].append(run_once(way))
    return {
        name: Timed([took for took, _, _ in run], highest(peak for _, peak, _ in run), run[-1][2])
        for name, run in runs.items()
    }


def run_once(way: Way) -> tuple[float, float | None, Any]:
    forget_peak()
    gpu = cuda()
    clock = time.process_time if gpu is None else time.perf_counter
    started = clock()
    value = way()
    if gpu is not None:
        gpu.synchronize()
    return clock() - started, peak(), value


def highest(peaks: Any) -> float | None:
    return max((value for value in peaks if value is not None), default=None)


def ratio(reference: Timed, ours: Timed) -> float:
    """Return how many times faster ours is than the reference: the median over the rounds."""
    return median(slow / fast for slow, fast in zip(reference.seconds, ours.seconds, strict=True))


def cuda() -> Any:
    """Return torch.cuda, or None without a GPU; imports torch late, because it is large and not every part needs it."""
    import torch

    return torch.cuda if torch.cuda.is_available() else None


def seconds(timed: Timed) -> float:
    """Return the seconds of the median round."""
    return median(timed.seconds)


def forget_peak() -> None:
    """Reset the peak of memory: the GPU's, or on Linux the process's."""
    gc.collect()
    if (gpu := cuda()) is not None:
        gpu.reset_peak_memory_stats()
    elif platform.system() == "Linux":
        ctypes.CDLL(None).malloc_trim(0)  # otherwise what the last way freed still counts
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float | None:
    if (gpu := cuda()) is not None:
        return float(gpu.max_memory_allocated() / GIB)
    if platform.system() != "Linux":
        return None
    mark = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(mark[1]) * 1024 / GIB if mark else None


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table, without the columns that are empty in every row."""
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
    """Return the date, the hardware and torch's version."""
    name = next(iter(re.findall(r"model name\s*: (.+)", read("/proc/cpuinfo"))), platform.processor())
    bf16 = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in read("/proc/cpuinfo")]
    gpu = cuda()
    cores = f"{os.cpu_count()} cores of {name} ({', '.join(bf16) or 'no bf16'})"
    return f"{date.today()}, {cores}, {gpu.get_device_name() if gpu else 'no GPU'}, torch {version('torch')}"


def read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""
