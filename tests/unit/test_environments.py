"""Python environments of models, for real: folders, archives, and environments made for requirements."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import conda_pack
import pytest
import venv_pack

from conch.backend.api import Host, ModelFiles
from conch.backend.python import installer
from conch.backend.python.backend import PythonBackend
from conch.backend.python.environment import environment
from conch.backend.python.requirements import read_text
from conch.config.environments import activated, environment_options
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import Code, InferError
from support.environments import interpreter, make_venv
from support.python_models import array_of, model_source, running_loop, served, write_model

TELL = """
import json
names = ("PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "PYTHONHOME", "SAID")
found = {"version": list(sys.version_info[:2]), "prefix": sys.prefix, **{n: os.environ.get(n) for n in names}}
found["foreign"] = [m for m in ("msgspec", "google.protobuf", "uvloop") if m in sys.modules]
return [answer(np.array([json.dumps(found)], dtype=object))]
"""
COMPLETING = """
import packaging
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_output({"name": packaging.__version__, "data_type": "TYPE_FP32", "dims": [1]})
        return config
    def execute(self, requests):
        pass
"""


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With numpy, of the Python that runs the tests."""
    return make_venv(tmp_path_factory.mktemp("venvs") / "plain", "numpy")


@contextmanager
def in_environment(folder: Path, path: str, execute: str = TELL) -> Iterator[Any]:
    config = ModelConfig(name="m", max_batch_size=8)
    config.parameters["EXECUTION_ENV_PATH"].string_value = path
    with served(folder, model_source(execute), config=config, settings=kept(folder)) as model:
        yield model


def tell(folder: Path, path: str) -> dict[str, Any]:
    """What a model says that runs in this environment."""
    with in_environment(folder, path) as model:
        found: dict[str, Any] = json.loads(array_of(model.echo().outputs[0])[0])
    return found


def kept(folder: Path, **more: str) -> dict[str, str]:
    return {"environment-cache": str(folder / "cache"), **{name.replace("_", "-"): text for name, text in more.items()}}


def refusal(folder: Path, path: str) -> InferError:
    with pytest.raises(InferError) as caught, in_environment(folder, path):
        pass
    return caught.value


# ---- folders


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.9", "3.10", "3.11", "3.12", "3.13"])
def test_environments_of_every_python(tmp_path: Path, version: str) -> None:
    """A worker needs nothing but numpy and Python 3.9 or newer; nothing of the server's packages gets in."""
    python = interpreter(version)
    if not python:
        pytest.skip(f"no Python {version} here")
    environment = make_venv(tmp_path / "env", "numpy", python=python)
    found = tell(tmp_path, str(environment))
    assert found["version"] == [int(part) for part in version.split(".")]
    assert found["prefix"] == found["VIRTUAL_ENV"] == str(environment)
    assert found["PATH"].split(":")[0] == f"{environment}/bin"
    assert found["LD_LIBRARY_PATH"].split(":")[0] == f"{environment}/lib"
    assert found["foreign"] == []


@pytest.mark.slow
def test_a_python_that_is_too_old(tmp_path: Path) -> None:
    """Its version is named, and the oldest that would do."""
    python = interpreter("3.8")
    if not python:
        pytest.skip("no Python 3.8 here")
    error = refusal(tmp_path, str(make_venv(tmp_path / "env", python=python)))
    assert error.message.startswith("the Python environment of model 'm' is Python 3.8.")
    assert "expected 3.9 or newer" in error.message


def test_an_environment_without_numpy(tmp_path: Path) -> None:
    """The line that mends it is told."""
    error = refusal(tmp_path, str(make_venv(tmp_path / "env")))
    assert error.code is Code.INTERNAL
    assert error.message == (
        "the Python environment of model 'm' has no numpy, which every Python model needs "
        f"('{tmp_path}/env/bin/python')"
    )
    assert error.hint == f"install it: {tmp_path}/env/bin/python -m pip install numpy"


def test_activate_is_heeded(tmp_path: Path) -> None:
    """Variables that bin/activate sets are there, but those of the place it was made in are not."""
    environment = tmp_path / "env"
    (environment / "bin").mkdir(parents=True)
    (environment / "conda-meta").mkdir()
    (environment / "bin" / "python").symlink_to(sys.executable)
    (environment / "bin" / "activate").write_text(
        "echo chatter\nexport SAID='two\nlines' CONDA_PREFIX=/elsewhere PATH=/elsewhere/bin:$PATH\n"
    )
    config = ModelConfig(name="m")
    config.parameters["EXECUTION_ENV_PATH"].string_value = "env"
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "env").symlink_to(environment)
    found = chosen(tmp_path, config)
    assert found.variables is not None
    assert found.variables["SAID"] == "two\nlines"
    assert found.variables["CONDA_PREFIX"] == str(environment)
    assert found.variables["PATH"].startswith(f"{environment}/bin:/elsewhere/bin:")


