"""Running models on OpenVINO: types, shapes, batches, large and small outputs."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino", reason="pip install 'conch[openvino]'")

from google.protobuf import text_format
from onnx import helper

from conch.backend.api import Placement
from conch.backend.openvino import branches
from conch.backend.openvino.branches import LEAST_WORK, measure
from conch.backend.openvino.network import compile_network, make_core
from conch.backend.openvino.plan import Plan, plan_model
from conch.pb.model_config_pb2 import ModelConfig
from conch.types import dtype
from conch.types.dtype import BYTES, DataType
from conch.types.error import Code, InferError
from conch.types.tensor import Tensor, to_numpy
from support.onnx_models import Served, add_sub, graph, identity
from support.openvino_models import network, serve, serve_twice, write_ir

IO = '{1} {{ name: "{0}" data_type: TYPE_FP32 dims: [ -1, -1 ] }} '
NUMBERS = [each for each in dtype.ALL if each is not BYTES]


def config(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())


def parameters(**values: str) -> str:
    return " ".join([f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in values.items()])


def values(tensor: Tensor) -> np.ndarray[Any, Any]:
    return to_numpy(tensor.datatype, tensor.shape, tensor.data)


def ask(served: Served, **inputs: np.ndarray[Any, Any]) -> Any:
    """The outputs of one request (or its error)."""
    return served.run(served.request(inputs))[0]


def some(datatype: DataType, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    count = np.arange(1, int(np.prod(shape)) + 1, dtype=np.int64).reshape(shape)
    return (count % 2 if datatype is dtype.BOOL else count).astype(datatype.numpy)


def wide(width: int) -> Any:
    """`y` is `x` + 1, `width` numbers a row."""
    nodes = [helper.make_node("Add", ["x", "one"], ["y"])]
    one = (dtype.FP32, ["batch", width])
    return graph(nodes, {"x": one}, {"y": one}, {"one": np.ones(1, np.float32)})


@pytest.mark.parametrize("datatype", NUMBERS, ids=str)
@pytest.mark.parametrize("rows", [(3,), (1, 2), (0,), (3, 1, 0, 2, 1)], ids=str)
def test_every_type_comes_back_as_it_went_in(tmp_path: Path, datatype: DataType, rows: tuple[int, ...]) -> None:
    """Each request of a batch gets exactly its own rows, in every datatype but BYTES, also where there are none."""
    served = serve(tmp_path, identity(datatype), config("max_batch_size: 8"))
    sent = [some(datatype, (count, 2)) for count in rows]
    answers = served.run(*[served.request({"x": each}) for each in sent])
    for answer, array in zip(answers, sent, strict=True):
        assert isinstance(answer, dict), answer
        assert answer["y"].datatype is datatype
        assert answer["y"].shape == array.shape
        np.testing.assert_array_equal(values(answer["y"]), array)


def test_strings_are_refused(tmp_path: Path) -> None:
    """OpenVINO's Python interface aborts the process over them: the load says so instead."""
    with pytest.raises(
        InferError, match="input 'x' holds strings, which the openvino backend does not support"
    ) as found:
        serve(tmp_path, identity(BYTES))
    assert found.value.code is Code.UNSUPPORTED
    assert "onnxruntime" in found.value.hint


