"""Python-based backends: one program, many models, with settings and requirements of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.python.based import BasedBackend
from conch.backend.python.program import Program
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError
from support.python_models import Served, array_of, make_spec, model_source, running_loop

SAYS = "return [answer(np.array([%s], dtype=object)) for r in requests]"
KEEPS = "def initialize(self, args): self.args = args"


def write(folder: Path, source: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(source)
    return folder


@contextmanager
def served(root: Path, source: str, settings: Mapping[str, str] | None = None, name: str = "m") -> Iterator[Served]:
    """A model without code, run by the program `source`."""
    (root / name / "1").mkdir(parents=True)
    config = ModelConfig(name=name, backend="mine", max_batch_size=8)
    spec, stats = make_spec(), ModelStats()
    with running_loop() as loop:
        backend = BasedBackend("mine", write(root / "mine", source))
        model = backend.load(config, spec, ModelFiles(root / name, 1), Host(loop, settings or {}), stats)
        try:
            yield Served(model, model.instance(Placement("m_0_0", "CPU")), spec, stats)
        finally:
            model.close()


def said(model: Served) -> Any:
    return array_of(model.echo().outputs[0]).tolist()


def completed(root: Path, more: str, settings: Mapping[str, str] | None = None) -> ModelConfig:
    (root / "m" / "1").mkdir(parents=True)
    (root / "m" / "1" / "size.txt").write_text("5")
    config = ModelConfig(name="m", backend="mine")
    with running_loop() as loop:
        backend = BasedBackend("mine", write(root / "mine", model_source(more=more)))
        backend.complete(config, ModelFiles(root / "m", 1), Host(loop, settings or {}))
    return config


def test_settings_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the Python backend does not know is the program's, as JSON, and nobody is warned of it."""
    settings = {"precision": "high", "stub-timeout-seconds": "20"}
    with served(tmp_path, model_source(SAYS % "self.args['backend_config']", KEEPS), settings) as model:
        assert said(model) == [b'{"precision": "high"}']
    assert not caplog.messages


def test_the_arguments_name_the_model(tmp_path: Path) -> None:
    """Not the backend's folder."""
    shown = "self.args['model_repository'] + ' ' + pb_utils.get_model_dir() + ' ' + __name__"
    with served(tmp_path, model_source(SAYS % shown, KEEPS)) as model:
        assert said(model) == [f"{tmp_path}/m {tmp_path}/m/1 model".encode()]


def test_the_working_directory_shadows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies where the server was started is neither the program nor one of its neighbours."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model.py").write_text("raise SystemExit('the wrong one')\n")
    (elsewhere / "numpy.py").write_text("raise SystemExit('the wrong numpy')\n")
    monkeypatch.chdir(elsewhere)
    with served(tmp_path, model_source()) as model:
        assert array_of(model.echo().outputs[0]).tolist() == [[1, 1]]


def test_auto_complete_may_look_into_the_model(tmp_path: Path) -> None:
    """With a second parameter it gets the arguments, and so finds the model's files; `runtime` is as Triton's."""
    config = completed(
        tmp_path,
        """
        @staticmethod
        def auto_complete_config(config, args):
            size = int(open(args["model_repository"] + "/" + args["model_version"] + "/size.txt").read())
            config.add_input({"name": "X", "data_type": "TYPE_FP32", "dims": [size]})
            config.add_output({"name": "Y", "data_type": "TYPE_FP32", "dims": [len(args["backend_config"])]})
            return config
        """,
        {"a": "1"},
    )
    assert [list(each.dims) for each in (*config.input, *config.output)] == [[5], [len('{"a": "1"}')]]
    assert config.runtime == "model.py"


def test_auto_complete_with_one_parameter(tmp_path: Path) -> None:
    """Triton's form; further parameters with defaults are left alone."""
    config = completed(
        tmp_path,
        """
        @staticmethod
        def auto_complete_config(config):
            config.set_max_batch_size(6)
            return config
        """,
    )
    assert config.max_batch_size == 6


def test_requirements_of_the_backend(tmp_path: Path) -> None:
    """They are looked at where the model has none: here one that no index can have."""
    write(tmp_path / "mine", "")
    (tmp_path / "mine" / "requirements.txt").write_text("no such requirement\n")
    with pytest.raises(InferError) as caught, served(tmp_path, model_source()):
        pass
    assert "no such requirement" in caught.value.message
    assert str(tmp_path / "mine" / "requirements.txt") in caught.value.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import nothing_of_that_name\n", "ModuleNotFoundError: No module named 'nothing_of_that_name'\n\nAt:\n"),
        ("x = 1\n", "AttributeError: module 'model' has no attribute 'TritonPythonModel'"),
        ("class TritonPythonModel: ...\n", "does not implement `execute` method."),
    ],
)
def test_a_program_that_is_none(tmp_path: Path, source: str, text: str) -> None:
    """The model's load says what is wrong with its backend."""
    with pytest.raises(InferError) as caught, served(tmp_path, source):
        pass
    assert text in caught.value.message


def test_a_program_may_take_longer_to_start() -> None:
    """Its own limit holds where the operator does not say."""
    program = Program(Path("/x"), start_timeout=300.0)
    assert program.settings({}).start_timeout == 300.0
    assert program.settings({"stub-timeout-seconds": "7"}).start_timeout == 7.0
    assert Program(Path("/x")).settings({}).start_timeout == 30.0


@pytest.mark.slow
def test_each_model_has_a_worker_of_its_own(tmp_path: Path) -> None:
    """One program, two models, two processes."""
    (tmp_path / "n").mkdir()
    with served(tmp_path, model_source()) as one, served(tmp_path, model_source(), name="two") as other:
        assert one.pid != other.pid
        x = np.ones((1, 2), np.float32)
        assert array_of(one.ask(one.request(x))[0].outputs[0]).tolist() == x.tolist()