def test_scripts_of_conda_packages(tmp_path: Path) -> None:
    """An environment that has no `activate` of its own still has its packages' scripts run."""
    environment = tmp_path / "m" / "env"
    scripts = environment / "etc" / "conda" / "activate.d"
    scripts.mkdir(parents=True)
    (environment / "bin").mkdir()
    (environment / "bin" / "python").symlink_to(sys.executable)
    (scripts / "gdal.sh").write_text("export SAID=gdal\n")
    config = ModelConfig(name="m")
    config.parameters["EXECUTION_ENV_PATH"].string_value = "$$TRITON_MODEL_DIRECTORY/env"
    variables = chosen(tmp_path, config).variables
    assert variables is not None
    assert variables["SAID"] == "gdal"


def test_variables_of_an_active_environment(tmp_path: Path) -> None:
    """The server's own environment is not active in it; what else is set stays."""
    (tmp_path / "lib").mkdir()
    before = {"PATH": "/a:/b", "PYTHONHOME": "/x", "VIRTUAL_ENV": "/y", "LD_LIBRARY_PATH": "/c", "HOME": "/h"}
    assert activated(tmp_path, before) == {
        "PATH": f"{tmp_path}/bin:/a:/b",
        "VIRTUAL_ENV": str(tmp_path),
        "LD_LIBRARY_PATH": f"{tmp_path}/lib:/c",
        "HOME": "/h",
    }


def test_a_dangling_interpreter(tmp_path: Path) -> None:
    """A virtual environment from another machine is told apart from none."""
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python").symlink_to("python3")
    (tmp_path / "env" / "bin" / "python3").symlink_to("/no/python3.11")
    error = refusal(tmp_path, str(tmp_path / "env"))
    assert error.message == (
        f"model 'm': bin/python of the environment '{tmp_path}/env' is a link to '/no/python3.11', which is not here"
    )


def test_what_has_no_effect_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A stub for another Python, and requirements beside an environment that the config names; each once."""
    (tmp_path / "m" / "env" / "bin").mkdir(parents=True)
    (tmp_path / "m" / "env" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "m" / "triton_python_backend_stub").touch()
    file = requirements(tmp_path, "packaging==1\n")
    config = ModelConfig(name="m")
    config.parameters["EXECUTION_ENV_PATH"].string_value = "env"
    with caplog.at_level("INFO", "conch.backend"):
        for _ in range(2):
            chosen(tmp_path, config)
    assert [record.getMessage() for record in caplog.records] == [
        f"model 'm': '{tmp_path}/m/triton_python_backend_stub' has no effect, no stub is needed to run another Python",
        f"model 'm': '{file}' is not used, its config names an environment",
    ]


# ---- archives


def pack(venv: Path, archive: Path, top: str = ".") -> Path:
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(venv, top)
    return archive


@pytest.mark.slow
def test_an_archive_is_unpacked_once(tmp_path: Path, venv: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Models and loads share one copy of an archive, wherever it lies; conda-unpack is run in it, once."""
    (tmp_path / "m").mkdir()
    unpacker = venv / "bin" / "conda-unpack"
    unpacker.write_text("import pathlib\np = pathlib.Path('unpacked')\np.open('a').write('x')\nprint('mended')\n")
    try:
        archive = pack(venv, tmp_path / "m" / "env.tar.gz")
    finally:
        unpacker.unlink()
    with caplog.at_level("INFO"):
        found = tell(tmp_path, "$$TRITON_MODEL_DIRECTORY/env.tar.gz")
        other = tmp_path / "other.tar.gz"
        archive.rename(other)
        again = tell(tmp_path, str(other))
    (entry,) = (tmp_path / "cache").glob("archive-*/env")
    assert found["prefix"] == again["prefix"] == str(entry)
    assert (entry / "unpacked").read_text() == "x"
    lines = [record.getMessage() for record in caplog.records if record.name == "conch.backend"]
    assert [line.partition(" in ")[0] for line in lines] == [
        f"model 'm': unpacking the Python environment '{archive}'",
        "model 'm': mended",
        "model 'm': unpacked the Python environment",
    ]


