"""`portable: true`: other x86-64 CPUs, emulated, compute the same bytes."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path

import pytest

from stages.lib.core import portable
from stages.lib.core.portable import PORTABLE, cannot_be_portable
from tests.project import ENVIRONMENT, ROOT, change_params, copy_project, run, shrink
from tools.check import main

ROLES = ("scorer", "encoder", "base")
CPUS = ("Haswell-noTSX", "EPYC")
IN_GIT = ("data/inputs", "data/benchmark_inputs", "data/pretrain")
VARIABLES = "import os, stages; print([os.environ.get(name) for name in ('MKL_CBWR', 'OPENBLAS_CORETYPE')])"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("stages", "params.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def set_portable(folder: Path, value: bool) -> None:
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").unlink()
    (folder / "params.yaml").write_text(re.sub("(?m)^portable: .*", f"portable: {str(value).lower()}", text))


@pytest.mark.parametrize(("value", "expected"), [(True, "['COMPATIBLE', 'Haswell']"), (False, "[None, None]")])
def test_the_variables_are_set_before_a_stage_is_imported_if_params_ask_for_it(
    folder: Path, value: bool, expected: str
) -> None:
    set_portable(folder, value)
    plain = {name: value for name, value in ENVIRONMENT.items() if name not in PORTABLE}
    done = subprocess.run(
        [sys.executable, "-c", VARIABLES], cwd=folder, env=plain, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected


def test_the_package_does_nothing_else_so_no_stage_needs_it_as_a_dep() -> None:
    code = (ROOT / "stages/__init__.py").read_text(encoding="utf-8").split('"""')[2]
    assert code.split() == ["from", "stages.lib.core.portable", "import", "set_environment", "set_environment()"]


def test_check_names_what_keeps_a_machine_from_being_portable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu sse sse2 avx\n")
    monkeypatch.setattr(portable, "CPU_INFO", tmp_path / "cpuinfo")
    assert main([str(ROOT / "params.yaml")]) == 0
    assert "portable: true does not hold on this machine: the CPU has no AVX2" in capsys.readouterr().out
    monkeypatch.setattr(portable.platform, "machine", lambda: "arm64")
    assert cannot_be_portable() == "the CPU is arm64, not x86-64"


def commands(folder: Path) -> str:
    """Return the modules and flags of all stages, one per line, in the order in which dvc would run them."""
    return "\n".join(re.findall(r"^> python -m (.*)$", run(folder, "dvc", "repro", "--force", "--dry"), re.MULTILINE))


def small_project(folder: Path) -> Path:
    copy_project(folder)
    shrink(folder)
    for path in (folder / "metrics").rglob("*.json"):
        path.unlink()
    small = {"vocabulary": 1024, "width": 32, "steps": 3}
    sizes = {f"fetch_model__{role}__small__{name}": small[name] for role in ROLES for name in small}
    arms = {name: {"method": name, "fraction": 0.1, "seed": 1} for name in ("spread", "random")}
    change_params(folder, **sizes, arms=arms, evaluate__tasks=["copa"])
    return folder


def written(folder: Path) -> Iterator[tuple[str, str]]:
    for place in ("data", "models", "metrics"):
        for path in sorted((folder / place).rglob("*")):
            name = str(path.relative_to(folder))
            if path.is_file() and not name.startswith(IN_GIT):
                yield name, md5(path.read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="needs qemu-x86_64, from Debian's qemu-user")
def test_other_cpus_write_the_same_bytes(tmp_path: Path) -> None:
    origin = small_project(tmp_path / "origin")
    todo, found = commands(origin), {}
    for cpu in (None, *CPUS):
        folder = shutil.copytree(origin, tmp_path / str(cpu))
        emulator = ["qemu-x86_64", "-cpu", cpu] if cpu else []
        command = [*emulator, sys.executable, "-m", "tests.one_process"]
        subprocess.run(command, cwd=folder, env=ENVIRONMENT, input=todo, text=True, check=True)
        found[cpu] = dict(written(folder))
    print(*found[None], sep="\n")
    for cpu in CPUS:
        assert found[cpu] == found[None]
