"""Our own logic around TensorRT, with stand-ins for the libraries: profiles, shapes, graphs, refusals."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from conch.backend.api import Host, ModelFiles, Placement, Staying
from conch.backend.tensorrt.backend import TensorRtBackend
from conch.backend.tensorrt.memory import Hosted
from conch.backend.tensorrt.options import plan_engine
from conch.backend.tensorrt.profiles import choose
from conch.backend.tensorrt.signature import Range, Signature, Slot
from conch.memory.pinned import PinnedPool
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.device import OnDevice, as_buffer, gpu
from conch.types.dtype import FP32
from conch.types.error import Code, InferError
from conch.types.request import InferRequest
from support import fake_tensorrt
from support.devices import FakeCuda, lying
from support.fake_tensorrt import Log
from support.onnx_models import Served, make_spec
from support.tensorrt_models import load, refused, rows

#: The tensors of "resize".
SHAPES = """
  input { name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] }
  input { name: "size" data_type: TYPE_INT32 dims: 2 is_shape_tensor: true }
  output { name: "y" data_type: TYPE_FP32 dims: [ -1, -1 ] }
  output { name: "count" data_type: TYPE_INT32 dims: 1 is_shape_tensor: true }"""
#: The engine's tensors, without batches.
WHOLE = """
  input { name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] } output { name: "y" data_type: TYPE_FP32 dims: [ -1, 3 ] }"""


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    return fake_tensorrt.install(monkeypatch)


def run(served: Served, *counts: int) -> list[Any]:
    outcomes = served.run(*[served.request({"x": rows(count)}) for count in counts])
    return [
        each if isinstance(each, InferError) else np.frombuffer(each["y"].data, np.float32).reshape(each["y"].shape)
        for each in outcomes
    ]


def test_a_batch_is_computed(tmp_path: Path, log: Log) -> None:
    """Requests of a batch run as one and get their own rows."""
    served = load(tmp_path)
    first, second = run(served, 1, 3)
    np.testing.assert_array_equal(first, rows(1) * 2)
    np.testing.assert_array_equal(second, rows(3) * 2)
    assert log.count("execute 0") == 1


def test_the_config_comes_from_the_engine(tmp_path: Path, log: Log) -> None:
    """Tensors, the largest batch of the first profile and a batcher."""
    expected = text_format.Parse(
        """name: "m" backend: "tensorrt" platform: "tensorrt_plan" max_batch_size: 4 dynamic_batching {}
        input { name: "x" data_type: TYPE_FP32 dims: 3 } output { name: "y" data_type: TYPE_FP32 dims: 3 }""",
        ModelConfig(),
    )
    assert load(tmp_path).config == expected


def test_a_groups_profiles(tmp_path: Path, log: Log) -> None:
    """An instance has the profiles that its group names, and runs a batch by the nearest of those that take it."""
    group = 'instance_group { name: "g" kind: KIND_GPU profile: ["0", "1"] }'
    served = load(tmp_path, config=group)
    assert served.config.max_batch_size == 16
    for count in (1, 4, 5, 16):
        np.testing.assert_array_equal(run(served, count)[0], rows(count) * 2)
    assert [call for call in log.calls if call.startswith("execute")] == [
        "execute 0",
        "execute 0",
        "execute 1",
        "execute 1",
    ]


def test_a_profile_that_the_engine_lacks(tmp_path: Path, log: Log) -> None:
    """It is named, with those that there are."""
    error = refused(lambda: load(tmp_path, config='instance_group { name: "g" kind: KIND_GPU profile: ["7"] }'))
    assert error.message == "unable to load model 'm', profile '7' of instance group is not one of the engine's 2"


def test_graphs(tmp_path: Path, log: Log) -> None:
    """With optimization.cuda.graphs a shape runs once as ever, is recorded the next time, and is launched from then."""
    served = load(tmp_path, config="optimization { cuda { graphs: true } }")
    for _ in range(4):
        np.testing.assert_array_equal(run(served, 2)[0], rows(2) * 2)
    np.testing.assert_array_equal(run(served, 3)[0], rows(3) * 2)
    assert (log.count("execute 0"), log.count("launch")) == (3, 3)
    served.instance.close()
    assert log.count("exec destroyed") == 1


def test_an_engine_that_cannot_be_recorded(tmp_path: Path, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """It is run as ever, and the log says so once."""
    served = load(tmp_path, fake_tensorrt.plan(unrecordable=True), "optimization { cuda { graphs: true } }")
    for _ in range(3):
        np.testing.assert_array_equal(run(served, 2)[0], rows(2) * 2)
    assert log.count("launch") == 0
    assert [each.split(":")[0] for each in caplog.messages] == ["model 'm' is served without CUDA graphs"]


@pytest.mark.parametrize("how", ["raising", "uninstantiable"])
def test_a_recording_that_goes_wrong(tmp_path: Path, log: Log, how: str) -> None:
    """Its stream records no longer, nothing is left of it, and the engine is run as ever."""
    served = load(tmp_path, fake_tensorrt.plan(**{how: True}), "optimization { cuda { graphs: true } }")
    for _ in range(4):
        np.testing.assert_array_equal(run(served, 2)[0], rows(2) * 2)
    assert log.recording is None
    assert log.count("launch") == 0
    assert log.count("graph destroyed") == 1


def test_an_output_larger_than_its_memory(tmp_path: Path, log: Log) -> None:
    """Outputs that shrink as inputs grow get more memory, and what was recorded for the old is forgotten."""
    served = load(tmp_path, fake_tensorrt.plan(shrinking=True), f"{WHOLE} optimization {{ cuda {{ graphs: true }} }}")
    for count, size in ((4, 16), (4, 16), (4, 16), (1, 19), (4, 16)):
        np.testing.assert_array_equal(run(served, count)[0], np.resize(rows(count), (size, 3)) * 2)
    assert (log.count("launch"), log.count("exec destroyed")) == (2, 1)
    assert len(log.allocated) == 2


def test_closing_frees_everything(tmp_path: Path, log: Log) -> None:
    """The device's memory and the stream."""
    served = load(tmp_path)
    assert len(log.allocated) == 2
    served.instance.close()
    served.instance.close()
    assert log.allocated == {}
    assert log.count("stream destroyed") == 1


