"""What workers import must run on Python 3.9 with nothing but numpy: models bring their own Python."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import conch

PACKAGE = Path(conch.__file__).parent
#: As the server starts a worker: the package by its folder alone.
ASK = """
import sys, types
known = set(sys.modules)
package = types.ModuleType("conch")
package.__path__ = [sys.argv[1]]
sys.modules["conch"] = package
import conch.backend.python.worker, conch.backend.python.pb_utils, conch.backend.python.autocomplete
print(*sorted(set(sys.modules) - known))
"""


@pytest.fixture(scope="module")
def modules() -> list[str]:
    """All that a worker imports."""
    command = [sys.executable, "-c", ASK, str(PACKAGE)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_nothing_but_numpy_is_needed(modules: list[str]) -> None:
    """The server's own packages are not there in a model's environment."""
    foreign = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    assert {name for name in foreign if not name.startswith("_")} == {"conch", "numpy"}


def imported(file: Path) -> Iterator[Path]:
    """What of ours a file imports, at its top or later."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("conch."):
            continue
        for name in (node.module, *(f"{node.module}.{each.name}" for each in node.names)):
            found = PACKAGE.joinpath(*str(name).split(".")[1:]).with_suffix(".py")
            if found.is_file():
                yield found


def test_the_language_is_that_of_python_3_9(modules: list[str]) -> None:
    """No newer syntax, no `zip(strict=...)`, no unions where they are more than annotations; in what a worker imports,
    and in the programs of our own backends, wherever an environment brings its framework."""
    files = [PACKAGE / (name.replace(".", "/").removeprefix("conch/") + ".py") for name in modules if "conch." in name]
    waiting = [file for file in files if file.is_file()] + sorted((PACKAGE / "backend").rglob("model.py"))
    seen: list[Path] = []
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.append(file)
            waiting += imported(file)
    shown = {str(file.relative_to(PACKAGE / "backend")) for file in seen if file.is_relative_to(PACKAGE / "backend")}
    assert shown >= {"python/execute.py", "dali/described.py", "tensorflow/program/model.py", "torch/naming.py"}
    for file in seen:
        check(file)


def check(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(), str(file), feature_version=(3, 9))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        where = f"{file}:{node.lineno}"
        if node.func.id == "zip":
            assert not node.keywords, f"{where}: zip has no `strict` there"
        if node.func.id in {"isinstance", "issubclass"}:
            assert not isinstance(node.args[1], ast.BinOp), f"{where}: write a tuple of types"
        if node.func.id == "dataclass":
            assert not {each.arg for each in node.keywords} & {"slots", "kw_only", "match_args"}, f"{where}: not there"
