"""Engines that read shapes from tensors, and outputs whose shape the data makes, with stand-ins for TensorRT."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from conch.backend.tensorrt.memory import Hosted, Passage
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.device import OnDevice, gpu
from conch.types.error import Code, InferError
from support import fake_tensorrt
from support.devices import FakeCuda
from support.fake_tensorrt import Log
from support.onnx_models import Served
from support.tensorrt_models import load, refused, rows

RESIZE = fake_tensorrt.plan(program="resize")
POSITIVE = fake_tensorrt.plan(program="positive")
WHOLE = """
  input { name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] } output { name: "y" data_type: TYPE_FP32 dims: -1 }"""


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    return fake_tensorrt.install(monkeypatch)


def ask(served: Served, stays: frozenset[str] = frozenset(), **inputs: Any) -> Any:
    """The outputs as arrays, or as what stays on the GPU; or the error."""
    request = served.request(inputs)
    request.form.stays = stays
    (answer,) = served.run(request)
    if isinstance(answer, InferError):
        return answer
    return {
        name: each.data
        if isinstance(each.data, OnDevice)
        else np.frombuffer(each.data, each.datatype.numpy).reshape(each.shape)
        for name, each in answer.items()
    }


def size(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int32)


# ---- shape tensors


def test_shape_tensors_are_described(tmp_path: Path, log: Log) -> None:
    """A config is completed with them, and without batches."""
    expected = text_format.Parse(
        """name: "m" backend: "tensorrt" platform: "tensorrt_plan"
        input { name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] }
        input { name: "size" data_type: TYPE_INT32 dims: 2 is_shape_tensor: true }
        output { name: "y" data_type: TYPE_FP32 dims: [ -1, -1 ] }
        output { name: "count" data_type: TYPE_INT32 dims: 1 is_shape_tensor: true }""",
        ModelConfig(),
    )
    assert load(tmp_path, RESIZE).config == expected


def test_values_of_a_shape_tensor_tell_the_shape(tmp_path: Path, log: Log) -> None:
    """Of each request anew; shape tensors that are outputs are answered too."""
    served = load(tmp_path, RESIZE)
    for count, values in ((2, (2, 3)), (4, (4, 3)), (4, (2, 6)), (1, (3, 1)), (4, (3, 4))):
        found = ask(served, x=rows(count), size=size(*values))
        np.testing.assert_array_equal(found["y"], rows(count).reshape(values) * 2)
        np.testing.assert_array_equal(found["count"], [3 * count])


def test_values_that_the_network_cannot_use(tmp_path: Path, log: Log) -> None:
    """TensorRT says why, before anything is run."""
    error = ask(load(tmp_path, RESIZE), x=rows(2), size=size(2, 2))
    assert error.message == "model 'm', TensorRT: reshape changes volume"
    assert log.count("execute 0") == 0


def test_values_that_the_engine_was_not_built_for(tmp_path: Path, log: Log) -> None:
    """They are refused with the range."""
    error = ask(load(tmp_path, RESIZE), x=rows(2), size=size(5, 1))
    assert error.code is Code.INVALID_ARG
    assert error.message == (
        "model 'm', tensor 'size': value [5, 1] is outside of what the engine was built for (profile 0: [1, 1] to "
        "[4, 6])"
    )


def test_shape_tensors_never_lie_on_the_gpu(tmp_path: Path, log: Log) -> None:
    """Nobody may leave one there, and none stays; other tensors of the model may."""
    served = load(tmp_path, RESIZE)
    found = ask(served, frozenset({"y", "count"}), x=rows(2), size=size(2, 3))
    assert isinstance(found["y"], OnDevice)
    assert not isinstance(found["count"], OnDevice)


def test_the_profile_is_chosen_by_the_values(tmp_path: Path, log: Log) -> None:
    """Both profiles take the shapes: the one that was tuned for these values runs."""
    spans = [((1, 1), (1, 6), (6, 6)), ((1, 1), (6, 1), (6, 6))]
    content = fake_tensorrt.plan(program="resize", values=spans, profiles=[((1, 3), (2, 3), (4, 3))] * 2)
    served = load(tmp_path, content, 'instance_group { name: "g" kind: KIND_GPU profile: ["0", "1"] }')
    for values in ((2, 3), (3, 2)):
        ask(served, x=rows(2), size=size(*values))
    assert [call for call in log.calls if call.startswith("execute")] == ["execute 0", "execute 1"]


def test_shape_tensors_and_batches(tmp_path: Path, log: Log) -> None:
    """Requests with shapes of their own cannot share a run."""
    error = refused(lambda: load(tmp_path, RESIZE, "max_batch_size: 4"))
    assert error.code is Code.UNSUPPORTED
    assert error.message == (
        "unable to load model 'm', 'size' is a shape tensor and max_batch_size is 4: requests with shape tensors "
        "cannot be joined to batches here"
    )


@pytest.mark.parametrize(
    ("mark", "name"), [("", "'size' is a shape tensor"), ("is_shape_tensor: true", "'x' is no shape tensor")]
)
def test_configs_say_which_tensors_tell_shapes(tmp_path: Path, log: Log, mark: str, name: str) -> None:
    """As the engine does."""
    config = f"""
      input {{ name: "size" data_type: TYPE_INT32 dims: 2 {mark} }}
      input {{ name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] {mark} }}"""
    error = refused(lambda: load(tmp_path, RESIZE, config))
    assert error.message.startswith(f"unable to load model 'm', input {name} of the engine")


@pytest.mark.parametrize(("content", "name"), [(RESIZE, "size"), (POSITIVE, "y")])
def test_runs_of_changing_sizes_are_not_recorded(
    tmp_path: Path, log: Log, caplog: pytest.LogCaptureFixture, content: bytes, name: str
) -> None:
    """With optimization.cuda.graphs the log says why there are none."""
    config = WHOLE if content is POSITIVE else ""
    served = load(tmp_path, content, f"{config} optimization {{ cuda {{ graphs: true }} }}")
    inputs = {"x": rows(2)} if content is POSITIVE else {"x": rows(2), "size": size(2, 3)}
    for _ in range(3):
        ask(served, **inputs)
    assert log.count("launch") == 0
    assert caplog.messages == [
        f"model 'm' is served without CUDA graphs: a recorded run would not see that '{name}' has other sizes"
    ]


# ---- outputs whose shape the data makes


def test_outputs_are_as_large_as_the_data_makes_them(tmp_path: Path, log: Log) -> None:
    """Their memory grows with them, and nothing of it is left."""
    served = load(tmp_path, POSITIVE, WHOLE)
    for x in (rows(1), -rows(2), rows(4), np.float32([[-1, 7, -1]])):
        np.testing.assert_array_equal(ask(served, x=x)["y"], x[x > 0])
    assert len(log.allocated) == 2
    served.instance.close()
    assert log.allocated == {}


def test_such_outputs_stay_on_the_gpu(tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in memory of its own, whatever comes after it."""
    cuda = FakeCuda()
    monkeypatch.setattr("conch.memory.cuda.find_driver", lambda: cuda)
    served = load(tmp_path, POSITIVE, WHOLE)
    found = [ask(served, frozenset("y"), x=rows(count))["y"] for count in (1, 4, 2)]
    assert [each.device for each in found] == [gpu(0)] * 3
    for each, count in zip(found, (1, 4, 2), strict=True):
        np.testing.assert_array_equal(np.frombuffer(bytes(each), np.float32), rows(count)[rows(count) > 0])