@pytest.mark.slow
def test_an_archive_with_a_folder_in_it(tmp_path: Path, venv: Path) -> None:
    """`tar czf env.tar.gz env` does as well as conda-pack."""
    (tmp_path / "m").mkdir()
    pack(venv, tmp_path / "m" / "env.tar.gz", "env")
    found = tell(tmp_path, "env.tar.gz")
    assert found["prefix"].endswith("/env/env")


@pytest.mark.slow
def test_archives_of_venv_pack(tmp_path: Path, venv: Path) -> None:
    """What venv-pack makes is understood."""
    venv_pack.pack(prefix=str(venv), output=str(tmp_path / "env.tar.gz"), compress_level=1)
    found = tell(tmp_path, str(tmp_path / "env.tar.gz"))
    assert "archive-" in found["prefix"]


@pytest.mark.slow
def test_archives_of_conda_pack(tmp_path: Path) -> None:
    """What conda-pack makes is understood: files that name the old place name the new one after the unpacking."""
    old = make_venv(tmp_path / "old", "numpy")
    (old / "conda-meta").mkdir()
    (old / "conda-meta" / "history").touch()
    conda_pack.pack(prefix=str(old), output=str(tmp_path / "env.tar.gz"), compress_level=1)
    shutil.rmtree(old)
    found = tell(tmp_path, str(tmp_path / "env.tar.gz"))
    place = found["CONDA_PREFIX"]
    assert found["prefix"] == place
    assert found["VIRTUAL_ENV"] is None
    assert str(old) not in Path(place, "bin", "f2py").read_text()


def test_a_failing_conda_unpack(tmp_path: Path) -> None:
    """The load fails with its last lines, and nothing is kept."""
    source = tmp_path / "source" / "bin"
    source.mkdir(parents=True)
    (source / "python").symlink_to(sys.executable)
    (source / "conda-unpack").write_text("raise SystemExit('no prefix')")
    error = refusal(tmp_path, str(pack(source.parent, tmp_path / "env.tar.gz")))
    assert "conda-unpack of the environment" in error.message
    assert error.message.endswith("Its last lines:\nno prefix")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_archive_without_python(tmp_path: Path) -> None:
    """What is missing is named, and what was expected."""
    (tmp_path / "source" / "lib").mkdir(parents=True)
    error = refusal(tmp_path, str(pack(tmp_path / "source", tmp_path / "env.tar.gz")))
    assert error.message == f"model 'm': the environment '{tmp_path}/env.tar.gz' has no bin/python"
    assert "an archive of one (.tar.gz)" in error.hint
    assert list((tmp_path / "cache").iterdir()) == []


# ---- requirements


def requirements(folder: Path, text: str, place: str = "m/1") -> Path:
    (folder / place).mkdir(parents=True, exist_ok=True)
    file = folder / place / "requirements.txt"
    file.write_text(text)
    return file


def chosen(folder: Path, config: ModelConfig | None = None, **more: str) -> Any:
    """The environment of the model in `folder`."""
    return environment(
        config or ModelConfig(name="m"), ModelFiles(folder / "m", 1), environment_options(kept(folder, **more))
    )


def version_seen(folder: Path) -> str:
    execute = "import packaging\nreturn [answer(np.array([packaging.__version__], dtype=object))]"
    with served(folder, model_source(execute), settings={"environment-cache": str(folder.parent / "cache")}) as model:
        return str(array_of(model.echo().outputs[0])[0], "ascii")


