"""Loading a Python model: what it is given, and what is said when it cannot be loaded."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from conch.backend.api import Host
from conch.backend.python.backend import PythonBackend
from conch.backend.python.complete import merge
from conch.backend.python.settings import read_settings
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import BYTES, FP32
from conch.types.error import Code, InferError
from conch.types.model import ModelSpec, TensorSpec
from support.python_models import array_of, form_for, model_source, running_loop, served, write_model


def refusal(folder: Path, source: str, **settings: str) -> InferError:
    """Why this model is not loaded."""
    with (
        pytest.raises(InferError) as caught,
        served(folder, source, settings={k.replace("_", "-"): v for k, v in settings.items()}),
    ):
        pass
    return caught.value


def test_initialize_gets_its_arguments(tmp_path: Path) -> None:
    """All are strings; the config is JSON; the model finds its files and imports its neighbours."""
    source = """
import json, sys
import triton_python_backend_utils as pb_utils
import c_python_backend_utils as c_utils
from .beside import HERE
import beside
class TritonPythonModel:
    def initialize(self, args):
        self.args = args
    def execute(self, requests):
        import numpy as np, os
        found = {**self.args, "model_config": json.loads(self.args["model_config"])["name"], "name": __name__,
                 "dir": pb_utils.get_model_dir(), "file": __file__, "here": HERE,
                 "same": c_utils.Tensor is pb_utils.Tensor,
                 "heavy": [m for m in ("google.protobuf", "uvloop", "msgspec") if m in sys.modules]}
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", np.array([json.dumps(found)], dtype=object))])]
"""
    files = write_model(tmp_path, "HERE = 1\n", "beside.py")
    with served(tmp_path, source) as model:
        found = json.loads(array_of(model.echo().outputs[0])[0])
    version = str(files.version_directory)
    assert found == {
        "model_config": "m", "model_instance_kind": "CPU", "model_instance_name": "m_0_0",
        "model_instance_device_id": "0", "model_repository": str(files.directory), "model_version": "1",
        "model_name": "m", "name": "1.model", "dir": version, "file": f"{version}/model.py", "here": 1, "same": True,
        "heavy": [],
    }  # fmt: skip


def test_another_file_name(tmp_path: Path) -> None:
    """default_model_filename names the file."""
    write_model(tmp_path, model_source(), "other-model.py")
    with served(tmp_path, "x = 1", config=ModelConfig(name="m", default_model_filename="other-model.py")) as model:
        assert array_of(model.echo(2).outputs[0]).tolist() == [[2, 2]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            model_source(more="def initialize(self, args):\n    raise ValueError('init boom')"),
            "ValueError: init boom\n\nAt:\n  {file}(14): initialize\n",
        ),
        ("class TritonPythonModel:\n    def execute(self, requests)\n", "SyntaxError: expected ':' (model.py, line 2)"),
        ("import nothing", "ModuleNotFoundError: No module named 'nothing'\n\nAt:\n  {file}(1): <module>\n"),
        ("x = 1\n", "AttributeError: module '1.model' has no attribute 'TritonPythonModel'"),
        ("class TritonPythonModel:\n    pass\n", "Python model {file} does not implement `execute` method."),
        ("import sys\nsys.exit('enough')", "SystemExit: enough\n\nAt:\n  {file}(2): <module>\n"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_loaded(tmp_path: Path, source: str, text: str) -> None:
    """The load fails with INTERNAL and Triton's text; the traceback is the hint."""
    error = refusal(tmp_path, source)
    assert error.code is Code.INTERNAL
    assert error.message.startswith(text.format(file=tmp_path / "m" / "1" / "model.py"))


def test_no_model_file(tmp_path: Path) -> None:
    """A version without model.py is refused by name."""
    files = write_model(tmp_path, "", "something_else.py")
    with running_loop() as loop, pytest.raises(InferError) as caught:
        PythonBackend().complete(ModelConfig(name="m"), files, Host(loop))
    assert caught.value.message == f"Python model file not found in '{files.version_directory}/model.py'"


def test_initialize_that_ends_the_process(tmp_path: Path) -> None:
    """The error names the exit code and the last lines of stderr."""
    more = """
    def initialize(self, args):
        print("something is missing", file=sys.stderr)
        os._exit(4)
    """
    error = refusal(tmp_path, model_source(more=more))
    assert error.message == (
        "Stub process 'm_0_0' is not healthy. The worker process of model 'm' exited with code 4. "
        "Last lines of its stderr:\nsomething is missing"
    )


