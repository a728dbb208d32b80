"""ONNX Runtime on tensors that lie on its device, as on a GPU, with the CPU in its place."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install 'conch[onnx]'")

from conch.backend.api import Placement
from conch.backend.onnx import OnnxBackend, session
from conch.backend.onnx.bound import Placed
from conch.backend.onnx.options import Threads, plan_session
from conch.backend.onnx.providers import CPU
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types import dtype
from conch.types.device import OnDevice, gpu, on_device
from conch.types.dtype import DataType
from conch.types.error import InferError
from conch.types.request import InferRequest
from support import onnx_models
from support.devices import HERE, FakeCuda, lying
from support.onnx_models import Served

BOTH = frozenset({"sum", "difference"})


def served(directory: Path, model: Any) -> tuple[Served, FakeCuda]:
    """One instance as on a GPU."""
    cuda = FakeCuda()
    made = onnx_models.serve(directory, model)
    instance = getattr(made.instance, "instance", made.instance)
    instance._placed = Placed(HERE, "cpu", cuda)
    made.instance = instance
    return made, cuda


def numbers(rows: int, first: int = 0) -> np.ndarray[Any, Any]:
    return np.arange(2 * first, 2 * (first + rows), dtype=np.float32).reshape(rows, 2)


def asking(
    made: Served, stays: frozenset[str] = frozenset(), **inputs: np.ndarray[Any, Any] | tuple[Any, OnDevice]
) -> InferRequest:
    """An input is an array, or an array and what stands for it on a device."""
    request = made.request({name: each[0] if isinstance(each, tuple) else each for name, each in inputs.items()})
    request.form.stays = stays
    given = [inputs[made.spec.inputs[position].name] for position in request.form.inputs]
    request.data = tuple(
        [each[1] if isinstance(each, tuple) else data for each, data in zip(given, request.data, strict=True)]  # type: ignore[misc]
    )
    return request


def answers(made: Served, *requests: InferRequest) -> list[dict[str, Any]]:
    found = []
    for answer in made.run(*requests):
        if isinstance(answer, InferError):
            raise answer
        found.append(answer)
    return found


def array(tensor: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(bytes(tensor.data), tensor.datatype.numpy).reshape(tensor.shape)


def test_one_tensor_is_read_where_it_is(tmp_path: Path) -> None:
    """Next to an input on the host; what does not stay comes as bytes."""
    made, cuda = served(tmp_path, onnx_models.add_sub())
    a, b = numbers(2), numbers(2, 5)
    (answer,) = answers(made, asking(made, frozenset({"sum"}), a=(a, lying(a)), b=b))
    assert cuda.calls == []
    assert on_device(answer["sum"].data) is not None
    assert on_device(answer["difference"].data) is None
    np.testing.assert_array_equal(array(answer["difference"]), a - b)
    np.testing.assert_array_equal(array(answer["sum"]), a + b)


def test_a_batch_is_joined_on_the_device(tmp_path: Path) -> None:
    """What is on the host is written between what lies there; the device is waited for before the run."""
    made, cuda = served(tmp_path, onnx_models.add_sub())
    rows = [numbers(1), numbers(2, 1), numbers(1, 3)]
    far = FakeCuda()
    inputs: list[Any] = [(rows[0], lying(rows[0])), rows[1], (rows[2], lying(rows[2], gpu(3), far))]
    found = answers(made, *[asking(made, BOTH, a=each, b=row) for each, row in zip(inputs, rows, strict=True)])
    assert cuda.calls == ["copy", "write", "write", "finish"]
    assert far.calls == ["read"]
    for answer, row in zip(found, rows, strict=True):
        assert isinstance(answer["sum"].data, OnDevice)
        np.testing.assert_array_equal(array(answer["sum"]), row * 2)
        np.testing.assert_array_equal(array(answer["difference"]), row * 0)


def test_what_lies_elsewhere_alone_is_brought_to_the_host(tmp_path: Path) -> None:
    made, cuda = served(tmp_path, onnx_models.add_sub())
    far, a = FakeCuda(), numbers(2)
    (answer,) = answers(made, asking(made, a=(a, lying(a, gpu(3), far)), b=(a, lying(a))))
    assert (far.calls, cuda.calls) == (["read"], [])
    np.testing.assert_array_equal(array(answer["sum"]), a * 2)


@pytest.mark.parametrize("datatype", [each for each in dtype.ALL if each is not dtype.BYTES], ids=str)
@pytest.mark.parametrize("rows", [(2,), (1, 2)], ids=str)
def test_every_type_passes(tmp_path: Path, datatype: DataType, rows: tuple[int, ...]) -> None:
    """By address, BF16 too, and back."""
    made, _ = served(tmp_path, onnx_models.identity(datatype))
    values = [np.arange(2 * each).reshape(each, 2) for each in rows]
    sent = [
        each.astype(ml_dtypes.bfloat16).view(np.uint16) if datatype is dtype.BF16 else each.astype(datatype.numpy)
        for each in values
    ]
    found = answers(made, *[asking(made, frozenset({"y"}), x=(each, lying(each))) for each in sent])
    for answer, given in zip(found, sent, strict=True):
        assert isinstance(answer["y"].data, OnDevice)
        np.testing.assert_array_equal(array(answer["y"]), given)


def test_a_tensor_outlives_the_instance_that_left_it(tmp_path: Path) -> None:
    """A model may be unloaded while its tensors are between steps."""
    made, _ = served(tmp_path, onnx_models.identity())
    (answer,) = answers(made, asking(made, frozenset({"y"}), x=numbers(3)))
    made.instance.close()
    made.instance = None
    np.testing.assert_array_equal(array(answer["y"]), numbers(3))


def test_instances_on_cpus_take_what_lies_elsewhere(tmp_path: Path) -> None:
    """Where a model's instances were on GPUs when an ensemble was made on it, and have moved since."""
    made, _ = served(tmp_path, onnx_models.identity())
    made.instance._placed, made.instance._brings = None, True
    (answer,) = answers(made, asking(made, frozenset({"y"}), x=(numbers(2), lying(numbers(2), gpu(0)))))
    assert on_device(answer["y"].data) is None
    np.testing.assert_array_equal(array(answer["y"]), numbers(2))


