"""PyTorch models as clients see them: trained on real digits, served in every form, compared with PyTorch itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as httpclient

from support.server import CONCH, Server

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'conch[torch]'")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from support.torch_digits import (  # noqa: E402
    CONFIG,
    TOLERANCE,
    alone,
    folder,
    load,
    over_grpc,
    over_http,
    trained,
    write_exported,
    write_script,
)  # fmt: skip
from support.until import until  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SOURCE = """
import torch

from layers import block


class Digits(torch.nn.Module):
    def __init__(self, hidden: int = 32):
        super().__init__()
        self.layers = block(hidden)

    def forward(self, x):
        return self.layers(x)
"""
LAYERS = """
import torch


def block(hidden):
    return torch.nn.Sequential(
        torch.nn.Linear(64, hidden), torch.nn.BatchNorm1d(hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10)
    )
"""


def lay(repository: Path, model: Any) -> None:
    write_script(model, folder(repository, "script") / "model.pt")
    # Nothing but the file: it knows all that a config says.
    write_exported(model, folder(repository, "exported", "") / "model.pt2")
    module = folder(repository, "module", CONFIG + 'runtime: "model.py"\n')
    (module / "model.py").write_text(SOURCE)
    (module / "layers.py").write_text(LAYERS)
    torch.save(model.state_dict(), module / "model.pt")
    safe = folder(repository, "safe", CONFIG)
    shutil.copy(module / "model.py", safe)
    shutil.copy(module / "layers.py", safe)
    try:
        from safetensors.torch import save_file

        save_file(model.state_dict(), safe / "model.safetensors")
    except ImportError:
        torch.save(model.state_dict(), safe / "model.pth")


PARAMETERS = """
import torch


class Tells(torch.nn.Module):
    def forward(self, x):
        if x[0, 0] > 100:
            raise ValueError("more than a hundred")
        told = [torch.get_num_threads(), torch.is_inference_mode_enabled(), torch.compiler.is_compiling()]
        return x + torch.tensor(told + [0.0] * 61)
"""
TELLS = (
    CONFIG.replace("dims: [ 10 ]", "dims: [ 64 ]")
    + """
parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "3" } }
parameters { key: "INFERENCE_MODE" value { string_value: "%s" } }
"""
)
COMPILED = """
parameters { key: "TORCH_COMPILE_OPTIONAL_PARAMETERS" value { string_value: '{"backend": "eager"}' } }
"""


def tells(repository: Path, name: str, config: str) -> None:
    (folder(repository, name, config) / "model.py").write_text(PARAMETERS)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path, Any, Any, Any]]:
    repository = tmp_path_factory.mktemp("models")
    model, images, labels = trained(1)
    lay(repository, model)
    with Server(repository, "--model-control-mode=explicit", "--load-model=*", timeout=300) as server:
        server.ready_seconds()
        yield server, repository, model, images, labels


@pytest.mark.parametrize("name", ["script", "exported", "module", "safe"])
def test_answers_are_pytorchs_own(served: Any, name: str) -> None:
    """Each form of the model gives what PyTorch gives when it is called directly, alone and in batches."""
    server, _, model, images, labels = served
    expected = alone(model, images)
    assert (expected.argmax(1) == labels).mean() > 0.85, "the model has learned"
    np.testing.assert_allclose(over_http(server, name, images[:4]), expected[:4], **TOLERANCE)
    answers = over_grpc(server, name, images[:24])
    np.testing.assert_allclose(np.concatenate(answers), expected[:24], **TOLERANCE)


def test_batches_are_formed(served: Any) -> None:
    """Requests that meet are one execution."""
    server, _, _, images, _ = served

    def met() -> bool:
        over_grpc(server, "script", images[:24])
        with httpclient.InferenceServerClient(server.http) as client:
            found = client.get_inference_statistics("script")["model_stats"][0]
        return bool(found["execution_count"] < found["inference_count"])

    until(met)


def test_exported_programs_need_no_config(served: Any) -> None:
    """A .pt2 alone is a model: its names, types, open sizes and batching are in its config."""
    server, *_ = served
    with urllib.request.urlopen(f"http://{server.http}/v2/models/exported/config") as answer:
        config = json.load(answer)
    assert config["max_batch_size"] == 4
    assert [(each["name"], each["data_type"], each["dims"]) for each in config["input"]] == [("x", "TYPE_FP32", [64])]
    assert config["dynamic_batching"] is not None
    assert config["instance_group"][0]["count"] == 2


def test_modules_have_one_worker_process(served: Any) -> None:
    """A Python module gets one process unless its config asks for more, TorchScript two instances in the server."""
    server, *_ = served
    counts = {}
    for name in ("script", "module"):
        with urllib.request.urlopen(f"http://{server.http}/v2/models/{name}/config") as answer:
            counts[name] = json.load(answer)["instance_group"][0]["count"]
    assert counts == {"script": 2, "module": 1}


@pytest.mark.parametrize("name", ["script", "exported", "module"])
def test_reloads_serve_the_new_file(served: Any, name: str) -> None:
    """After a load the new weights answer; a broken file is refused in one sentence and the old ones go on."""
    server, repository, first, images, _ = served
    second, *_ = trained(2)
    version = repository / name / "1"
    file = version / {"script": "model.pt", "exported": "model.pt2", "module": "model.pt"}[name]

    def write(model: Any) -> None:
        if name == "script":
            write_script(model, file)
        elif name == "exported":
            write_exported(model, file)
        else:
            torch.save(model.state_dict(), file)

    write(second)
    load(server, name)
    np.testing.assert_allclose(over_http(server, name, images[:4]), alone(second, images[:4]), **TOLERANCE)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refusal = load(server, name)
    assert f"failed to load model '{name}'" in refusal
    assert "is no PyTorch file, or only a part of one" in refusal
    np.testing.assert_allclose(over_http(server, name, images[:4]), alone(second, images[:4]), **TOLERANCE)
    write(first)
    assert load(server, name) == ""


@pytest.mark.parametrize(("mode", "more", "told"), [("false", "", [3, 0, 0]), ("true", COMPILED, [3, 1, 1])])
def test_parameters_hold_in_workers(served: Any, mode: str, more: str, told: list[int]) -> None:
    """Threads, inference mode and torch.compile are as the config says; what the module raises reaches the client."""
    server, repository, *_ = served
    name = f"tells_{mode}"
    tells(repository, name, TELLS % mode + more)
    assert load(server, name) == ""
    assert over_http(server, name, np.zeros((2, 64), np.float32))[:, :3].tolist() == [told, told]
    if not more:
        with pytest.raises(Exception, match="PyTorch execute failure: more than a hundred"):
            over_http(server, name, np.full((1, 64), 101, np.float32))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import torch\nx = torch.nn.Linear", "Cannot find a subclass of torch.nn.Module in 'model.py'"),
        (
            SOURCE.replace("hidden: int = 32", "hidden"),
            "no torch.nn.Module in 'model.py' can be made without arguments",
        ),
        (SOURCE.replace("= 32", "= 16"), "the weights in 'model.pt' are not those of Digits in 'model.py'"),
        (SOURCE.replace("(self, x)", "(self, x, y)"), "configuration expects 1 inputs, model provides 2"),
        (SOURCE.replace("return self.layers(x)", "return self.layers(x"), "was never closed"),
    ],
    ids=["no module", "arguments", "weights", "inputs", "syntax"],
)
def test_modules_that_cannot_be_served_say_why(served: Any, source: str, text: str) -> None:
    """One clear sentence in the load's answer; the server goes on."""
    server, repository, *_ = served
    version = repository / "broken" / "1"
    if not version.exists():
        shutil.copytree(repository / "module", repository / "broken")
    (version / "model.py").write_text(source)
    assert text in load(server, "broken")
    assert over_http(server, "script", np.zeros((1, 64), np.float32)).shape == (1, 10)


def test_a_lone_file_is_served(tmp_path: Path) -> None:
    """`conch serve model.pt2` needs nothing else; `conch serve model.pt` says what config TorchScript needs."""
    model, images, _ = trained(1)
    write_exported(model, tmp_path / "digits.pt2")
    with Server(tmp_path / "digits.pt2", command=CONCH) as server:
        server.ready_seconds()
        np.testing.assert_allclose(over_http(server, "digits", images[:4]), alone(model, images[:4]), **TOLERANCE)
    write_script(model, tmp_path / "digits.pt")
    said = subprocess.run([*CONCH, str(tmp_path / "digits.pt")], capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert "a TorchScript file does not say the types and shapes of its tensors" in said.stderr
    assert 'input [ { name: "x" data_type: TYPE_FP32' in said.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor compiles with g++, which is not here")
def test_compiled_packages_are_served(tmp_path: Path) -> None:
    """An AOTInductor package is told from an exported program by its content, and answers from a worker process."""
    model, images, _ = trained(1)
    program = write_exported(model, Path())
    version = folder(tmp_path, "compiled", CONFIG + 'platform: "torch_aoti"\n')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._inductor.aoti_compile_and_package(program, package_path=str(version / "model.pt2"))
    with Server(tmp_path, timeout=300) as server:
        server.ready_seconds()
        expected = alone(model, images[:32])
        np.testing.assert_allclose(over_http(server, "compiled", images[:32]), expected, **TOLERANCE)
        np.testing.assert_allclose(np.concatenate(over_grpc(server, "compiled", images[:8])), expected[:8], **TOLERANCE)
