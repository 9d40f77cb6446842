"""`portable: true` in params.yaml: the same bits on every x86-64 CPU with AVX2, in two to four times the time.

Libraries choose their kernels for the CPU when they are loaded, and each kernel rounds in its own way. These variables
fix the choice, so they must be set before numpy and torch are imported (`stages/__init__.py`). They change nothing on a
GPU. Training must also use fused AdamW: the other one takes its square roots from MKL, and there the last bit depends
on the vendor of the CPU.
"""

import os
import platform
from pathlib import Path

from stages.lib.core.errors import UserError
from stages.lib.core.params import PARAMS, read_yaml

CPU_INFO = Path("/proc/cpuinfo")
PORTABLE = {
    "MKL_CBWR": "COMPATIBLE",  # MKL ignores AVX2 here on CPUs that are not Intel's
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",  # `exp` and `log` of float64 use them
}


def set_environment() -> None:
    """Set the variables if params.yaml asks for portable bits and this machine can compute them."""
    if asks_to_be_portable(PARAMS) and not cannot_be_portable():
        os.environ.update(PORTABLE)


def asks_to_be_portable(params: Path) -> bool:
    try:
        return read_yaml(params).get("portable") is True
    except UserError:
        return False  # whoever needs the file reports what is wrong with it


def cannot_be_portable() -> str | None:
    """Return why this machine computes other bits than those that `portable` promises; None if it does not."""
    machine = platform.machine()
    if machine.lower() not in ("x86_64", "amd64"):
        return f"the CPU is {machine}, not x86-64"
    if CPU_INFO.is_file() and " avx2 " not in CPU_INFO.read_text(encoding="utf-8"):
        return "the CPU has no AVX2"
    return None