@pytest.mark.parametrize("rows", range(10))
@pytest.mark.parametrize("least", [0, LEAST_WORK], ids=["branches", "any"])
def test_batches_of_every_size(tmp_path: Path, rows: int, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes with a branch and others, one request after the other or as one."""
    monkeypatch.setattr(branches, "LEAST_WORK", least)
    served = serve(tmp_path, wide(3), config("max_batch_size: 16"))
    sent = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    np.testing.assert_array_equal(values(ask(served, x=sent)["y"]), sent + 1)
    answers = served.run(*[served.request({"x": each[np.newaxis]}) for each in sent])
    assert [values(answer["y"])[0].tolist() for answer in answers if isinstance(answer, dict)] == (sent + 1).tolist()


@pytest.mark.parametrize("rows", range(1, 7))
def test_branches_keep_ports_apart(tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several inputs and outputs, one of which is an input as it came: each has its place in every branch."""
    monkeypatch.setattr(branches, "LEAST_WORK", 0)
    pair = {name: (dtype.FP32, ["n", 2]) for name in ("a", "b")}
    nodes = [helper.make_node("Sub", ["a", "b"], ["difference"]), helper.make_node("Identity", ["b"], ["same"])]
    served = serve(tmp_path, graph(nodes, pair, {name: (dtype.FP32, ["n", 2]) for name in ("same", "difference")}))
    a, b = np.arange(rows * 4, dtype=np.float32).reshape(2, rows, 2)
    answer = ask(served, a=a, b=b * b)
    np.testing.assert_array_equal(values(answer["same"]), b * b)
    np.testing.assert_array_equal(values(answer["difference"]), a - b * b)


def test_only_wanted_outputs_are_answered(tmp_path: Path) -> None:
    """Each request of a batch gets the outputs that it asked for, in the config's order; without a list, all."""
    served = serve(tmp_path, add_sub())
    both = {"a": np.array([[5, 6]], np.float32), "b": np.array([[1, 2]], np.float32)}
    batch = [served.request(both, ("difference",)), served.request(both)]
    first, second = served.run(*batch)
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert values(first["difference"]).tolist() == [[4, 4]]
    assert list(first) == ["difference"]
    assert list(second) == ["sum", "difference"]


@pytest.mark.parametrize("width", [4, 50_000])
def test_answers_stay_as_they_are(tmp_path: Path, width: int) -> None:
    """What a request was answered does not change when the next one runs, whether it was copied or given away."""
    served = serve(tmp_path, wide(width))
    sent = [np.full((2, width), number, np.float32) for number in range(4)]
    answers = [ask(served, x=each) for each in sent]
    for answer, array in zip(answers, sent, strict=True):
        np.testing.assert_array_equal(values(answer["y"]), array + 1)


def test_inputs_are_read_where_they_are(tmp_path: Path) -> None:
    """A model that could compute in place does not write into the client's bytes, which may begin anywhere."""
    served = serve(tmp_path, graph([helper.make_node("Relu", ["x"], ["y"])],
        {"x": (dtype.FP32, ["n", 2])}, {"y": (dtype.FP32, ["n", 2])}))  # fmt: skip
    request = served.request({"x": np.array([[-1, 2]], np.float32)})
    raw = b"?" + bytes(request.data[0])
    request.data = (memoryview(raw)[1:],)
    (answer,) = served.run(request)
    assert isinstance(answer, dict)
    assert values(answer["y"]).tolist() == [[0, 2]]
    assert np.frombuffer(raw[1:], np.float32).tolist() == [-1, 2]


def test_a_model_without_a_batch(tmp_path: Path) -> None:
    """Dimensions of any size, and a scalar, which clients send and get as one element."""
    nodes = [helper.make_node("Mul", ["x", "k"], ["y"]), helper.make_node("ReduceSum", ["y"], ["s"], keepdims=0)]
    model = graph(
        nodes,
        {"x": (dtype.FP32, [2, "n"]), "k": (dtype.FP32, [])},
        {"y": (dtype.FP32, [2, "n"]), "s": (dtype.FP32, [])},
    )
    served = serve(tmp_path, model)
    assert [list(each.dims) for each in served.config.input] == [[2, -1], [1]]
    for count in (1, 3):
        answer = ask(served, x=np.ones((2, count), np.float32), k=np.array([3], np.float32))
        assert values(answer["y"]).tolist() == [[3] * count] * 2
        assert values(answer["s"]).tolist() == [6 * count]
        assert answer["s"].shape == (1,)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_fixed_batch_becomes_any(tmp_path: Path, rows: int) -> None:
    """A model that was exported for one row batches where the config says so."""
    served = serve(tmp_path, identity(dtype.FP32, [1, 2]), config("max_batch_size: 8 dynamic_batching {}"))
    sent = some(dtype.FP32, (rows, 2))
    assert list(served.config.input[0].dims) == [2]
    np.testing.assert_array_equal(values(ask(served, x=sent)["y"]), sent)


def test_other_types_at_the_edge(tmp_path: Path) -> None:
    """A config may ask for other types than the model's: OpenVINO converts (Triton does so too)."""
    served = serve(
        tmp_path,
        wide(2),
        config(
            'max_batch_size: 4 input { name: "x" data_type: TYPE_UINT8 dims: 2 } '
            'output { name: "y" data_type: TYPE_FP16 dims: 2 }'
        ),
    )
    answer = ask(served, x=np.array([[1, 255]], np.uint8))
    assert answer["y"].datatype is dtype.FP16
    assert values(answer["y"]).tolist() == [[2, 256]]


def test_a_fixed_batch_is_padded(tmp_path: Path) -> None:
    """SKIP_OV_DYNAMIC_BATCHSIZE runs max_batch_size rows each time; ENABLE_BATCH_PADDING makes up what is missing."""
    text = "max_batch_size: 4 " + parameters(SKIP_OV_DYNAMIC_BATCHSIZE="YES", ENABLE_BATCH_PADDING="YES")
    served = serve(tmp_path, wide(2), config(text))
    for rows in (0, 1, 4):
        sent = some(dtype.FP32, (rows, 2))
        np.testing.assert_array_equal(values(ask(served, x=sent)["y"]), sent + 1)


def test_a_fixed_batch_without_padding(tmp_path: Path) -> None:
    """Fewer rows are refused, in Triton's words."""
    text = "max_batch_size: 4 " + parameters(SKIP_OV_DYNAMIC_BATCHSIZE="YES")
    served = serve(tmp_path, wide(2), config(text))
    error = ask(served, x=some(dtype.FP32, (3, 2)))
    assert isinstance(error, InferError)
    assert error.message.startswith("expected requests with batch size '4', got '3'... this error can be avoided by")
    assert isinstance(ask(served, x=some(dtype.FP32, (4, 2))), dict)


def test_inputs_take_the_config_s_shapes(tmp_path: Path) -> None:
    """RESHAPE_IO_LAYERS: a model exported for one size runs at another, and at any."""
    text = parameters(RESHAPE_IO_LAYERS="yes") + 'input { name: "x" data_type: TYPE_FP32 dims: [ -1, 6 ] } '
    text += 'output { name: "y" data_type: TYPE_FP32 dims: [ -1, 6 ] }'
    served = serve(tmp_path, identity(dtype.FP32, [1, 2]), config(text))
    for rows in (1, 3):
        sent = some(dtype.FP32, (rows, 6))
        np.testing.assert_array_equal(values(ask(served, x=sent)["y"]), sent)


def test_tensors_without_names_have_their_nodes(tmp_path: Path) -> None:
    """Triton refuses models whose outputs have no names; ours go by the name of what makes them."""
    made = network(wide(2), tmp_path)
    made.outputs[0].get_tensor().set_names(set())
    write_ir(tmp_path, made)
    served = serve(tmp_path)
    (name,) = [each.name for each in served.config.output]
    assert name
    assert values(ask(served, x=np.zeros((1, 2), np.float32))[name]).tolist() == [[1, 1]]


def test_bf16_is_less_exact(tmp_path: Path) -> None:
    """HINT_BF16 has an effect where the CPU can, and by default answers are those of float32."""
    random = np.random.default_rng(1)
    weights = random.standard_normal((256, 256)).astype(np.float32)
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (dtype.FP32, ["n", 256])}, {"y": (dtype.FP32, ["n", 256])}, {"w": weights},
    )  # fmt: skip
    sent = random.standard_normal((4, 256)).astype(np.float32)
    exact = sent.astype(np.float64) @ weights.astype(np.float64)
    found = values(ask(serve(tmp_path / "a", model), x=sent)["y"])
    assert np.abs(found - exact).max() < 1e-3
    rough = values(ask(serve(tmp_path / "b", model, config(parameters(HINT_BF16="YES"))), x=sent)["y"])
    assert np.abs(rough - exact).max() < 2
    if "avx512_bf16" in Path("/proc/cpuinfo").read_text():
        assert np.abs(rough - exact).max() > 1e-3


