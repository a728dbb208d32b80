"""Repositories that change while a server polls them: what serves afterwards, what the index says, who is ready."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.server import Server

#: The repositories, below the folder that `write` is given.
FOLDERS = ("one", "two")
FLAGS = ("--model-control-mode=poll", "--repository-poll-secs=1")
LONGEST = 60.0
INPUT = '{"inputs": [{"name": "X", "datatype": "INT32", "shape": [1], "data": [1]}]}'

MODEL = """import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        who = np.array([b"%s"], dtype=object)
        return [pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("WHO", who)]) for _ in requests]
"""
CONFIG = """
backend: "python"
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "WHO" data_type: TYPE_STRING dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
ENSEMBLE = """
platform: "ensemble"
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "WHO" data_type: TYPE_STRING dims: [ 1 ] } ]
ensemble_scheduling { step [ {
  model_name: "%s" model_version: -1 input_map { key: "X" value: "X" } output_map { key: "WHO" value: "WHO" }
} ] }
parameters { key: "beat" value { string_value: "%s" } }
"""
#: Those that are there at the start, in the first repository.
NAMES = ("edited", "touched", "grown", "member", "hidden", "removed", "shrunk", "steady")
ENSEMBLES = ("above",)
#: All that are ever asked.
ASKED = (*NAMES, *ENSEMBLES, "added", "broken", "mistaken", "empty", "late")


def make(place: Path, *versions: int, who: str = "first", config: str = CONFIG) -> None:
    for version in versions or (1,):
        (place / str(version)).mkdir(parents=True)
        (place / str(version) / "model.py").write_text(MODEL % who)
    (place / "config.pbtxt").write_text(config)


def write(root: Path, oracle: bool) -> None:
    for name in NAMES:
        make(root / "one" / name)
    _ensemble(root / "one" / "above", "member")
    _ensemble(root / "one" / "beat", "steady")
    (root / "two").mkdir()


@dataclass(frozen=True)
class Upheaval:
    """A change of the repositories, and what is there once the server has followed it: the index without reasons.

    `answers` are what models will say then. Where nothing new is to be seen, a model called `beat` tells that polls
    have passed: it is changed twice, and the second change is seen by a poll after the one that saw all the others.
    """

    name: str
    change: Callable[[Path], None]
    answers: tuple[tuple[str, str], ...] = ()

    def play(self, server: Server, repository: Path) -> dict[str, Any]:
        self.change(repository)
        for number in (1, 2):
            beat = f"{self.name} {number}"
            _ensemble(repository / "one" / "beat", "steady", beat)
            _until(f"beat {beat}", lambda said=beat: _ask(server, "GET", "/v2/models/beat/config").find(said) > 0)
        for model, answer in self.answers:
            path = f"/v2/models/{model}/infer"
            _until(f"{model}: {answer}", lambda at=path, said=f'"{answer}"': said in _ask(server, "POST", at, INPUT))
        _until("a settled index", lambda: 'ING"' not in _ask(server, "POST", "/v2/repository/index"))
        index = json.loads(_ask(server, "POST", "/v2/repository/index"))
        return {"states": [[each["name"], each.get("version"), each.get("state")] for each in index]}


@dataclass(frozen=True)
class Change:
    """A change of the repository that nobody follows by himself."""

    name: str
    change: Callable[[Path], None]

    def play(self, server: Server, repository: Path) -> dict[str, Any]:
        self.change(repository)
        return {}


def _until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come")
        time.sleep(0.05)


def _ask(server: Server, method: str, path: str, body: str = "") -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=LONGEST)
    try:
        connection.request(method, path, body=body or None)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


# What operators do.


def good(root: Path) -> None:
    """Changes that lead to something new that works."""
    one = root / "one"
    (one / "edited" / "1" / "model.py").write_text(MODEL % "second")
    for file in (one / "touched").rglob("*"):
        os.utime(file)
    shutil.copytree(one / "grown" / "1", one / "grown" / "2")
    (one / "member" / "1" / "model.py").write_text(MODEL % "second member")
    shutil.rmtree(one / "removed")
    make(one / "added")
    _ensemble(one / "late", "added")


def mistakes(root: Path) -> None:
    """Models come that no server can make anything of."""
    make(root / "one" / "mistaken", config="backend:")
    (root / "one" / "empty").mkdir()


def bad(root: Path) -> None:
    """Changes that cannot work: what served goes on."""
    one = root / "one"
    (one / "edited" / "1" / "model.py").write_text("def (")
    (one / "touched" / "config.pbtxt").write_text(CONFIG + 'colour: "red"\n')
    shutil.rmtree(one / "grown" / "2")
    (one / "shrunk" / "1").rename(one / "shrunk" / "one")
    make(one / "broken")
    (one / "broken" / "1" / "model.py").write_text("def (")
    shutil.copytree(one / "hidden", root / "two" / "hidden")


def mended(root: Path) -> None:
    """All that was bad is made good."""
    one = root / "one"
    (one / "edited" / "1" / "model.py").write_text(MODEL % "third")
    (one / "touched" / "config.pbtxt").write_text(CONFIG + "max_batch_size: 0\n")
    (one / "shrunk" / "one").rename(one / "shrunk" / "1")
    (one / "broken" / "1" / "model.py").write_text(MODEL % "mended")
    (one / "mistaken" / "config.pbtxt").write_text(CONFIG)
    shutil.rmtree(one / "empty")
    shutil.rmtree(root / "one" / "hidden")


def members(root: Path) -> None:
    """A model goes that an ensemble needs."""
    shutil.rmtree(root / "one" / "member")


def back(root: Path) -> None:
    make(root / "one" / "member", who="third member")


def settle(root: Path) -> None:
    """What the start leaves behind (compiled code) is a change to Triton."""


def _ensemble(place: Path, member: str, beat: str = "") -> None:
    (place / "1").mkdir(parents=True, exist_ok=True)
    (place / "config.pbtxt").write_text(ENSEMBLE % (member, beat))
