"""Shared memory and classification with NVIDIA's four clients, and what one server does when it is not allowed."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException, serialize_byte_tensor, shared_memory

from support.server import Server
from support.tritonclients import KINDS, Client

CONFIG = """
backend: "identity"
max_batch_size: 8
input [ {{ name: "IN" data_type: TYPE_{0} dims: [ -1 ] }} ]
output [ {{ name: "OUT" data_type: TYPE_{0} dims: [ -1 ] label_filename: "labels.txt" }} ]
"""
PYTHON = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        outputs = [pb_utils.Tensor("OUT", pb_utils.get_input_tensor_by_name(r, "IN").as_numpy() + 1) for r in requests]
        return [pb_utils.InferenceResponse([each]) for each in outputs]
"""
#: Large enough to be used where it lies.
MANY = 50_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("repository")
    for name, datatype in (("floats", "FP32"), ("strings", "STRING"), ("python", "FP32")):
        (root / name / "1").mkdir(parents=True)
        config = CONFIG.format(datatype)
        if name == "python":
            config = config.replace('"identity"', '"python"')
            (root / name / "1" / "model.py").write_text(PYTHON)
        (root / name / "config.pbtxt").write_text(config)
        (root / name / "labels.txt").write_text("no\nyes\n\nperhaps")
    with Server(root, "--allow-client-shm=true") as running:
        yield running


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Client]:
    made = Client(request.param, server.grpc if request.param.startswith("grpc") else server.http)
    yield made
    made.call("unregister_system_shared_memory")
    made.close()


@pytest.fixture
def segment(client: Client) -> Iterator[Any]:
    """A segment of the client's own making, registered in two parts: `in` and `out`."""
    key = f"/conch_test_{os.getpid()}_{client.kind}"
    half = MANY * 4
    handle = shared_memory.create_shared_memory_region(key, key, half * 2)
    client.call("register_system_shared_memory", "in", key, half)
    client.call("register_system_shared_memory", "out", key, half, offset=half)
    yield handle
    with contextlib.suppress(shared_memory.SharedMemoryException):
        shared_memory.destroy_shared_memory_region(handle)


def infer(client: Client, model: str, inputs: Any, outputs: list[Any]) -> Any:
    answer = client._client.infer(model, inputs, outputs=outputs)
    return client._run(answer) if client._loop else answer


def from_region(client: Client, shape: list[int], datatype: str, size: int) -> Any:
    tensor = client._module.InferInput("IN", shape, datatype)
    tensor.set_shared_memory("in", size)
    return tensor


def to_region(client: Client, size: int, offset: int = 0) -> Any:
    output = client._module.InferRequestedOutput("OUT")
    output.set_shared_memory("out", size, offset)
    return output


def names(client: Client) -> list[str]:
    status = client.call("get_system_shared_memory_status")
    return sorted(status.get("regions", {})) if client.is_grpc else [each["name"] for each in status]


@pytest.mark.parametrize("count", [4, MANY])
@pytest.mark.parametrize("model", ["floats", "python"])
def test_tensors_go_in_and_out_by_memory(client: Client, segment: Any, model: str, count: int) -> None:
    """Small and large tensors, with the built-in backend and in a worker process, over and over."""
    added = 1 if model == "python" else 0
    for turn in range(3):
        sent = np.arange(count, dtype=np.float32).reshape(1, count) + turn
        shared_memory.set_shared_memory_region(segment, [sent])
        given, asked = [from_region(client, [1, count], "FP32", count * 4)], [to_region(client, count * 4)]
        result = infer(client, model, given, asked)
        output = result.get_output("OUT")
        found = (output.datatype, output.shape) if client.is_grpc else (output["datatype"], output["shape"])
        assert (found[0], list(found[1])) == ("FP32", [1, count])
        got = shared_memory.get_contents_as_numpy(segment, np.float32, [1, count], offset=MANY * 4)
        assert np.array_equal(got, sent + added)
        plain = infer(client, model, given, [client._module.InferRequestedOutput("OUT")])
        assert np.array_equal(plain.as_numpy("OUT"), sent + added)


