"""Repositories that `conch check --fix` has mended are loaded by the real server, and the server names the command."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path

import pytest

from parity.modes import MODES
from support.broken_repositories import ALL, put
from support.server import BIN, CONCH, TRITONSERVER, Server


def conch_check(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "conch"), "check", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=110)


def index(server: Server) -> list[dict[str, str]]:
    request = urllib.request.Request(f"http://{server.http}/v2/repository/index", data=b"{}", method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: list[dict[str, str]] = json.load(answer)
        return found


def test_mended_models_load(tmp_path: Path) -> None:
    """More than twenty broken repositories load in the real server once they are mended."""
    mended = [each for each in ALL.values() if each.heals]
    folders = [tmp_path / each.name for each in mended]
    for each, folder in zip(mended, folders, strict=True):
        folder.mkdir()
        each.build(folder)
    answer = conch_check("--fix", *folders)
    assert answer.returncode == 0, answer.stdout
    others = [f"--model-repository={folder}" for folder in folders[1:]]
    flags = ["--exit-on-error=false", "--strict-readiness=false", *others]
    with Server(folders[0], *flags) as server:
        states = {each["name"]: each for each in index(server)}
    assert len(folders) >= 20
    assert set(states) == {path.name for folder in folders for path in folder.iterdir()}
    assert not [each for each in states.values() if each.get("state") != "READY"]


def test_broken_models_do_not_load(tmp_path: Path) -> None:
    """What a check calls an error keeps the model from loading: nothing is mended that works."""
    folders = [tmp_path / each.name for each in ALL.values()]
    for each, folder in zip(ALL.values(), folders, strict=True):
        folder.mkdir()
        each.build(folder)
    others = [f"--model-repository={folder}" for folder in folders[1:]]
    flags = ["--exit-on-error=false", "--strict-readiness=false", *others]
    with Server(folders[0], *flags) as server:
        ready = {each["name"] for each in index(server) if each.get("state") == "READY"}
    whole = [folder.name for folder in folders if all(path.name in ready for path in folder.iterdir())]
    # These load, and are not what their authors meant.
    assert set(whole) <= {"windows_name", "plain_parameter"}


@pytest.mark.slow
def test_check_and_server_agree(tmp_path: Path) -> None:
    """Of sixty ensembles and models, sound and broken, those with errors do not load, and all others do but for those
    whose code fails."""
    MODES["ensembles"].write(tmp_path, False)
    found = json.loads(conch_check("--format=json", tmp_path).stdout)["findings"]
    wrong = {each["model"] for each in found if each["severity"] == "error"}
    with Server(tmp_path, "--exit-on-error=false", "--strict-readiness=false") as server:
        ready = {each["name"] for each in index(server) if each.get("state") == "READY"}
    assert len(wrong) > 15
    assert ready & wrong == set()
    # What a model's code does is not known; two ensembles need the one that fails.
    assert {path.name for path in tmp_path.iterdir()} - ready - wrong == {"fails", "failing_member", "above_failing"}


def test_the_server_names_the_command(tmp_path: Path) -> None:
    """A start that fails for a model says how to find out more; with Triton's command the texts stay Triton's."""
    put(tmp_path, {"m/config.pbtxt": "max_batch_size: oops"})
    for command, told in ((CONCH, True), (TRITONSERVER, False)):
        server = Server(tmp_path, command=command)
        assert server.wait() == 1
        assert (f"conch check {tmp_path}" in server.log) is told
        server.kill()
