"""Which backend a name means: the operator's folder, built in, an installed package."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from conch.backend.api import ModelFiles
from conch.backend.find import Backends
from conch.backend.foreign import ForeignBackend
from conch.backend.identity import IdentityBackend
from conch.backend.python.backend import PythonBackend
from conch.backend.python.based import BasedBackend
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import Code, InferError
from support.backends import install

GOOD = """
class Good:
    name = "good"
    def complete(self, config, files, host): ...
    def load(self, config, spec, files, host, stats): ...
"""
BASED = "unable to find Python backend based backend library"
SEARCHED = "searched: '/models/m/1' '/models/m' '<root>/identity' "
#: Modules stay imported, so each test has packages of names of its own.
NUMBERS = itertools.count()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages can be installed into."""
    place = tmp_path / "site"
    monkeypatch.syspath_prepend(str(place))
    return place


def program(directory: Path, name: str, file: str = "model.py") -> None:
    (directory / name).mkdir(exist_ok=True)
    (directory / name / file).touch()


def refusal(backends: Backends, name: str) -> InferError:
    with pytest.raises(InferError) as caught:
        backends.find(name)
    return caught.value


def test_the_operators_folder_goes_first(tmp_path: Path) -> None:
    """A model.py in it is a backend, even where one of that name is built in."""
    program(tmp_path, "identity")
    program(tmp_path, "mine")
    backends = Backends(tmp_path)
    assert isinstance(backends.find("identity"), BasedBackend)
    assert isinstance(backends.find("mine"), BasedBackend)
    assert backends.used() == [(name, str(tmp_path / name / "model.py")) for name in ("identity", "mine")]


def test_tritons_own_folder_is_no_backend_of_the_operators(tmp_path: Path) -> None:
    """Where a native library lies beside the program, what is built in is meant; and `python` has no program."""
    program(tmp_path, "identity")
    program(tmp_path, "identity", "libtriton_identity.so")
    program(tmp_path, "python")
    assert isinstance(Backends(tmp_path).find("identity"), IdentityBackend)
    assert isinstance(Backends(tmp_path).find("python"), PythonBackend)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden"])
def test_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    """What is no folder's name is no backend."""
    (tmp_path / "backends").mkdir()
    program(tmp_path, "backends")
    assert not Backends(tmp_path / "backends").is_based(name)


def test_an_unknown_backend_lists_the_known_ones(tmp_path: Path, site: Path) -> None:
    """Built-in ones, those of packages, and where a Python-based one would be."""
    install(site, "good_one", GOOD, good="good_one:Good")
    error = refusal(Backends(tmp_path), "nobody")
    assert error.code is Code.INVALID_ARG
    assert error.message == (
        "unable to find backend library for backend 'nobody', try specifying runtime on the model configuration."
    )
    assert "identity" in error.hint
    assert "good" in error.hint
    assert str(tmp_path / "nobody" / "model.py") in error.hint


def test_a_package_brings_a_backend(tmp_path: Path, site: Path) -> None:
    """By its entry point; it is guarded."""
    install(site, "good_two", GOOD, good="good_two:Good")
    backends = Backends(tmp_path)
    assert isinstance(backends.find("good"), ForeignBackend)
    assert backends.used() == [("good", "good_two:Good (conch.backends)")]


@pytest.mark.parametrize(
    ("source", "target", "text"),
    [
        ("import nothing_such", ":Bad", "cannot be made: ModuleNotFoundError: No module named 'nothing_such'"),
        ("raise SystemExit(3)", ":Bad", "cannot be made: SystemExit: 3"),
        (GOOD, ":Bad", "cannot be made: AttributeError: module"),
        ("class Bad:\n    def __init__(self): 1 / 0", ":Bad", "cannot be made: ZeroDivisionError: division by zero"),
        ("class Bad: ...", ":Bad", "has no method 'complete'"),
        ("class Bad:\n    def complete(self, *_): ...", ":Bad", "has no method 'load'"),
        (
            "class Bad:\n    def complete(self, *_): ...\n    def load(self, config): ...",
            ":Bad",
            "'load' of backend 'bad' of package 'bad-{n}' (bad_{n}:Bad) cannot be called with 5 arguments: too many",
        ),
    ],
)
def test_a_broken_package_is_one_clear_error(tmp_path: Path, site: Path, source: str, target: str, text: str) -> None:
    """It says which package and what is wrong with it, and leaves other backends alone."""
    number = next(NUMBERS)
    install(site, f"bad_{number}", source, bad=f"bad_{number}{target}")
    backends = Backends(tmp_path)
    error = refusal(backends, "bad")
    assert error.code is Code.INTERNAL
    assert f"backend 'bad' of package 'bad-{number}' (bad_{number}:Bad)" in error.message
    assert text.replace("{n}", str(number)) in error.message
    backends.find("identity")


@pytest.mark.parametrize(
    ("backend", "runtime", "text"),
    [
        ("identity", "libtriton_identity.so", ""),
        ("identity", "", ""),
        ("mine", "model.py", ""),
        ("pytorch", "model.py", ""),
        ("identity", "model.py", f"{BASED} 'model.py' for model 'm', searched: '<root>/identity/model.py'"),
        ("identity", "libtriton_x.so", "unable to find backend library 'libtriton_x.so' for model 'm', " + SEARCHED),
    ],
)
def test_a_runtime_is_one_that_there_is(tmp_path: Path, backend: str, runtime: str, text: str) -> None:
    """Others get Triton's error."""
    program(tmp_path, "mine")
    config = ModelConfig(name="m", backend=backend, runtime=runtime)
    files = ModelFiles(Path("/models/m"), 1)
    if not text:
        Backends(tmp_path).check_runtime(config, files)
        return
    with pytest.raises(InferError) as caught:
        Backends(tmp_path).check_runtime(config, files)
    assert caught.value.message == text.replace("<root>", str(tmp_path))


def test_whose_models_have_the_settings_of_python_models(tmp_path: Path) -> None:
    """Those of the backends that run models in workers, PyTorch's modules and packages among them."""
    program(tmp_path, "mine")
    backends = Backends(tmp_path)
    named = ["dali", "fault", "mine", "onnxruntime", "pytorch", "tensorflow"]
    assert [name for name in named if not backends.is_python(name)] == ["onnxruntime"]