@pytest.mark.slow
def test_initialize_that_never_ends(tmp_path: Path) -> None:
    """stub-timeout-seconds ends it, even when it does not listen to signals."""
    more = """
    def initialize(self, args):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
    """
    error = refusal(tmp_path, model_source(more=more), stub_timeout_seconds="1")
    assert error.code is Code.UNAVAILABLE
    assert "stub-timeout-seconds=1" in error.message


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"shm-default-byte-size": "1"}, "shm-default-byte-size=1 can't be smaller than 1 MiB (1048576 bytes)"),
        ({"shm-growth-byte-size": "0"}, "shm-growth-byte-size=0 must be at least 1"),
        ({"stub-timeout-seconds": "x"}, "the Python backend's setting stub-timeout-seconds=x must be a whole number"),
        ({"thread-pool-size": "many"}, "the Python backend's setting thread-pool-size=many must be a whole number"),
    ],
)
def test_settings_are_checked(tmp_path: Path, settings: dict[str, str], text: str) -> None:
    """A setting with a value that means nothing fails the load."""
    with pytest.raises(InferError) as caught, served(tmp_path, model_source(), settings=settings):
        pass
    assert caught.value.message == text


def test_an_environment_of_its_own(tmp_path: Path) -> None:
    """EXECUTION_ENV_PATH may name a folder with bin/python; what it names otherwise is refused."""
    config = ModelConfig(name="m")
    config.parameters["EXECUTION_ENV_PATH"].string_value = "$$TRITON_MODEL_DIRECTORY/env"
    folder = tmp_path / "m" / "env" / "bin"
    with pytest.raises(InferError, match="Failed to get the canonical path"), served(tmp_path, "", config=config):
        pass
    folder.mkdir(parents=True)
    with (
        pytest.raises(InferError, match=r"the environment '.*/m/env' has no bin/python"),
        served(tmp_path, "", config=config),
    ):
        pass
    import sys

    (folder / "python").write_text(f'#!/bin/sh\nMARK=1 exec {sys.executable} "$@"\n')
    (folder / "python").chmod(0o755)
    with served(tmp_path, model_source("return [answer(np.array([os.environ['MARK']]))]"), config=config) as model:
        assert array_of(model.echo().outputs[0]).tolist() == [b"1"]


def test_finalize_runs_at_unload(tmp_path: Path) -> None:
    """close() lets the model finish; close() again does nothing."""
    more = """
    def finalize(self):
        open(os.path.join(pb_utils.get_model_dir(), "finalized"), "a").write("x")
    """
    with served(tmp_path, model_source(more=more)) as model:
        model.echo()
        model.instance.close()
        model.instance.close()
    assert (tmp_path / "m" / "1" / "finalized").read_text() == "x"


def test_is_ready_is_asked(tmp_path: Path) -> None:
    """A model that says no is not ready; ready() gives the newest answer at hand."""
    more = """
    async def is_ready(self):
        return os.path.exists(os.path.join(pb_utils.get_model_dir(), "go"))
    """
    with served(tmp_path, model_source(more=more)) as model:
        model.echo()
        assert not model.model.ready()
        (tmp_path / "m" / "1" / "go").write_text("")
        for _ in range(2):
            model.model.ready()
            model.echo()
        assert model.model.ready()


# ---- auto_complete_config

COMPLETING = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
{body}
    def execute(self, requests):
        pass
