"""docs/serve.md shows a file with functions: it is served, and answers as the page says."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import onnx
import pytest

from conch.adopt.api import Entry
from conch.adopt.decide import decide
from conch.adopt.recognise import SUFFIXES
from conch.pb.model_config_pb2 import ModelConfig
from support.onnx_models import add_sub
from support.other_servers import mean_model, word_count
from support.server import BIN, CONCH, Server
from support.until import until

PAGE = (Path(__file__).parent.parent.parent / "docs" / "serve.md").read_text()


def ask(server: Server, path: str, body: object) -> str:
    command = ["curl", "-sN", f"http://{server.http}/v2/models/{path}", "-d", json.dumps(body)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_functions_of_the_page(tmp_path: Path) -> None:
    """A reader who copies the file gets these models, described in the words of the page."""
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    block = re.search(r"\$ conch serve app.py\n(.*?)  \.\.\.\n", PAGE, re.DOTALL)
    assert code is not None
    assert block is not None
    path = tmp_path / "app.py"
    path.write_text(code[1])
    with Server(path, command=CONCH) as server:
        row = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
        assert json.loads(ask(server, "double/infer", {"inputs": [row]}))["outputs"][0]["data"] == [2, 4]
        verdict = json.loads(ask(server, "judge/generate", {"text": "hey!", "threshold": 0.2}))
        assert (verdict["label"], verdict["score"]) == ("loud", 0.25)
        assert re.findall(r'"output":"(\w+)"', ask(server, "words/generate_stream", {"text": "one two"})) == [
            "one",
            "two",
        ]
        until(lambda: block[1].replace("app.py", str(path)) in server.log)


def test_the_imports_of_the_page(tmp_path: Path) -> None:
    """Each command makes the models of its files, in a repository that can be served."""
    onnx.save_model(add_sub(), tmp_path / "resnet.onnx")
    word_count(tmp_path)
    mean_model(tmp_path / "iris")
    commands = re.findall(r"^\$ (conch import .*)$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        subprocess.run([str(BIN / "conch"), *command.split()[1:]], cwd=tmp_path, check=True, capture_output=True)
    assert sorted(path.name for path in (tmp_path / "model_repository").iterdir()) == ["mean", "resnet", "words"]
    for folder in (tmp_path / "model_repository").iterdir():
        entry = Entry(folder.name, ModelConfig(), {}, "", folder)
        assert decide(entry, folder, {}).input


@pytest.mark.parametrize("suffix", [each for each in SUFFIXES if each not in (".pb", ".pth", ".config", ".pbtxt")])
def test_every_kind_of_file_is_named(suffix: str) -> None:
    """The table has each ending that is known."""
    assert suffix in PAGE
