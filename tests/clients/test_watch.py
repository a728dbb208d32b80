"""`conch serve --watch`, as a developer has it: save a file, and the server answers from it."""

from __future__ import annotations

import http.client
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.server import Server

pytestmark = pytest.mark.slow

MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", np.array([{value}], np.int32))]) for _ in requests]
"""
CONFIG = """
backend: "python"
input { name: "X" data_type: TYPE_INT32 dims: 1 }
output { name: "Y" data_type: TYPE_INT32 dims: 1 }
"""


def write(root: Path, name: str, value: int) -> Path:
    folder = root / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "1" / "model.py").write_text(MODEL.format(value=value))
    return folder / "1" / "model.py"


def ask(server: Server, name: str = "m") -> int | str:
    """What the model answers, or why it does not."""
    body = json.dumps({"inputs": [{"name": "X", "datatype": "INT32", "shape": [1], "data": [0]}]})
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    connection.request("POST", f"/v2/models/{name}/infer", body)
    found: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return int(found["outputs"][0]["data"][0]) if "outputs" in found else str(found["error"])


def until(what: Callable[[], bool], server: Server, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, server.log
        time.sleep(0.01)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    write(root, "m", 1)
    with Server(root, "--watch") as running:
        yield running


def over(file: Path, text: str) -> None:
    file.write_text(text)


def by_renaming(file: Path, text: str) -> None:
    other = file.with_name(".model.py.tmp")
    other.write_text(text)
    other.rename(file)


def by_backup(file: Path, text: str) -> None:
    file.rename(file.with_name("model.py~"))
    file.write_text(text)
    file.with_name("model.py~").unlink()


def in_pieces(file: Path, text: str) -> None:
    with file.open("w") as stream:
        for line in text.splitlines(keepends=True):
            stream.write(line)
            stream.flush()


@pytest.mark.parametrize("save", [over, by_renaming, by_backup, in_pieces])
def test_however_an_editor_saves(server: Server, root: Path, save: Callable[[Path, str], None]) -> None:
    """The new file answers; nobody has to do anything."""
    value = 10 + [over, by_renaming, by_backup, in_pieces].index(save)
    save(root / "m" / "1" / "model.py", MODEL.format(value=value))
    until(lambda: ask(server) == value, server)


@pytest.mark.parametrize(
    ("broken", "shown"),
    [
        ("def f(:\n", "    def f(:\n"),
        ("raise ValueError('not today')\n", "ValueError: not today\n"),
    ],
)
def test_a_mistake_keeps_the_old_one(server: Server, root: Path, broken: str, shown: str) -> None:
    """The traceback stands in the log as Python shows it, once; when it is mended, the new file answers."""
    file = root / "m" / "1" / "model.py"
    file.write_text(MODEL.format(value=30))
    until(lambda: ask(server) == 30, server)
    before = server.log.count("cannot be loaded; what served before")
    file.write_text(broken)
    until(lambda: server.log.count("cannot be loaded; what served before") > before, server)
    assert ask(server) == 30
    # What an editor leaves for a moment, an empty file say, may have been looked at before.
    until(lambda: shown in server.log and f'\n  File "{file}", line 1' in server.log, server)
    assert server.log.count(shown) == 1
    file.write_text(MODEL.format(value=31))
    until(lambda: ask(server) == 31, server)


def test_folders_come_and_go(server: Server, root: Path) -> None:
    """A new model is loaded once it has a version, one whose folder is removed is unloaded."""
    (root / "new").mkdir()
    (root / "new" / "config.pbtxt").write_text(CONFIG)
    write(root / "elsewhere", "new", 5)
    (root / "elsewhere" / "new" / "1").rename(root / "new" / "1")
    until(lambda: ask(server, "new") == 5, server)
    shutil.rmtree(root / "new")
    until(lambda: "watch: the folder of model 'new' is gone, and so is the model" in server.log, server)
    assert str(ask(server, "new")).startswith("Request for unknown model: 'new' ")


def test_a_config_counts_too(server: Server, root: Path) -> None:
    """A changed config.pbtxt is taken over."""
    config = root / "m" / "config.pbtxt"
    config.write_text(CONFIG.replace('"X"', '"Z"'))
    until(lambda: "'X'" in str(ask(server)), server)
    config.write_text(CONFIG)
    until(lambda: isinstance(ask(server), int), server)


def test_what_is_no_change(server: Server, root: Path) -> None:
    """Hidden files, caches and editors' leavings load nothing."""
    until(lambda: isinstance(ask(server), int), server)
    loads = server.log.count("loading: m:1")
    for name in (".model.py.swp", "model.py~", "4913", "#model.py#"):
        (root / "m" / "1" / name).write_text("x")
    # Changes are told in order: when this one has been heeded, so have those.
    write(root, "after", 7)
    until(lambda: ask(server, "after") == 7, server)
    assert server.log.count("loading: m:1") == loads


def test_a_broken_start_is_mended(tmp_path: Path) -> None:
    """The server starts with a model that cannot be loaded, and has it once it is mended."""
    file = write(tmp_path, "m", 1)
    file.write_text("import nothing_of_that_name\n")
    server = Server(tmp_path, "--watch")
    try:
        server.live_seconds()
        file.write_text(MODEL.format(value=2))
        until(lambda: ask(server) == 2, server)
        assert server.ready_seconds() > 0
        assert server.stop() == 0
    finally:
        server.close()


def test_explicit_models_that_nobody_asked_for(tmp_path: Path) -> None:
    """In explicit mode a model is followed from its load to its unload."""
    file = write(tmp_path, "m", 1)
    other = write(tmp_path, "other", 1)
    with Server(tmp_path, "--watch", "--model-control-mode=explicit", "--load-model=m") as server:
        other.write_text(MODEL.format(value=2))
        file.write_text(MODEL.format(value=2))
        until(lambda: ask(server) == 2, server)
        assert "loading: other:1" not in server.log


@pytest.mark.timeout(300)
def test_requirements_of_a_model(tmp_path: Path) -> None:
    """Two models with conflicting packages live in one server; a saved requirements.txt brings other packages."""
    version = "int(__import__('packaging').__version__.split('.')[0])"
    root = tmp_path / "repository"
    for name, wanted in (("m", "21.3"), ("other", "24.0")):
        write(root, name, 0).write_text(MODEL.format(value=version))
        (root / name / "1" / "requirements.txt").write_text(f"packaging=={wanted}\n")
    cache = f"--backend-config=python,environment-cache={tmp_path}/cache"
    with Server(root, "--watch", cache) as server:
        assert (ask(server), ask(server, "other")) == (21, 24)
        (root / "m" / "1" / "requirements.txt").write_text("packaging==23.2\n")
        until(lambda: ask(server) == 23, server)
        (root / "m" / "1" / "requirements.txt").write_text("packaging==nothing\n")
        until(lambda: "is no requirement" in server.log, server)
        assert (ask(server), ask(server, "other")) == (23, 24)


def test_a_repository_behind_a_link(tmp_path: Path) -> None:
    """Files are followed to where they truly lie."""
    file = write(tmp_path / "true", "m", 1)
    (tmp_path / "link").symlink_to(tmp_path / "true")
    with Server(tmp_path / "link", "--watch") as server:
        file.write_text(MODEL.format(value=2))
        until(lambda: ask(server) == 2, server)