def test_wide_integers_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """OpenVINO's CPU device computes 64-bit integers with 32: the first value that is cut off is logged, once."""
    served = serve(tmp_path, identity(dtype.INT64))
    ask(served, x=np.array([[2**31 - 1, -(2**31)]], np.int64))
    assert not caplog.messages
    for _ in range(2):
        ask(served, x=np.array([[2**40, 3]], np.int64))
    (message,) = caplog.messages
    assert "input 'x' holds 1099511627776; OpenVINO computes INT64 on CPUs with 32 bits" in message


def test_what_the_model_refuses(tmp_path: Path) -> None:
    """An error of a run is its requests' error, without the lines about OpenVINO's sources; the next run works."""
    nodes = [helper.make_node("MatMul", ["a", "b"], ["y"])]
    any_size = (dtype.FP32, ["k", "n"])
    text = IO.format("a", "input") + IO.format("b", "input") + IO.format("y", "output")
    served = serve(tmp_path, graph(nodes, {"a": any_size, "b": any_size}, {"y": any_size}), config(text))
    error = ask(served, a=np.ones((2, 3), np.float32), b=np.ones((4, 2), np.float32))
    assert isinstance(error, InferError)
    assert error.code is Code.INTERNAL
    assert error.message.startswith("openvino error in running inference : ")
    assert "src/" not in error.message
    good = ask(served, a=np.ones((2, 3), np.float32), b=np.ones((3, 2), np.float32))
    assert values(good["y"]).tolist() == [[3, 3], [3, 3]]


