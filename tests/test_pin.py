"""`tools.pin` writes the hub's newest commits where a recipe has none, and nothing else; tried on a hub on loopback."""

import hashlib
import json
import re
import shutil
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from stages.lib.core.errors import UserError
from stages.lib.core.params import read_yaml
from tests import project
from tests.project import ENVIRONMENT, ROOT
from tools.pin import main, replace_nulls

REPOSITORIES = {
    "datasets/beomi/KoAlpaca-v1.1a",
    "datasets/nlpai-lab/kullm-v2",
    "datasets/heegyu/OIG-small-chip2-ko",
    "datasets/skt/kobest_v1",
    "models/EleutherAI/polyglot-ko-1.3b",
    "models/BM-K/KoSimCSE-roberta-multitask",
    "models/EleutherAI/polyglot-ko-5.8b",
}
REFUSED = {"GatedRepo": 403, "RepoNotFound": 404, "Broken": 500}


def commit(repository):
    return hashlib.sha1(repository.encode()).hexdigest()


@pytest.fixture
def hub():
    """A hub with REPOSITORIES; `asked` lists what it was asked for, `refuse` maps a repository to an error's name."""

    class Hub(BaseHTTPRequestHandler):
        asked, refuse = [], {}

        def do_GET(self):
            repository = self.path.removeprefix("/api/").split("?")[0]
            error = self.refuse.get(repository) or (None if repository in REPOSITORIES else "RepoNotFound")
            body = json.dumps({"id": repository.partition("/")[2], "sha": commit(repository)}).encode()
            self.asked += [repository] * repository.startswith(("datasets/", "models/"))  # the client asks more
            self.send_response(REFUSED[error] if error else 200)
            if error:
                self.send_header("X-Error-Code", error)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        Hub.address = f"http://127.0.0.1:{server.server_port}"
        yield Hub
        server.shutdown()


@pytest.fixture
def pin(hub, monkeypatch):
    """Run the command; return what it printed."""

    def run(path, code=0):
        monkeypatch.setattr(project, "ENVIRONMENT", ENVIRONMENT | {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"})
        return project.run(ROOT, sys.executable, "-m", "tools.pin", str(path), code=code)

    return run


@pytest.fixture
def recipe(tmp_path):
    return Path(shutil.copyfile(ROOT / "recipes/koquality.yaml", tmp_path / "mine.yaml"))


def test_every_null_becomes_the_newest_commit_and_no_other_byte_changes(recipe, pin, hub):
    before = recipe.read_bytes()
    printed = pin(recipe).splitlines()
    after = recipe.read_bytes()
    content = read_yaml(recipe)
    assert {source["name"]: source["revision"] for source in content["fetch"]["sources"].values()} == {
        name.removeprefix("datasets/"): commit(name)
        for name in REPOSITORIES
        if "datasets" in name and "kobest" not in name
    }
    assert content["fetch_benchmark"]["revisions"] == {"skt/kobest_v1": commit("datasets/skt/kobest_v1")}
    for model in content["fetch_model"].values():
        assert model["revision"] == commit(f"models/{model['name']}")
    assert re.sub(rb"\b[0-9a-f]{40}\b", b"null", after) == before
    assert set(hub.asked) == REPOSITORIES
    assert len(hub.asked) == 7

    changed = [line for line in printed if re.match(r"[-+](?![-+])", line)]
    assert [line[1:] for line in changed if line[0] == "+"] == [
        line for line in after.decode().splitlines() if re.search(r"\b[0-9a-f]{40}\b", line)
    ]
    assert printed[:2] == [f"--- {recipe}", f"+++ {recipe}"]
    assert printed[-1] == f"{recipe}: 7 pinned"


def test_what_is_pinned_is_not_asked_for_again(recipe, pin, hub):
    pinned = commit("of last year")
    recipe.write_text(recipe.read_text().replace("revision: null", f"revision: {pinned}"))
    assert pin(recipe).splitlines()[-1] == f"{recipe}: 1 pinned"
    assert hub.asked == ["datasets/skt/kobest_v1"]
    assert read_yaml(recipe)["fetch_model"]["base"]["revision"] == pinned
    before = recipe.read_bytes()
    assert pin(recipe) == f"{recipe}: nothing from the hub has `revision: null`\n"
    assert recipe.read_bytes() == before


def test_what_gives_no_commit_is_listed_with_the_reason_and_nothing_is_written(recipe, pin, hub):
    recipe.write_text(recipe.read_text().replace("beomi/KoAlpaca-v1.1a", "beomi/no-such"))
    hub.refuse |= {"models/EleutherAI/polyglot-ko-5.8b": "GatedRepo", "datasets/skt/kobest_v1": "Broken"}
    before = recipe.read_bytes()
    printed = pin(recipe, code=1)
    assert printed.startswith("3 of 7 repositories gave no commit, nothing is written:\n")
    assert "\n  dataset beomi/no-such: not found, or private; check the name" in printed
    assert "\n  model EleutherAI/polyglot-ko-5.8b: gated; ask for access on its page, and set HF_TOKEN" in printed
    assert re.search(r"\n  dataset skt/kobest_v1: no answer \(HfHubHTTPError: .*500.*check the network", printed)
    assert recipe.read_bytes() == before


LAYOUTS = {
    "in a line": "a: {b: {x: 1, revision: null}}  # why\n",
    "a comment": "a:\n  b:\n    revision:   null      # pin me\n\n\n    x:  '1'\n",
    "a tilde": "a: {b: {revision: ~, x: 1}}\n",
    "empty": "a:\n  b:\n    revision:   # pin me\n    x: 1\n",
    "CRLF": "a:\r\n  b:\r\n    revision: null\r\n    x: 1\r\n",
    "한글 before it": "a:\n  '한글': 1\n  b: {x: 한글, revision: Null}\n",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_null_is_replaced_however_it_is_written(layout):
    text, value = LAYOUTS[layout], commit("x")
    changed = replace_nulls(text, {("a", "b", "revision"): value}, Path("recipe"))
    written = "revision: " + value if layout == "empty" else value
    assert changed == re.sub(r"revision:(?= )" if layout == "empty" else "(?i:null)|~", written, text, count=1)


def test_two_nulls_in_one_line_are_both_replaced():
    keys = {("a", "x/y"): commit("x"), ("a", "z"): commit("z")}
    assert replace_nulls("a: {x/y: null, z: null}\n", keys, Path("recipe")) == (
        f"a: {{x/y: {commit('x')}, z: {commit('z')}}}\n"
    )


def test_a_commit_that_yaml_would_read_as_a_number_stops():
    with pytest.raises(UserError, match="recipe: the nulls are not where they seem"):
        replace_nulls("a: null\n", {("a",): "1" * 40}, Path("recipe"))


def test_without_a_file_it_prints_its_usage(capsys):
    assert main([]) == 2
    assert "python -m tools.pin recipes/NAME.yaml" in capsys.readouterr().err
