"""A fork server for dvc and stages: real processes that do not import torch and other slow libraries again.

Those imports would add 3 to 7 seconds to each start. `environment` puts a `dvc` and a `python` first in PATH that hand
`dvc ...` and `python -m stages.NAME ...` to the server. The server forks, and the child runs the module in the caller's
folder, with its environment and files. Everything else goes to the real interpreter. The server only imports libraries,
never a module of the project.
"""

import contextlib
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

LIBRARIES = (
    "torch", "transformers", "transformers.trainer", "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.models.roberta.modeling_roberta", "accelerate", "datasets", "lm_eval", "lm_eval.models.huggingface",
    "lm_eval.tasks", "pandas", "pyarrow.parquet", "pydantic", "ruamel.yaml", "scipy.stats", "sklearn.cluster",
    "sklearn.metrics", "tokenizers", "peft", "psutil", "filelock", "threadpoolctl", "dvc.cli", "dvc.cli.parser",
    "dvc.repo", "dvc.repo.reproduce", "dvc.stage.run", "dvc.fs", "networkx", "dvc.api",
)  # fmt: skip
CLIENT = """\
#!{python} -ISs
import json, os, socket, sys
words = ["dvc", *sys.argv[1:]] if {name!r} == "dvc" else sys.argv[2:]
if {name!r} == "python" and (sys.argv[1:2] != ["-m"] or not words[0].startswith("stages.")):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
server.sendall(request)
answer = server.recv(1)
sys.exit(answer[0] if answer else 1)
"""


@cache
def environment() -> dict[str, str]:
    """Start the server of this process; return the PATH that leads to it. It ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="forkserver-"))
    address = str(folder / "socket")
    for name in ("dvc", "python"):
        (folder / name).write_text(CLIENT.format(name=name, python=sys.executable, address=address))
        (folder / name).chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, address, str(os.getpid())])
    while not Path(address).exists():
        assert server.poll() is None, "the fork server ended before it was ready"
        time.sleep(0.05)
    return {"PATH": f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def serve(address: str, parent: int) -> None:
    for library in LIBRARIES:
        importlib.import_module(library)
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{address}.starting")
    server.listen(16)
    server.settimeout(1)
    Path(f"{address}.starting").rename(address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the server does not wait for its children
    while os.getppid() == parent:
        with contextlib.suppress(TimeoutError):
            client, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                client.settimeout(None)
                answer(client)
            client.close()
    shutil.rmtree(Path(address).parent)


def answer(client: socket.socket) -> None:
    """Run what the client asks for, in its place; never return."""
    size, files, *_ = socket.recv_fds(client, 8, 3)
    request = b""
    while len(request) < int.from_bytes(size, "big"):
        request += client.recv(2**16)
    words, folder, variables = json.loads(request)
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[0], sys.argv = folder, words
    code = 1
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        client.sendall(bytes([code]))
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