@pytest.mark.slow
def test_models_with_conflicting_requirements(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each has the version that it asks for, made once, with numpy; what is done is told."""
    for name, version in (("a", "21.3"), ("b", "24.0"), ("c", "21.3")):
        requirements(tmp_path / name, f"packaging=={version}  # of {name}\n")
    with caplog.at_level("INFO", "conch.backend"):
        assert [version_seen(tmp_path / name) for name in "abc"] == ["21.3", "24.0", "21.3"]
    assert len(list((tmp_path / "cache").glob("requirements-*/ready"))) == 2
    lines = [record.getMessage() for record in caplog.records]
    assert sum("making a Python environment" in line for line in lines) == 2
    assert sum("packaging==21.3" in line for line in lines) == 1
    assert sum("made the Python environment in" in line for line in lines) == 2


@pytest.mark.slow
def test_auto_complete_runs_in_the_environment(tmp_path: Path) -> None:
    """The config is completed by the packages that the model will have."""
    requirements(tmp_path, "packaging==24.0\n", "m")
    config = ModelConfig(name="m")
    with running_loop() as loop:
        PythonBackend().complete(config, write_model(tmp_path, COMPLETING), Host(loop, kept(tmp_path)))
    assert [each.name for each in config.output] == ["24.0"]


@pytest.mark.slow
def test_without_uv(tmp_path: Path) -> None:
    """venv and pip do it too."""
    file = requirements(tmp_path, "packaging==24.0\n")
    lock = os.open(tmp_path, os.O_RDONLY)
    options = environment_options(kept(tmp_path))
    try:
        installer.install(read_text(file), options, tmp_path / "env", lock, "model 'm'", uv="")
    finally:
        os.close(lock)
    asked = [str(tmp_path / "env" / "bin" / "python"), "-c", "import packaging, numpy; print(packaging.__version__)"]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "24.0\n"


@pytest.mark.parametrize(
    ("text", "more"), [("packaging\nnumpy>=1\n", {}), ("packaging==21.3\n", {"environments": "off"})]
)
def test_the_servers_own_python(tmp_path: Path, text: str, more: dict[str, str]) -> None:
    """Where it has everything, or the operator wants it so, nothing is made."""
    requirements(tmp_path, text)
    found = chosen(tmp_path, **more)
    assert (found.python, found.variables) == (sys.executable, None)
    assert not (tmp_path / "cache").exists()


def test_a_requirement_that_nobody_has(tmp_path: Path) -> None:
    """The installer's own words, the requirement, and how to do without."""
    file = requirements(tmp_path, "conch-no-such-package==7\n")
    with pytest.raises(InferError) as caught:
        chosen(tmp_path)
    error = caught.value
    assert error.message.startswith(
        f"model 'm': the Python environment for '{file}' cannot be made, uv ended with exit code 1 (it complains of "
        "conch-no-such-package==7). Its last lines:\n"
    )
    assert "--backend-config=python,environments=off" in error.hint
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        ({"environment_offline": "true"}, "environment-offline=true takes nothing from the network"),
        ({"environment_index": "http://me:secret@127.0.0.1:9/simple"}, "the package index cannot be reached from here"),
    ],
)
def test_without_a_network(tmp_path: Path, more: dict[str, str], hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that it is the network, and what helps; no password is shown."""
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    requirements(tmp_path, "packaging==21.3\n")
    with pytest.raises(InferError) as caught:
        chosen(tmp_path, **more)
    assert caught.value.hint.startswith(hint)
    assert "secret" not in caught.value.message


@pytest.mark.slow
def test_a_folder_of_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, wheels in a folder do."""
    wheels = tmp_path / "wheels"
    download = ["-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), "packaging==21.3", "pyparsing", "numpy"]
    subprocess.run([sys.executable, *download], check=True)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    requirements(tmp_path, "packaging==21.3\n")
    found = chosen(tmp_path, environment_offline="true", environment_find_links=str(wheels))
    assert found.python.startswith(str(tmp_path / "cache"))
    found.close()


def test_an_environment_that_wants_another_python(tmp_path: Path) -> None:
    """requires-python is checked before anything is installed."""
    (tmp_path / "m" / "1").mkdir(parents=True)
    project = '[project]\nname = "m"\nrequires-python = "<3.9"\ndependencies = ["packaging"]\n'
    (tmp_path / "m" / "pyproject.toml").write_text(project)
    with pytest.raises(InferError, match=r"wants Python <3\.9, and this server's is "):
        chosen(tmp_path)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"environments": "maybe"}, "environments=maybe must be auto or off"),
        ({"environment-keep": "0"}, "environment-keep=0 must be a whole number from 1"),
        ({"environment-offline": "perhaps"}, "environment-offline=perhaps must be true or false"),
    ],
)
def test_settings_are_checked(settings: dict[str, str], text: str) -> None:
    """A value that means nothing fails the load, with what was expected."""
    with pytest.raises(InferError) as caught:
        environment_options(settings)
    assert caught.value.message == f"the Python backend's setting {text}"


@pytest.mark.parametrize(
    ("settings", "environ", "folder"),
    [
        ({"environment-cache": "/x"}, {"HOME": "/h"}, "/x"),
        ({}, {"HOME": "/h"}, "/h/.cache/conch/environments"),
        ({}, {"HOME": "/h", "XDG_CACHE_HOME": "/c"}, "/c/conch/environments"),
    ],
)
def test_where_environments_are_kept(settings: dict[str, str], environ: dict[str, str], folder: str) -> None:
    """Where the operator says, else in the user's cache."""
    assert environment_options(settings, environ).cache == Path(folder)