def test_a_run_that_fails(tmp_path: Path, log: Log) -> None:
    """Every request of the batch gets the error."""
    errors = run(load(tmp_path, fake_tensorrt.plan(failing=True)), 1, 2)
    assert [error.message for error in errors] == ["model 'm', TensorRT cannot run the batch (out of luck)"] * 2


def test_a_shape_that_no_profile_takes(tmp_path: Path, log: Log) -> None:
    """The refusal says what the engine was built for."""
    served = load(tmp_path, fake_tensorrt.plan(shape=(-1, -1), profiles=[((2, 3), (2, 3), (4, 3))]))
    (error,) = run(served, 1)
    assert error.code is Code.INVALID_ARG
    assert error.message == (
        "model 'm', tensor 'x': shape [1, 3] is outside of what the engine was built for (profile 0: [2, 3] to [4, 3])"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no engine", "TensorRT 10.9 cannot read '{path}': Magic tag does not match"),
        (
            fake_tensorrt.plan(kind="FP8"),
            "tensor 'x' has the data type FP8, for which the inference protocol has no name",
        ),
        (fake_tensorrt.plan(format="CHW32"), "tensor 'x' has the format CHW32, which is not supported"),
        (
            fake_tensorrt.plan(shape_tensor=True),
            "tensor 'x' is one that only some of the shape tensors of TensorRT are: on the GPU, or of any size",
        ),
        (
            fake_tensorrt.plan(program="resize", values=[]),
            "profile 0 of the engine has no values for shape tensor 'size'",
        ),
    ],
)
def test_engines_that_cannot_be_served(tmp_path: Path, log: Log, content: bytes, message: str) -> None:
    """One sentence says why."""
    error = refused(lambda: load(tmp_path, content))
    assert message.format(path=tmp_path / "1" / "model.plan") in error.message
    assert log.allocated == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("max_batch_size: 9", "configuration has max_batch_size 9, the engine's profiles allow 4"),
        (
            'max_batch_size: 4 input { name: "x" data_type: TYPE_FP16 dims: 3 }',
            "configuration expects datatype TYPE_FP16 for input 'x', model provides TYPE_FP32",
        ),
        (
            'max_batch_size: 4 output { name: "y" data_type: TYPE_FP32 dims: 5 }',
            "configuration expects dims [5] for output 'y', model provides [3]",
        ),
    ],
)
def test_configs_that_do_not_fit(tmp_path: Path, log: Log, config: str, message: str) -> None:
    """Both sides are named."""
    assert refused(lambda: load(tmp_path, config=config)).message == f"unable to load model 'm', {message}"


def test_an_instance_on_a_cpu(tmp_path: Path, log: Log) -> None:
    """Engines run on GPUs alone."""
    error = refused(lambda: load(tmp_path, placement=Placement("g_0", "CPU")))
    assert (error.code, error.message) == (
        Code.UNSUPPORTED,
        "unable to load model 'm', TensorRT engines run on GPUs alone and 'g_0' is KIND_CPU",
    )