def test_clients_alone_are_run_as_ever(tmp_path: Path) -> None:
    """Bytes in, bytes out: memory is bound only for what lies on the device."""
    made, cuda = served(tmp_path, onnx_models.add_sub())
    session = made.instance._session
    made.instance._session = Unbound(session)
    (answer,) = answers(made, asking(made, a=numbers(1), b=numbers(1)))
    np.testing.assert_array_equal(array(answer["sum"]), numbers(1) * 2)
    assert cuda.calls == []


class Unbound:
    def __init__(self, session: Any) -> None:
        self.run = session.run


def loaded(directory: Path, model: Any) -> Any:
    files, config, host = onnx_models.write(directory, model), ModelConfig(name="m"), onnx_models.make_host({})
    OnnxBackend().complete(config, files, host)
    return OnnxBackend().load(config, onnx_models.make_spec(config), files, host, ModelStats())


def test_models_without_strings_may_have_tensors_on_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the driver can be used; strings cannot be bound, nor can anything else of a model that has some."""
    numbers, texts = loaded(tmp_path, onnx_models.add_sub()), loaded(tmp_path, onnx_models.identity(dtype.BYTES))
    monkeypatch.setattr("conch.backend.onnx.backend.find_driver", lambda: None)
    assert numbers.device_tensors() == (frozenset(), frozenset())
    monkeypatch.setattr("conch.backend.onnx.backend.find_driver", FakeCuda)
    assert numbers.device_tensors() == (frozenset("ab"), BOTH)
    assert texts.device_tensors() == (frozenset(), frozenset())


def test_instances_after_one_on_a_gpu_take_its_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ensemble that counts on the model's GPU is not made anew when instances change."""
    monkeypatch.setattr("conch.backend.onnx.backend.find_driver", FakeCuda)
    monkeypatch.setattr("conch.backend.onnx.backend.choose_providers", lambda *_: [CPU])
    made = loaded(tmp_path, onnx_models.add_sub())
    kinds = ("CPU", "GPU", "CPU")
    instances = [made.instance(Placement("m", kind, 2)) for kind in kinds]
    plain = [getattr(each, "instance", each) for each in instances]
    assert [each._brings for each in plain] == [False, False, True]
    assert [each._placed and each._placed.place for each in plain] == [None, gpu(2), None]


def test_libraries_of_cuda_are_loaded_before_the_first_session_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that pip has brought, once; sessions on the CPU need none."""
    calls: list[str] = []
    session.preload.cache_clear()
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: calls.append("loaded"))
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_models.identity().SerializeToString())
    plan = plan_session(ModelConfig(), {})
    session.open_session("m", path, plan, Threads(1, 1), [CPU])
    assert calls == []
    for _ in range(2):
        # This one has no such provider: it falls back, which is refused.
        with pytest.raises(InferError, match="CUDAExecutionProvider"):
            session.open_session("m", path, plan, Threads(1, 1), [("CUDAExecutionProvider", {}), CPU])
    assert calls == ["loaded"]
    session.preload.cache_clear()


@pytest.mark.parametrize("there", [True, False])
def test_tensorrts_libraries_are_loaded_for_its_provider(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """From the package that brings them; where it is missing, it is for the provider to say so."""
    monkeypatch.setitem(sys.modules, "tensorrt_libs", ModuleType("tensorrt_libs") if there else None)
    asked: list[str] = []
    load = session.importlib.import_module
    monkeypatch.setattr(session.importlib, "import_module", lambda name: asked.append(name) or load(name))
    session.preload.cache_clear()
    session.preload(frozenset({"TensorrtExecutionProvider", "CPUExecutionProvider"}))
    assert asked == ["tensorrt_libs"]
    session.preload.cache_clear()


def test_outputs_that_stay_keep_no_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They keep their run's binding, which would keep what it has copied to the device."""
    made, _ = served(tmp_path, onnx_models.add_sub())
    session, bindings = made.instance._session, []
    bind = session.io_binding
    monkeypatch.setattr(session, "io_binding", lambda: bindings.append(bind()) or bindings[-1])
    answers(made, asking(made, BOTH, a=numbers(1), b=numbers(1)))
    (binding,) = bindings
    with pytest.raises(RuntimeError, match=r"[Ii]nput"):
        session.run_with_iobinding(binding)