def test_no_memory_for_such_an_output(tmp_path: Path, log: Log) -> None:
    """The request fails, and the next one is answered."""
    served = load(tmp_path, POSITIVE, WHOLE)
    log.room = 16
    assert ask(served, x=rows(4)).message == "model 'm', TensorRT cannot run the batch (its log says why)"
    log.room = 1 << 20
    assert len(ask(served, x=rows(4))["y"]) == 11


def test_such_an_output_is_no_batch(tmp_path: Path, log: Log) -> None:
    """Where its first dimension is not that of the requests, the error says what to set."""
    error = ask(load(tmp_path, POSITIVE), x=rows(3))
    assert error.message.startswith("output 'y' of model 'm' has shape [8], expected 3 rows")
    assert "max_batch_size: 0" in error.hint


# ---- memory


def test_a_passage_keeps_its_address_while_it_has_room(log: Log) -> None:
    """It is told when the address is another one; alignment beyond cudaMalloc's own is kept too."""
    _, cuda = fake_tensorrt.made(log)
    passage = Passage(cuda, 8, gpu(0))
    address = passage.address
    assert not passage.reserve(8)
    assert passage.address == address
    assert passage.reserve(9)
    for alignment in (512, 4096):
        passage.reserve(9, alignment)
        assert passage.address % alignment == 0
        assert not passage.reserve(4, alignment)
    assert len(log.allocated) == 1
    passage.close()
    passage.close()
    assert log.allocated == {}


def test_hosted_memory_is_written_at_once() -> None:
    """An answer is not changed by the next request."""
    hosted = Hosted(8)
    assert hosted.send([b"abcd", b"efgh"], None, np.empty) == []
    assert ctypes.string_at(hosted.address, 8) == b"abcdefgh"
    found = hosted.fetch(4, None, np.empty)
    hosted.send([b"ABCD"], None, np.empty)
    assert bytes(found) == b"abcd"