def test_cancelled_requests_do_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that nobody waits for is left out, and the others of its piece are answered."""
    monkeypatch.setattr(branches, "LEAST_WORK", 0)
    served = serve(tmp_path, wide(2))
    requests = [served.request({"x": np.full((1, 2), number, np.float32)}) for number in range(4)]
    requests[1].cancelled = True
    answers = served.run(*requests)
    assert isinstance(answers[1], InferError)
    assert answers[1].code is Code.CANCELLED
    assert [values(each["y"])[0, 0] for each in answers if isinstance(each, dict)] == [1, 3, 4]


def test_two_threads_share_a_model(tmp_path: Path) -> None:
    """Instances of one model run side by side and never see one another's tensors."""
    served = serve_twice(tmp_path, wide(64))
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(50):
            sent = np.full((turn % 5 + 1, 64), number * 1000 + turn, np.float32)
            if not np.array_equal(values(ask(served[number], x=sent)["y"]), sent + 1):
                wrong.append(turn)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_model_s_memory_is_not_shared(tmp_path: Path) -> None:
    """A model that remembers its last input begins anew with each request: nobody sees what others sent."""
    from openvino import Model, opset6

    x = opset6.parameter([1, 2], np.float32, name="x")
    start = opset6.constant(np.zeros((1, 2), np.float32))
    before = opset6.read_value(start, "memory", np.float32, [1, 2])
    total = opset6.add(x, before)
    made = Model([opset6.result(total)], [opset6.assign(total, "memory")], [x], "m")
    made.inputs[0].get_tensor().set_names({"x"})
    made.outputs[0].get_tensor().set_names({"y"})
    write_ir(tmp_path, made)
    served = serve(tmp_path)
    for number in (5, 7):
        assert values(ask(served, x=np.full((1, 2), number, np.float32))["y"]).tolist() == [[number, number]]


