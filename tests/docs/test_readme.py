"""README.md and docs/*.md: every command that a reader is told to type does what is said.

Pages that have a test of their own (`test_<page>_page.py`) are run there; here are the others.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

from support import onnx_models
from support.server import BIN, Server

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {
    path.relative_to(ROOT): path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:make|pip|python|pytest|conch|tritonserver|curl)(?: |$)")

#: Commands that are not run here, and why.
EXCEPTIONS = {
    "make test": "is what runs this",
    "make demo": "sets up an environment first; what it runs then is run by tests/clients/test_demo.py",
    "make bench": "takes ten minutes and the real Triton",
    "pip install '.[onnx]'": "would change the environment of the tests; the extra is looked up below",
    "pip install 'conch[torch]'": "the same",
    "pip install 'conch[openvino]'": "the same",
    "python tests/parity/record.py": "needs the real Triton",
    "pytest -k": "part of a command; tests/docs/test_parity_table.py looks at what follows it",
    "conch demo": "is run by tests/clients/test_demo.py",
    "conch serve": "a name; it is run with a repository",
    "conch check": "a name; tests/docs/test_check_page.py runs it with repositories",
    "conch serve model.pt2": "tests/clients/test_torch_models.py serves such files",
    "conch export": "a name; tests/docs/test_export_page.py runs it",
    "conch serve --watch": "a name; tests/docs/test_develop_page.py runs it with a repository",
    "conch import": "a name; tests/docs/test_serve_page.py runs it with files",
    "tritonserver": "a name; it is run with flags",
}
ENVIRONMENT = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def commands() -> list[str]:
    """What is in code blocks without a language, line by line, and in code spans, if it begins with a command."""
    found = []
    for path, text in PAGES.items():
        if (ROOT / "tests" / "docs" / f"test_{path.stem.replace('-', '_')}_page.py").exists():
            continue
        for language, block in FENCED.findall(text):
            if not language:
                found += [line.partition("  #")[0].strip() for line in block.splitlines()]
        found += re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    return [each for each in dict.fromkeys(found) if COMMAND.match(each)]


def starting(words: str) -> str:
    """The one command in the README that starts so and goes on."""
    known = ("conch serve --help", *EXCEPTIONS)
    (found,) = [each for each in commands() if each.startswith(f"{words} ") and each not in known]
    return found


def block(language: str) -> str:
    (found,) = [text for each, text in FENCED.findall(README) if each == language]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the repository that the README draws, file by file."""
    root = tmp_path_factory.mktemp("readme")
    (drawn,) = [text for _, text in FENCED.findall(README) if text.startswith("model_repository/\n")]
    contents: Mapping[str, bytes] = {
        ".onnx": onnx_models.identity().SerializeToString(),
        ".py": block("python").encode(),
        ".pbtxt": block("protobuf").encode(),
    }
    for line in drawn.splitlines()[1:]:
        path = root / "model_repository" / line.strip()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[path.suffix])
    onnx.checker.check_model(str(next(root.rglob("*.onnx"))))
    return root


def serve(place: Path, command: str) -> Server:
    """A server started by that line, as a shell in `place` reads it, but at free ports of 127.0.0.1."""
    (place / "nothing").mkdir(exist_ok=True)
    return Server(place / "nothing", command=("sh", "-c", f'cd {place} && exec {command} "$@"', "sh"), env=ENVIRONMENT)


def curl(command: str, server: Server) -> tuple[str, Any]:
    """The status and the JSON that the line gets."""
    line = command.replace("localhost:8000", server.http) + " -sS -w '\\n%{http_code}'"
    ended = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=100, check=True)
    body, _, status = ended.stdout.rpartition("\n")
    return status, json.loads(body) if body else None


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    with serve(place, starting("conch serve")) as running:
        yield running


ANSWERS: dict[str, Any] = {
    "curl localhost:8000/v2/health/ready": None,
    "curl localhost:8000/v2/models/digits": {
        "name": "digits",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
    },
    starting("curl localhost:8000/v2/models/scale/infer"): {
        "model_name": "scale",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [3], "data": [2.0, 4.0, 6.0]}],
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ANSWERS)
def test_curl(server: Server, command: str) -> None:
    """What the README sends to the server that it started is answered with 200 and the right JSON."""
    assert curl(command, server) == ("200", ANSWERS[command])


@pytest.mark.slow
def test_tritonserver(place: Path) -> None:
    """The README's Triton command line serves every model of its repository."""
    with serve(place, starting("tritonserver")) as running:
        for model in ("digits", "scale"):
            assert curl(f"curl localhost:8000/v2/models/{model}/ready", running) == ("200", None)


def test_help() -> None:
    """`conch serve --help` lists flags."""
    line = "conch serve --help"
    ended = subprocess.run(line.split(), capture_output=True, text=True, check=True, env={**os.environ, **ENVIRONMENT})
    assert "--model-repository" in ended.stdout
    assert ended.stderr == ""


def test_every_command_is_known() -> None:
    """A command in the documentation is run above, or stands in the table of exceptions, which has no others."""
    run = {*ANSWERS, starting("conch serve"), starting("tritonserver"), "conch serve --help"}
    written = set(commands())
    assert written - run - EXCEPTIONS.keys() == set()
    assert run <= written
    assert EXCEPTIONS.keys() - written <= {"conch demo"}


def test_made_targets_and_extras_exist() -> None:
    """What `make` and `pip` are asked for is there."""
    makefile = (ROOT / "Makefile").read_text()
    for command in commands():
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"\[([\w,]+)\]'", "".join(each for each in commands() if each.startswith("pip ")))
    assert named
    assert {extra for each in named for extra in each.split(",")} <= extras.keys()


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_paths_exist(page: Path) -> None:
    """Files of the project that a page names, and those that it links to, are there."""
    text = PAGES[page]
    named = re.findall(r"`((?:tests|bench|docs|src|proto)/[\w/.-]+)", text)
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing + [name for name in linked if not (ROOT / page.parent / name).exists()] == []
