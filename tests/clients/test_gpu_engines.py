"""TensorRT engines and GPU pipelines of DALI with the real libraries: only where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc

from support.server import Server

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="this machine has no NVIDIA GPU"),
]

PIPELINE = """
import nvidia.dali as dali
import nvidia.dali.types as types
from nvidia.dali.plugin.triton import autoserialize

@autoserialize
@dali.pipeline_def(batch_size=8, num_threads=1, device_id=0, output_dtype=types.FLOAT, output_ndim=1)
def pipe():
    return dali.fn.external_source(device="cpu", name="x", dtype=types.FLOAT, ndim=1).gpu() * 2.0
"""


def built(define: Callable[[Any, Any, Any], Any]) -> bytes:
    """An engine of one output `y`, which `define` makes of the library, a network and a profile."""
    trt = pytest.importorskip("tensorrt", reason="pip install 'conch[tensorrt]'")
    pytest.importorskip("cuda.bindings", reason="pip install cuda-python")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network, profile = builder.create_network(0), builder.create_optimization_profile()
    y = define(trt, network, profile)
    y.name = "y"
    network.mark_output(y)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


def rows_of_four(trt: Any, network: Any, profile: Any) -> Any:
    """The input `x`: 1 to 8 rows of 4."""
    profile.set_shape("x", (1, 4), (4, 4), (8, 4))
    return network.add_input("x", trt.float32, (-1, 4))


def doubling_engine() -> bytes:
    """`y` = `x` + `x`, built for this machine's GPU."""

    def define(trt: Any, network: Any, profile: Any) -> Any:
        x = rows_of_four(trt, network, profile)
        return network.add_elementwise(x, x, trt.ElementWiseOperation.SUM).get_output(0)

    return built(define)


def reshaping_engine() -> bytes:
    """`y` is `x` in the shape that the values of `size` tell."""

    def define(trt: Any, network: Any, profile: Any) -> Any:
        layer = network.add_shuffle(rows_of_four(trt, network, profile))
        layer.set_input(1, network.add_input("size", trt.int32, (2,)))
        profile.set_shape_input("size", (1, 4), (4, 4), (8, 4))
        return layer.get_output(0)

    return built(define)


def searching_engine() -> bytes:
    """`y` are the places in `x` that are not 0, one a column."""

    def define(trt: Any, network: Any, profile: Any) -> Any:
        return network.add_non_zero(rows_of_four(trt, network, profile)).get_output(0)

    return built(define)


def ask(server: Server, model: str, output: str, x: np.ndarray[Any, Any], *size: int) -> np.ndarray[Any, Any]:
    given = {"x": (x, "FP32"), **({"size": (np.array(size, np.int32), "INT32")} if size else {})}
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        inputs = []
        for name, (array, datatype) in given.items():
            inputs.append(tritonclient.grpc.InferInput(name, list(array.shape), datatype))
            inputs[-1].set_data_from_numpy(array)
        answer: np.ndarray[Any, Any] = client.infer(model, inputs).as_numpy(output)
        return answer


def test_an_engine_is_served(tmp_path: Path) -> None:
    """Every batch size of the profile, more than once, so that recorded graphs run too."""
    (tmp_path / "double" / "1").mkdir(parents=True)
    (tmp_path / "double" / "1" / "model.plan").write_bytes(doubling_engine())
    (tmp_path / "double" / "config.pbtxt").write_text("optimization { cuda { graphs: true } }")
    with Server(tmp_path) as server:
        server.ready_seconds()
        for rows in (1, 8, 3) * 4:
            x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
            np.testing.assert_array_equal(ask(server, "double", "y", x), x * 2)


def test_engines_hand_tensors_on(tmp_path: Path) -> None:
    """What one engine has computed stays on the GPU for the next; any batch size, with recorded graphs too."""
    for name, graphs in (("first", "true"), ("second", "false")):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.plan").write_bytes(doubling_engine())
        (tmp_path / name / "config.pbtxt").write_text(f"optimization {{ cuda {{ graphs: {graphs} }} }}")
    (tmp_path / "e" / "1").mkdir(parents=True)
    (tmp_path / "e" / "config.pbtxt").write_text(
        'platform: "ensemble" max_batch_size: 8\n'
        'input { name: "x" data_type: TYPE_FP32 dims: 4 } output { name: "y" data_type: TYPE_FP32 dims: 4 }\n'
        'ensemble_scheduling { step { model_name: "first" model_version: -1 '
        'input_map { key: "x" value: "x" } output_map { key: "y" value: "t" } } '
        'step { model_name: "second" model_version: -1 '
        'input_map { key: "x" value: "t" } output_map { key: "y" value: "y" } } }'
    )
    with Server(tmp_path) as server:
        server.ready_seconds()
        for rows in (1, 8, 3) * 4:
            x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
            np.testing.assert_array_equal(ask(server, "e", "y", x), x * 4)


def test_values_of_a_shape_tensor_tell_the_shape(tmp_path: Path) -> None:
    """Of each request anew, also larger than what the engine was tuned for."""
    (tmp_path / "reshape" / "1").mkdir(parents=True)
    (tmp_path / "reshape" / "1" / "model.plan").write_bytes(reshaping_engine())
    with Server(tmp_path) as server:
        server.ready_seconds()
        for rows, size in ((1, (1, 4)), (8, (8, 4)), (3, (6, 2)), (1, (4, 1))) * 2:
            x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
            np.testing.assert_array_equal(ask(server, "reshape", "y", x, *size), x.reshape(size))


def test_outputs_are_as_large_as_the_data_makes_them(tmp_path: Path) -> None:
    """None, few, all."""
    (tmp_path / "search" / "1").mkdir(parents=True)
    (tmp_path / "search" / "1" / "model.plan").write_bytes(searching_engine())
    with Server(tmp_path) as server:
        server.ready_seconds()
        for rows, found in ((1, 0), (8, 3), (2, 8), (8, 32), (4, 1)):
            x = np.zeros((rows, 4), np.float32)
            x.flat[:found] = 1
            answer = ask(server, "search", "y", x)
            assert answer.shape == (2, found)
            np.testing.assert_array_equal(answer, np.argwhere(x).T)


def test_a_pipeline_on_a_gpu_is_served(tmp_path: Path) -> None:
    """What a pipeline computes on the GPU comes back to the host."""
    pytest.importorskip("nvidia.dali", reason="pip install nvidia-dali-cuda130")
    (tmp_path / "double" / "1").mkdir(parents=True)
    (tmp_path / "double" / "1" / "dali.py").write_text(PIPELINE)
    (tmp_path / "double" / "config.pbtxt").write_text('backend: "dali" output [ { name: "y" } ]')
    with Server(tmp_path) as server:
        server.ready_seconds()
        x = np.arange(12, dtype=np.float32).reshape(3, 4)
        np.testing.assert_array_equal(ask(server, "double", "y", x), x * 2)