def test_strings_go_in_and_out_by_memory(client: Client, segment: Any) -> None:
    """BYTES with their lengths, as the client lays them out."""
    sent = np.array([[b"one", b"", "zwölf".encode()]], dtype=object)
    shared_memory.set_shared_memory_region(segment, [serialize_byte_tensor(sent)])
    size = sum(4 + len(each) for each in sent.ravel())
    infer(client, "strings", [from_region(client, [1, 3], "BYTES", size)], [to_region(client, 100, 8)])
    got = shared_memory.get_contents_as_numpy(segment, np.object_, [1, 3], offset=MANY * 4 + 8)
    assert np.array_equal(got, sent)


def test_regions_are_listed_and_unregistered(client: Client, segment: Any) -> None:
    """One, all, and none of another kind."""
    assert names(client) == ["in", "out"]
    status = client.call("get_cuda_shared_memory_status")
    assert status.get("regions", {}) == {} if client.is_grpc else status == []
    client.call("unregister_cuda_shared_memory", "in")
    client.call("unregister_system_shared_memory", "in")
    assert names(client) == ["out"]
    with pytest.raises(InferenceServerException, match="Unable to find shared memory region: 'in'"):
        infer(client, "floats", [from_region(client, [1, 1], "FP32", 4)], [to_region(client, 4)])
    client.call("unregister_system_shared_memory")
    assert names(client) == []
    assert client.refusal("get_system_shared_memory_status", "in") == (
        "NOT_FOUND", "Unable to find system shared memory region: 'in'",
    )  # fmt: skip


def test_gpu_memory_needs_a_gpu(client: Client) -> None:
    """A handle that nobody has shared is refused, with or without a GPU."""
    handle = bytes(64)
    if not client.is_grpc:
        handle = base64.b64encode(handle)
    code, text = client.refusal("register_cuda_shared_memory", "gpu", handle, 0, 16)
    assert code == "INVALID_ARG"
    assert text in (
        "failed to register CUDA shared memory region: 'gpu', GPUs not supported",
        "failed to register shared memory region: invalid args",
    )


def test_classes_are_the_largest_values(client: Client) -> None:
    """Two rows, the best three of each, with the labels of the model's file."""
    tensor = client._module.InferInput("IN", [2, 4], "FP32")
    tensor.set_data_from_numpy(np.array([[0.5, 3, 2, -1], [9, 8, 7, 10]], dtype=np.float32))
    result = infer(client, "floats", [tensor], [client._module.InferRequestedOutput("OUT", class_count=3)])
    assert result.as_numpy("OUT").tolist() == [
        [b"3.000000:1:yes", b"2.000000:2", b"0.500000:0:no"],
        [b"10.000000:3:perhaps", b"9.000000:0:no", b"8.000000:1:yes"],
    ]


def test_strings_have_no_classes(client: Client) -> None:
    """The client is told, and the server lives on."""
    tensor = client._module.InferInput("IN", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"x"]], dtype=object))
    with pytest.raises(
        InferenceServerException, match="class result not available for output due to unsupported type 'BYTES'"
    ):
        infer(client, "strings", [tensor], [client._module.InferRequestedOutput("OUT", class_count=3)])


@pytest.mark.parametrize("kind", KINDS)
def test_clients_cannot_register_unless_they_may(tmp_path: Path, off: Server, kind: str) -> None:
    """Without `--allow-client-shm=true` nobody registers anything; the status is empty and can be had."""
    client = Client(kind, off.grpc if kind.startswith("grpc") else off.http)
    text = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
    assert client.refusal("register_system_shared_memory", "r", "/x", 4) == ("UNSUPPORTED", text)
    assert client.refusal("unregister_system_shared_memory") == ("UNSUPPORTED", text)
    assert client.refusal("unregister_cuda_shared_memory", "r") == ("UNSUPPORTED", text)
    assert names(client) == []
    metadata = client.call("get_server_metadata")
    assert {"classification", "system_shared_memory", "cuda_shared_memory"} <= set(metadata["extensions"])
    client.close()


@pytest.fixture(scope="module")
def off(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("off")
    (root / "m" / "1").mkdir(parents=True)
    (root / "m" / "config.pbtxt").write_text(CONFIG.format("FP32"))
    with Server(root, "--exit-on-error=false", "--strict-readiness=false") as running:
        yield running


def test_a_model_without_its_label_file_is_not_loaded(off: Server) -> None:
    """It says which file is missing."""
    client = Client("http", off.http)
    reason = next(each["reason"] for each in client.call("get_model_repository_index") if each["name"] == "m")
    assert "labels.txt: No such file or directory" in reason
    client.close()