@pytest.mark.parametrize(
    ("said", "instances", "streams", "threads"),
    [
        ({}, 2, 2, 2),
        ({}, 1, 1, 2),
        ({"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "2"}, 2, 1, 2),
        ({"PERFORMANCE_HINT": "LATENCY"}, 1, 1, 2),
    ],
)
def test_streams_and_threads(tmp_path: Path, said: dict[str, str], instances: int, streams: int, threads: int) -> None:
    """What the plan says is what OpenVINO is compiled with."""
    plan = plan_model(config(parameters(**said)), {})
    core = make_core(plan)
    compiled = compile_network("m", core, plan, network(wide(2), tmp_path), 2, instances)
    assert (compiled.get_property("NUM_STREAMS"), compiled.get_property("INFERENCE_NUM_THREADS")) == (streams, threads)


def test_properties_that_openvino_does_not_know(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Newer versions have no COMPILATION_NUM_THREADS for CPUs: then it is named as without effect."""
    served = serve(tmp_path, wide(2), config("max_batch_size: 1 " + parameters(COMPILATION_NUM_THREADS="1")))
    assert isinstance(ask(served, x=np.zeros((1, 2), np.float32)), dict)
    known = "COMPILATION_NUM_THREADS" in make_core(Plan()).get_property("CPU", "SUPPORTED_PROPERTIES")
    assert known or any("'COMPILATION_NUM_THREADS' has no effect" in message for message in caplog.messages)


def test_streams_that_nobody_uses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """More streams than instances: a warning says how many instances would use them."""
    # OpenVINO makes no more streams than there are cores.
    serve(tmp_path, wide(2), config(parameters(NUM_STREAMS="2")), Placement("m_0_0", "CPU", instances=1))
    assert len(os.sched_getaffinity(0)) == 1 or any(
        "instance_group has count 1: set count: 2" in message for message in caplog.messages
    )


def test_the_work_of_a_network(tmp_path: Path) -> None:
    """Convolutions count what they multiply, groups apart; networks with inputs of any size count as none."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "g"], ["y"], kernel_shape=[1, 1], group=4),
    ]
    kernels = {"w": np.ones((8, 2, 3, 3), np.float32), "g": np.ones((8, 2, 1, 1), np.float32)}

    def made(size: int | str) -> Any:
        shape = ["n", 2, size, 5]
        return network(
            graph(nodes, {"x": (dtype.FP32, shape)}, {"y": (dtype.FP32, ["n", 8, size, 5])}, kernels), tmp_path
        )

    weights, work = measure(made(5))
    assert work == 8 * 25 * 2 * 9 + 8 * 25 * 2
    assert weights >= 4 * (8 * 2 * 9 + 8 * 2)
    assert measure(made("any")) == (0, 0)


def test_two_names_of_one_output(tmp_path: Path) -> None:
    """A tensor may be answered under several names, large ones too, whose memory is given away."""
    made = network(wide(30_000), tmp_path)
    made.outputs[0].get_tensor().set_names({"y", "z"})
    write_ir(tmp_path, made)
    entry = '{} {{ name: "{}" data_type: TYPE_FP32 dims: 30000 }} '
    text = "max_batch_size: 4 " + "".join(
        [entry.format(*each) for each in (("input", "x"), ("output", "y"), ("output", "z"))]
    )
    served = serve(tmp_path, None, config(text))
    for number in range(3):
        x = np.full((1, 30_000), number, np.float32)
        answer = ask(served, x=x)
        np.testing.assert_array_equal(values(answer["y"]), x + 1)
        np.testing.assert_array_equal(values(answer["z"]), x + 1)


def test_two_names_of_one_input(tmp_path: Path) -> None:
    """They cannot both be given, and the input that neither names would have no value."""
    row = (dtype.FP32, ["n", 3])
    made = network(graph([helper.make_node("Add", ["x", "w"], ["y"])], {"x": row, "w": row}, {"y": row}), tmp_path)
    made.inputs[0].get_tensor().set_names({"x", "xx"})
    write_ir(tmp_path, made)
    entry = '{} {{ name: "{}" data_type: TYPE_FP32 dims: 3 }} '
    text = "".join([entry.format(*each) for each in (("input", "x"), ("input", "xx"), ("output", "y"))])
    with pytest.raises(InferError, match="inputs 'x' and 'xx' are two names of one tensor"):
        serve(tmp_path, None, config("max_batch_size: 4 " + text))


@pytest.mark.parametrize("key", ["INFERENCE_NUM_THREADS", "NUM_STREAMS"])
@pytest.mark.parametrize("digits", [20, 5000])
def test_numbers_that_no_machine_has(key: str, digits: int) -> None:
    """They are refused as what they are, before OpenVINO's bindings are given them."""
    with pytest.raises(InferError, match=f"expected the parameter '{key}' to be"):
        plan_model(config('name: "m" ' + parameters(**{key: "9" * digits})), {})
