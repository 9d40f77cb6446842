"""Install this project into the Python that runs this module: `python -m tools.install '.[dev]'`.

uv takes seconds. If it fails, pip does the work, in minutes. This imports only the standard library, because nothing
else is installed yet.
"""

import ast
import math
import os
import shutil
import sys
from subprocess import DEVNULL, call, check_output

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
SOURCES = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS"}
OTHERS = {"cert": "SSL_CERT_FILE", "proxy": "ALL_PROXY", "trusted-host": "UV_INSECURE_HOST"}


def pip_settings() -> dict[str, str]:
    """Return what pip.conf and the PIP_* variables set, as {option: value}."""
    lines = check_output([*PIP, "config", "list"], text=True).splitlines()
    settings: dict[str, str] = {}
    for section in ("global.", "install.", ":env:."):  # as in pip, the last one wins and an empty value is ignored
        found = (line.removeprefix(section).partition("=") for line in lines if line.startswith(section))
        settings |= {name.removeprefix("default-"): ast.literal_eval(text) for name, _, text in found if text != "''"}
    return settings


def uv_environment(pip: dict[str, str]) -> dict[str, str]:
    """Return this process's environment plus pip's settings, which uv does not read. Variables already set win."""
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # pip, too, takes the best version from all indexes
    pip = {"cert": os.environ.get("REQUESTS_CA_BUNDLE", "")} | pip
    for option, variable in (SOURCES | OTHERS).items():
        # Path would spoil the // of a URL.
        if words := [os.path.expanduser(word) for word in pip.get(option, "").split()]:  # noqa: PTH111
            variables[variable] = ("," if option == "find-links" else " ").join(words)
    if "timeout" in pip:
        variables["UV_HTTP_TIMEOUT"] = str(math.ceil(float(pip["timeout"])))
    return variables | os.environ


def install_with_uv(install: list[str]) -> bool:
    """Run the uv on PATH, or one that pip installs if there is none. Return whether that worked."""
    path = shutil.which("uv")
    # Only a wheel of uv saves time: compiling it takes longer than pip does.
    if not path and call([*PIP, "install", "-q", "-c", "constraints.txt", "--only-binary=uv", "uv"]) != 0:
        return False
    pip = pip_settings()
    command = [*([path] if path else [sys.executable, "-m", "uv"]), "pip", *install, "--python", sys.executable]
    if pip.get("no-index", "").lower() in ("1", "on", "t", "true", "y", "yes"):
        command.append("--no-index")
    environment = uv_environment(pip)
    # Without a GPU, `auto` takes torch's CPU build, gigabytes smaller. It gets torch only from PyTorch's own index, so
    # skip `auto` if another source is configured, and try again without it if that index is out of reach.
    auto = {"UV_TORCH_BACKEND": "auto"} | environment
    if auto.keys().isdisjoint(SOURCES.values()) and call(command, env=auto, stderr=DEVNULL) == 0:
        return True
    return call(command, env=environment) == 0


def main(words: list[str]) -> int:
    install = ["install", "-q", "-c", "constraints.txt", "-e", *words]
    if install_with_uv(install):
        return 0
    print("uv could not install; pip installs now, which takes minutes", file=sys.stderr)
    return call([*PIP, *install])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [".[dev]"]))