def test_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU is one sentence."""
    fake_tensorrt.install(monkeypatch, gpus=0)
    error = refused(lambda: load(tmp_path))
    assert error.message == "backend 'tensorrt' needs a GPU, and CUDA finds none (error 100)"


@pytest.mark.parametrize("missing", ["tensorrt", "cuda.bindings"])
def test_missing_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """The hint says what to install."""
    fake_tensorrt.install(monkeypatch)
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    assert "pip install" in refused(lambda: load(tmp_path)).hint


def test_options() -> None:
    """Each parameter and setting has an effect, or a note that names it."""
    config = text_format.Parse(
        'name: "m" optimization { cuda { graphs: true busy_wait_events: true graph_spec { batch_size: 1 } } }',
        ModelConfig(),
    )
    config.parameters["execution_context_allocation_strategy"].string_value = "ON_PROFILE_CHANGE"
    config.parameters["colour"].string_value = "red"
    settings = {"plugins": "a.so;b.so", "version-compatible": "true", "coalesce-request-input": "true", "depth": "1"}
    plan = plan_engine(config, settings)
    assert (plan.strategy, plan.plugins, plan.host_code, plan.graphs) == (
        "ON_PROFILE_CHANGE",
        ("a.so", "b.so"),
        True,
        True,
    )
    assert [note.partition(" has no effect")[0] for note in plan.notes] == [
        "model 'm': parameter 'colour' is not one that the tensorrt backend knows, it",
        "--backend-config=tensorrt,coalesce-request-input=true",
        "--backend-config=tensorrt,depth=1",
        "model 'm': optimization.cuda.graph_spec",
        "model 'm': optimization.cuda.busy_wait_events",
    ]


def test_a_missing_plugin(tmp_path: Path, log: Log) -> None:
    """A plugin library that cannot be loaded is named."""
    error = refused(lambda: load(tmp_path, settings={"plugins": "/none.so"}))
    assert error.message.startswith("unable to load TensorRT plugin library '/none.so': ")


sizes = st.integers(1, 9)
ranges = st.tuples(sizes, sizes, sizes).map(sorted).map(lambda each: Range(*[(size,) for size in each]))


@given(st.lists(ranges, min_size=1, max_size=4), sizes)
def test_the_nearest_profile_that_takes_the_shape(spans: list[Range], size: int) -> None:
    """No profile that takes the shape was tuned for a nearer one; where none takes it, that is said."""
    signature = Signature((Slot("x", FP32, (-1,), tuple(spans)),), (), len(spans))
    taking = [index for index, span in enumerate(spans) if span.holds((size,))]
    if not taking:
        assert (
            "is outside of what the engine was built for"
            in refused(lambda: choose("m", signature, range(len(spans)), {"x": (size,)})).message
        )
        return
    chosen = choose("m", signature, range(len(spans)), {"x": (size,)})
    assert chosen in taking
    assert abs(spans[chosen].best[0] - size) == min(abs(spans[index].best[0] - size) for index in taking)


def test_a_shape_that_has_changed_runs_once_before_it_is_recorded(tmp_path: Path, log: Log) -> None:
    """TensorRT prepares its context at each change: a shape of long ago is as new as any."""
    served = load(tmp_path, config="optimization { cuda { graphs: true } }")
    for count in (2, 3, 2, 3):
        run(served, count)
    assert log.count("launch") == 0
    for count in (3, 2, 3, 2, 2):
        run(served, count)
    assert log.count("launch") == 3
    served.instance.close()
    assert log.count("exec destroyed") == 2


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """libcuda, for tensors that are brought to the host."""
    made = FakeCuda()
    monkeypatch.setattr("conch.memory.cuda.find_driver", lambda: made)
    return made


def asking(served: Served, count: int, data: Any = None, *, stay: bool = True) -> InferRequest:
    request = served.request({"x": rows(count)})
    request.form.stays = frozenset("y") if stay else frozenset()
    if data is not None:
        request.data = (as_buffer(data),)
    return request


def copies(log: Log) -> list[str]:
    found = [call for call in log.calls if call.startswith("copy")]
    log.calls.clear()
    return found


def test_tensors_on_the_gpu_are_read_and_left_there(tmp_path: Path, log: Log, cuda: FakeCuda) -> None:
    """A batch is joined on the GPU, what is on the host between; each request has its rows of what stays."""
    served = load(tmp_path)
    requests = [asking(served, 1, lying(rows(1), gpu(0), cuda)), asking(served, 2), asking(served, 1)]
    found = [answer["y"].data for answer in served.run(*requests) if not isinstance(answer, InferError)]
    assert copies(log) == ["copy within", "copy in", "copy within"]
    assert cuda.calls == []
    assert all(isinstance(each, OnDevice) and each.device == gpu(0) for each in found)
    assert [bytes(each) for each in found] == [(rows(count) * 2).tobytes() for count in (1, 2, 1)]


def test_a_client_in_the_batch_has_bytes(tmp_path: Path, log: Log, cuda: FakeCuda) -> None:
    """And so have all others of that batch."""
    served = load(tmp_path)
    first, second = served.run(asking(served, 1), asking(served, 1, stay=False))
    assert not isinstance(first, InferError)
    assert not isinstance(second, InferError)
    assert [type(each["y"].data) for each in (first, second)] == [memoryview, memoryview]
    assert copies(log) == ["copy in", "copy out"]


def test_what_stays_is_not_written_over_and_comes_back(tmp_path: Path, log: Log, cuda: FakeCuda) -> None:
    """Each answer has memory of its own as long as somebody refers to it, also after the instance is closed."""
    served = load(tmp_path)
    kept = [served.run(asking(served, count))[0] for count in (1, 2, 3)]
    assert len(log.allocated) == 2 + 3
    del kept[1:]
    # A test's sinks refer to their requests.
    gc.collect()
    served.run(asking(served, 4))
    assert len(log.allocated) == 2 + 3
    gc.collect()
    served.instance.close()
    assert len(log.allocated) == 1
    (answer,) = kept
    assert not isinstance(answer, InferError)
    assert bytes(answer["y"].data) == (rows(1) * 2).tobytes()
    kept.clear()
    del answer
    gc.collect()
    assert log.allocated == {}


@pytest.mark.parametrize(("field", "lent"), [("", 2), ("input_pinned_memory", 1), ("output_pinned_memory", 1)])
def test_copies_go_through_pinned_memory(
    tmp_path: Path, log: Log, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, field: str, lent: int
) -> None:
    """Unless the config says no for inputs or outputs."""
    pool = PinnedPool(1 << 16, lambda: cuda)
    taken: list[int] = []
    take = pool.take
    monkeypatch.setattr(pool, "take", lambda size: taken.append(size) or take(size))
    config = f"optimization {{ {field} {{ enable: false }} }}" if field else ""
    served = load(tmp_path, config=config, pool=pool)
    np.testing.assert_array_equal(run(served, 2)[0], rows(2) * 2)
    assert taken == [24] * lent
    assert [len(memory) for memory in cuda.allocated.values()] == [1 << 16]


def test_all_tensors_of_an_engine_may_be_on_the_gpu(tmp_path: Path, log: Log) -> None:
    """Engines have no strings."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.plan").write_bytes(fake_tensorrt.plan())
    made = ModelConfig(name="m", backend="tensorrt")
    loop = asyncio.new_event_loop()
    loop.close()
    files, backend = ModelFiles(tmp_path, 1), TensorRtBackend()
    backend.complete(made, files, Host(loop))
    loaded = backend.load(made, make_spec(made), files, Host(loop), ModelStats())
    assert isinstance(loaded, Staying)
    assert loaded.device_tensors() == (frozenset("x"), frozenset("y"))


