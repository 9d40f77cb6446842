"""uv installs with the settings of pip, and pip installs if uv fails. Fakes of both write down how they are called."""

import json
import os
import sys
from types import SimpleNamespace

import pytest

from tools import install

FAKE = """
import json, os, pathlib, sys
words, task = sys.argv[1:], pathlib.Path(__file__).stem
if words[-2:] == ["config", "list"]:
    print(os.environ["CONFIG"])
    sys.exit()
if words[-1] == "uv":
    task = "get uv"
if os.environ.get("UV_TORCH_BACKEND") == "auto":
    task = "auto"
    print("PyTorch is out of reach", file=sys.stderr)
with open(os.environ["CALLS"], "a") as calls:
    print(json.dumps({"task": task, "words": words, "environ": dict(os.environ)}), file=calls)
sys.exit(3 if task in os.environ["FAILING"].split(",") else 0)
"""
PIP_CONF = """
[global]
extra-index-url = https://overridden.example
find-links = /overridden
[install]
find-links =
    ~/wheels
    /more
proxy = proxy.example:3128
"""
VARIABLES = ("PIP_", "UV_", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "ALL_PROXY", "XDG_CONFIG_HOME")


@pytest.fixture(autouse=True)
def _nothing_is_configured(monkeypatch):
    for name in list(os.environ):
        if name.startswith(VARIABLES):
            monkeypatch.delenv(name)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Install with fakes, of which `failing` fail; `config` is what `pip config list` prints. Return the calls."""

    def run(failing="", on_path=False, config="", code=0):
        for name in ("pip", "uv"):
            (tmp_path / f"{name}.py").write_text(FAKE)
        if on_path:
            (tmp_path / "uv").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/uv.py" "$@"\n')
            (tmp_path / "uv").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        for name, value in {"CALLS": tmp_path / "calls", "FAILING": failing, "CONFIG": config}.items():
            monkeypatch.setenv(name, str(value))
        assert install.main([".[dev]"]) == code
        return [SimpleNamespace(**json.loads(line)) for line in (tmp_path / "calls").read_text().splitlines()]

    return run


def tasks(calls):
    return [call.task for call in calls]


def test_the_files_and_variables_of_pip_are_read_as_pip_reads_them(tmp_path, monkeypatch):
    (tmp_path / ".pip").mkdir()
    (tmp_path / ".pip/pip.conf").write_text(PIP_CONF)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a.example https://b.example")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "180")
    monkeypatch.setenv("PIP_PROXY", "")
    settings = install.pip_settings()
    assert settings["extra-index-url"] == "https://a.example https://b.example"
    assert settings["find-links"].split() == ["~/wheels", "/more"]
    assert (settings["proxy"], settings["timeout"]) == ("proxy.example:3128", "180")


def test_uv_is_told_what_pip_was_told(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    pip = {
        "index-url": "https://mirror.example/simple",
        "extra-index-url": "\nfile:///one\nhttps://two.example",
        "find-links": "~/wheels /more",
        "trusted-host": "one.example two.example:8080",
        "cert": "/etc/company.pem",
        "proxy": "http://proxy.example:3128",
        "timeout": "7.5",
    }
    variables = {
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_INDEX": "file:///one https://two.example",
        "UV_FIND_LINKS": "/home/me/wheels,/more",
        "UV_INSECURE_HOST": "one.example two.example:8080",
        "SSL_CERT_FILE": "/etc/company.pem",
        "ALL_PROXY": "http://proxy.example:3128",
        "UV_HTTP_TIMEOUT": "8",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert install.uv_environment(pip) == variables | os.environ


def test_the_certificates_of_requests_are_uvs_unless_pip_has_others(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/all.pem")
    assert install.uv_environment({})["SSL_CERT_FILE"] == "/etc/all.pem"
    assert install.uv_environment({"cert": "/etc/company.pem"})["SSL_CERT_FILE"] == "/etc/company.pem"


def test_what_uv_itself_was_told_stands(monkeypatch):
    monkeypatch.setenv("UV_INDEX", "https://mine.example")
    assert install.uv_environment({"extra-index-url": "https://pips.example"})["UV_INDEX"] == "https://mine.example"


def test_the_uv_on_path_installs_alone_and_silently(run, capfd):
    (call,) = run(on_path=True, config="global.find-links='/wheels'")
    expected = ["pip", "install", "-q", "-c", "constraints.txt", "-e", ".[dev]", "--python", sys.executable]
    assert (call.task, call.words) == ("uv", expected)
    assert call.environ["UV_FIND_LINKS"] == "/wheels"
    assert capfd.readouterr() == ("", "")


def test_without_uv_on_path_pip_gets_the_pinned_wheel_of_uv(run):
    get, uv = run(config="global.index-url='https://mirror.example'")
    assert get.words[1:] == ["install", "-q", "-c", "constraints.txt", "--only-binary=uv", "uv"]
    assert (uv.task, uv.environ["UV_DEFAULT_INDEX"]) == ("uv", "https://mirror.example")


@pytest.mark.parametrize(
    ("failing", "on_path", "expected"),
    [
        ("uv", True, ["uv", "pip"]),
        ("uv", False, ["get uv", "uv", "pip"]),
        ("get uv", False, ["get uv", "pip"]),
    ],
)
def test_pip_installs_if_uv_fails_and_one_line_says_so(run, capfd, failing, on_path, expected):
    calls = run(failing, on_path, "global.index-url='https://mirror.example'")
    assert tasks(calls) == expected
    assert calls[-1].words[1:] == ["install", "-q", "-c", "constraints.txt", "-e", ".[dev]"]
    assert capfd.readouterr().err == "uv could not install; pip installs now, which takes minutes\n"


def test_the_exit_status_is_pips_if_both_fail(run):
    assert tasks(run("uv,pip", True, "global.no-index='true'\nglobal.find-links='/wheels'", code=3)) == ["uv", "pip"]


def test_torch_comes_from_pytorch_unless_a_source_is_configured(run):
    assert tasks(run(on_path=True)) == ["auto"]


def test_out_of_reach_of_pytorch_uv_silently_tries_again_without(run, capfd):
    assert tasks(run("auto", True)) == ["auto", "uv"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("value", "flags"), [("1", ["--no-index"]), ("True", ["--no-index"]), ("false", [])])
def test_no_index_is_a_flag_because_uv_has_no_variable_for_it(run, value, flags):
    (call,) = run(on_path=True, config=f":env:.no-index='{value}'\nglobal.find-links='/wheels'")
    assert call.words[9:] == flags