"""


def complete(folder: Path, body: str, config: ModelConfig | None = None) -> ModelConfig:
    config = config or ModelConfig(name="m")
    indented = "".join(f"        {line}\n" for line in body.split("\n"))
    files = write_model(folder, COMPLETING.format(body=indented))
    with running_loop() as loop:
        PythonBackend().complete(config, files, Host(loop))
    return config


def test_auto_complete_fills_in(tmp_path: Path) -> None:
    """What the model adds ends up in the config."""
    config = complete(
        tmp_path,
        'config.add_input({"name": "A", "data_type": "TYPE_FP32", "dims": [4, -1], "optional": True})\n'
        'config.add_output({"name": "B", "data_type": "TYPE_STRING", "dims": [1]})\n'
        "config.set_max_batch_size(8)\nconfig.set_dynamic_batching()\nreturn config",
    )
    (into,), (out,) = config.input, config.output
    assert (into.name, into.data_type, list(into.dims), into.optional) == ("A", 11, [4, -1], True)
    assert (out.name, out.data_type, list(out.dims)) == ("B", 13, [1])
    assert config.max_batch_size == 8
    assert config.HasField("dynamic_batching")


def test_auto_complete_completes_half_an_input(tmp_path: Path) -> None:
    """An input without type or dims gets them; what the operator wrote stays."""
    config = ModelConfig(name="m")
    config.input.add(name="A", dims=[4])
    complete(tmp_path, 'config.add_input({"name": "A", "data_type": "TYPE_FP32", "dims": [4]})\nreturn config', config)
    assert [(each.name, each.data_type, list(each.dims)) for each in config.input] == [("A", 11, [4])]


def test_models_without_auto_complete(tmp_path: Path) -> None:
    """Nothing changes."""
    config = ModelConfig(name="m", max_batch_size=3)
    before = config.SerializeToString()
    with running_loop() as loop:
        PythonBackend().complete(config, write_model(tmp_path, model_source()), Host(loop))
    assert config.SerializeToString() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("pass", "auto_complete_config function in model 'm' must return a valid pb.ModelConfig object."),
        ("raise ValueError('ac boom')", "ValueError: ac boom\n\nAt:\n  {file}(6): auto_complete_config\n"),
        ("config.as_dict()['x'] = {1}\nreturn config", "auto_complete_config made a config that is no JSON"),
        (
            'config.add_input({"name": "N", "data_type": "TYPE_FOO", "dims": [1]})\nreturn config',
            "auto_complete_config of model 'm', input 'N': data_type is 'TYPE_FOO'",
        ),
    ],
)
def test_auto_complete_refusals(tmp_path: Path, body: str, text: str) -> None:
    """What goes wrong in the model's own function fails the load in Triton's words."""
    with pytest.raises(InferError) as caught:
        complete(tmp_path, body)
    assert caught.value.message.startswith(text.format(file=tmp_path / "m" / "1" / "model.py"))


def test_merge_checks_dims() -> None:
    """Dims that are no list of numbers are refused by name."""
    with pytest.raises(InferError, match="input 'N': dims is 'x', expected a list of whole numbers"):
        merge(ModelConfig(name="m"), {"input": [{"name": "N", "data_type": "TYPE_FP32", "dims": "x"}]})


@pytest.mark.parametrize("size", [-1, "8", 1 << 40])
def test_merge_checks_the_batch_size(size: object) -> None:
    """What as_dict() lets a model write is checked too."""
    with pytest.raises(InferError, match="set max_batch_size"):
        merge(ModelConfig(name="m"), {"max_batch_size": size})


def test_strings_without_batching(tmp_path: Path) -> None:
    """A model with max_batch_size 0 sees complete shapes, also 0-d ones of several requests at once."""
    spec = ModelSpec("m", 1, 0, (TensorSpec("X", FP32, ()),), (TensorSpec("Y", BYTES, ()),))
    execute = "return [answer(np.array(str(r.inputs()[0].as_numpy()), dtype=object)) for r in requests]"
    with served(tmp_path, model_source(execute), spec) as model:
        form = form_for(spec, ())
        for response in model.ask(*[model.request(np.float32(2), form=form) for _ in range(2)]):
            assert response.outputs[0].shape == ()
            assert array_of(response.outputs[0]).tolist() == b"2.0"


def test_statistics_have_the_workers_times(tmp_path: Path) -> None:
    """Time in execute counts as inference."""
    with served(tmp_path, model_source("time.sleep(0.05)\nreturn [answer(np.ones(1)) for r in requests]")) as model:
        begun = time.monotonic_ns()
        model.echo()
        spent = time.monotonic_ns() - begun
        assert model.stats.compute_infer.ns >= 50_000_000
        assert model.stats.compute_input.ns > 0
        assert model.stats.compute_output.ns > 0
        stats = model.stats
        assert stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns <= spent


@pytest.mark.parametrize("text", ["0", "-1", "many", "5000", ""])
def test_a_limit_of_overlapping_coroutines_is_a_number(tmp_path: Path, text: str) -> None:
    """The load fails with what was expected and what came."""
    config = ModelConfig(name="m", max_batch_size=8)
    config.parameters["MAX_CONCURRENT_EXECUTIONS"].string_value = text
    with (
        pytest.raises(InferError, match=f"is '{text}', expected a number from 1 to 4096"),
        served(tmp_path, model_source(), config=config),
    ):
        """Not reached."""


def test_settings_without_an_effect_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Each by its name, once; those that have one, or are the server's, are not."""
    settings = {"shm-default-byte-size": "1048576", "thread-pool-size": "4", "no-such": "x", "backend-directory": "/"}
    with caplog.at_level("WARNING"):
        for _ in range(2):
            read_settings(settings)
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2
    assert "python,thread-pool-size=4 has no effect: calls of models" in warned[0]
    assert "python,no-such=x has no effect: the Python backend knows no such setting" in warned[1]
