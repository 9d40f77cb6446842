"""Real servers for DVC's remotes on loopback: a private sshd, and Ceph with its S3 gateway."""

import contextlib
import getpass
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.project import commit, run

PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
Subsystem sftp internal-sftp
"""
CEPH = """
[global]
fsid = {fsid}
mon initial members = a
mon host = v2:127.0.0.1:{mon}/0
keyring = {folder}/keyring
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
mon max pg per osd = 1000
run dir = {folder}
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
public addr = 127.0.0.1
cluster addr = 127.0.0.1
[mon.a]
mon data = {folder}/mon
mon cluster log file = {folder}/cluster.log
mon data avail crit = 1
[osd.0]
osd data = {folder}/osd0
osd objectstore = memstore
memstore device bytes = 2147483648
[client.rgw]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
"""
CEPH_KEYS = {
    "mon.": ["mon", "allow *"],
    "client.admin": ["mon", "allow *", "osd", "allow *", "mgr", "allow *", "mds", "allow *"],
    "client.rgw": ["mon", "allow rwx", "osd", "allow rwx"],
    "osd.0": ["mon", "allow profile osd", "osd", "allow *"],
}


class Remote(NamedTuple):
    port: int
    url: str
    settings: dict[str, str]
    """What a team commits."""
    secret: dict[str, str]
    """What is in config.local."""
    wrong: dict[str, str]
    """A secret that the server refuses."""

    def at(self, port: int) -> dict[str, str]:
        """Return the settings that lead to another port."""
        settings = {"url": self.url} | self.settings
        return {name: value.replace(f":{self.port}", f":{port}") for name, value in settings.items()}


def modify(clone: Path, settings: dict[str, str], *flags: str) -> None:
    for name, value in settings.items():
        run(clone, "dvc", "remote", "modify", "-q", *flags, "team", name, value)


def push_copy(done: Path, remote: Remote, folder: Path) -> Path:
    """Return a copy of a reproduced clone that has the remote and has pushed to it."""
    shutil.copytree(done, folder, symlinks=True)
    run(folder, "dvc", "remote", "add", "-q", "-f", "-d", "team", remote.url)
    modify(folder, remote.settings)
    commit(folder, "a remote")
    modify(folder, remote.secret, "--local")
    run(folder, "dvc", "push", "-q")
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, server: subprocess.Popen, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, f"{server.args} ended with {server.returncode}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise TimeoutError(server.args)


@contextlib.contextmanager
def running(*command: str, log: Path) -> Iterator[subprocess.Popen]:
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        yield server
    finally:
        server.terminate()
        server.wait(30)


@contextlib.contextmanager
def ssh_remote(folder: Path) -> Iterator[Remote]:
    """A private sshd that accepts one key."""
    sshd = shutil.which("sshd", path=PATH)
    pytest.importorskip("dvc_ssh")
    if not sshd:
        pytest.skip("sshd is not installed: apt-get install openssh-server")
    if getpass.getuser() == "root":
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd needs it to drop its privileges
    port = free_port()
    for name in ("host", "right", "wrong"):
        run(folder, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name)
    shutil.copyfile(folder / "right.pub", folder / "authorized_keys")
    (folder / "sshd_config").write_text(SSHD.format(port=port, folder=folder))
    with running(sshd, "-D", "-e", "-f", f"{folder}/sshd_config", log=folder / "sshd.log") as server:
        wait_for(port, server, 10)
        url = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{folder}/store"
        right, wrong = ({"keyfile": f"{folder}/{name}"} for name in ("right", "wrong"))
        yield Remote(port, url, {"verify": "true", "timeout": "2"}, right, wrong)


@contextlib.contextmanager
def s3_remote(folder: Path) -> Iterator[Remote]:
    """Ceph: a monitor, a store in memory and the S3 gateway."""
    pytest.importorskip("dvc_s3")
    missing = [name for name in ("ceph-mon", "ceph-osd", "radosgw") if not shutil.which(name)]
    if missing:
        pytest.skip(f"{missing} not installed: apt-get install --no-install-recommends ceph-mon ceph-osd radosgw")
    with ceph(folder) as port:
        import s3fs

        endpoint = f"http://127.0.0.1:{port}"
        s3fs.S3FileSystem(key="TEAM", secret="SECRET", endpoint_url=endpoint).mkdir("dvc")
        settings = {"verify": "true", "endpointurl": endpoint, "connect_timeout": "2", "read_timeout": "2"}
        right = {"access_key_id": "TEAM", "secret_access_key": "SECRET"}
        yield Remote(port, "s3://dvc/project", settings, right, right | {"secret_access_key": "WRONG"})


@contextlib.contextmanager
def ceph(folder: Path) -> Iterator[int]:
    """Start Ceph in a folder; yield the port of the S3 gateway."""
    port, mon = free_port(), free_port()
    as_user = ["--setuser", getpass.getuser(), "--setgroup", getpass.getuser(), "-c", f"{folder}/ceph.conf"]
    (folder / "ceph.conf").write_text(CEPH.format(folder=folder, fsid=(fsid := str(uuid.uuid4())), mon=mon, port=port))
    for name in ("osd0", "rgw"):
        (folder / name).mkdir()
    for name, rights in CEPH_KEYS.items():
        caps = [word for pair in zip(rights[::2], rights[1::2], strict=True) for word in ("--cap", *pair)]
        new = [] if (folder / "keyring").exists() else ["--create-keyring"]
        run(folder, "ceph-authtool", *new, "keyring", "--gen-key", "-n", name, *caps)
    run(folder, "monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon}]", "monmap")
    run(folder, "ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring", *as_user)
    with contextlib.ExitStack() as servers:

        def start(*command: str) -> subprocess.Popen:
            log = folder / f"{command[0]}.out"
            return servers.enter_context(running(*command, "-f", *as_user, log=log))

        wait_for(mon, start("ceph-mon", "-i", "a"), 30)
        for words in ("osd create", "auth import -i keyring", "osd crush add osd.0 1 root=default host=h"):
            run(folder, "timeout", "60", "ceph", "-c", "ceph.conf", *words.split())
        run(folder, "ceph-osd", "-i", "0", "--mkfs", *as_user)
        start("ceph-osd", "-i", "0")
        wait_for(port, start("radosgw", "-n", "client.rgw"), 90)
        user = ["--uid=team", "--display-name=team", "--access-key=TEAM", "--secret-key=SECRET"]
        run(folder, "timeout", "60", "radosgw-admin", "-c", "ceph.conf", "user", "create", *user)
        yield port