def test_streams_do_not_block_others(tmp_path: Path, log: Log) -> None:
    """While a stream that waits for CUDA's default one is recorded, copies of all other models would fail."""
    load(tmp_path)
    assert [call for call in log.calls if call.startswith("stream")] == ["stream 1"]


def test_a_config_is_completed_on_the_gpu_of_its_instances(tmp_path: Path, log: Log) -> None:
    """Whatever GPU the loading thread has used before."""
    load(tmp_path, config="instance_group { name: 'g' kind: KIND_GPU gpus: 3 }", placement=Placement("g_0", "GPU", 3))
    assert {call for call in log.calls if call.startswith("device")} == {"device 3"}


def test_all_models_have_one_logger(tmp_path: Path, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """Plugins call the first for ever, so it goes with no model; what it says is said of the one being called for."""
    import tensorrt

    loggers = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        load(tmp_path / name)
        loggers.append(tensorrt.plugins_call)
    assert loggers[0] is loggers[1]
    refused(lambda: load(tmp_path / "first", b"no engine"))
    assert caplog.messages == ["model 'm': TensorRT: Magic tag does not match"]


def test_memory_of_answers_is_not_lent_again_while_the_gpu_writes(
    tmp_path: Path, log: Log, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a later output has no room, what an earlier one is copied to stays referred to until the stream is done."""
    content = fake_tensorrt.plan(program="resize")
    pool = PinnedPool(1 << 16, lambda: cuda)
    lent: list[Any] = []
    take = pool.take

    def watched(size: int) -> Any:
        found = take(size)
        lent.append(weakref.ref(found))
        return found

    monkeypatch.setattr(pool, "take", watched)
    served = load(tmp_path, content, SHAPES, pool=pool)
    request = served.request({"x": rows(2), "size": np.array([2, 3], np.int32)})
    alive: list[bool] = []
    monkeypatch.setattr(served.instance, "_wait", lambda: alive.extend(each() is not None for each in lent))
    monkeypatch.setattr(Hosted, "fetch", lambda *_: 1 / 0)
    (error,) = served.run(request)
    assert isinstance(error, InferError)
    assert alive == [True, True]
