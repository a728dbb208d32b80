"""What GPUs' libraries offer is what we call, and what the stand-ins of our tests offer: compared wherever such a
library is installed, which needs no GPU (for TensorRT, its own libraries beside the bindings)."""

from __future__ import annotations

import inspect
import re
from types import FunctionType
from typing import Any

import pytest

from conch.backend.tensorrt.measured import measure
from conch.backend.tensorrt.signature import DATATYPES
from support import fake_tensorrt

WHERE = [pytest.param("here"), pytest.param("beside a GPU", marks=pytest.mark.gpu)]
everywhere = pytest.mark.parametrize("where", WHERE)


def names(call: Any) -> list[str]:
    """Of the arguments of a Python function."""
    return list(inspect.signature(call).parameters)


def documented(call: Any) -> list[list[str]]:
    """Of the arguments of a function of pybind11, for each of its signatures."""
    heads = re.findall(rf"^(?:\d+\. )?{call.__name__}\((self.*)\) ->", call.__doc__, re.MULTILINE)
    assert heads
    return [re.findall(r"(?:^|, )(\w+): ", head) for head in heads]


def methods(kind: type) -> list[FunctionType]:
    """What a stand-in has of the real one's."""
    return [
        each
        for name, each in vars(kind).items()
        if isinstance(each, FunctionType) and not name.startswith("_") and name != "compute"
    ]


@everywhere
def test_calls_of_cuda(where: str) -> None:
    """Each has the arguments that it has in our stand-in."""
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed", exc_type=ImportError)
    _, fake = fake_tensorrt.made()
    calls = [each for each in vars(fake).values() if isinstance(each, FunctionType)]
    assert len(calls) > 10
    for call in calls:
        assert names(getattr(real, call.__name__)) == names(call), call.__name__
    assert real.cudaStreamNonBlocking == fake.cudaStreamNonBlocking
    for kind in ("cudaMemcpyKind", "cudaStreamCaptureMode"):
        wanted = [name for name in dir(getattr(fake, kind)) if name.startswith("cuda")]
        assert wanted
        assert all(hasattr(getattr(real, kind), name) for name in wanted)


@everywhere
@pytest.mark.parametrize("kind", ["ICudaEngine", "IExecutionContext", "Runtime"])
def test_calls_of_tensorrt(where: str, kind: str) -> None:
    """Each has the arguments that it has in our stand-in, in one of its signatures."""
    real = pytest.importorskip("tensorrt", reason="TensorRT is not installed", exc_type=ImportError)
    fake, _ = fake_tensorrt.made()
    for call in methods(getattr(fake, kind)):
        assert names(call) in documented(getattr(getattr(real, kind), call.__name__)), call.__name__


@everywhere
def test_tensorrt_takes_a_profiles_number_before_the_tensors_name(where: str) -> None:
    """Where it tells the values of shape tensors, whatever the arguments are called."""
    real = pytest.importorskip("tensorrt", reason="TensorRT is not installed", exc_type=ImportError)
    said = real.ICudaEngine.get_tensor_profile_values.__doc__
    assert re.search(r"\(self: [\w.]+, \w+: (int|typing.SupportsInt), \w+: str\)", said)


@everywhere
def test_names_of_tensorrt(where: str) -> None:
    """Types, places and strategies have the names that we ask for."""
    real = pytest.importorskip("tensorrt", reason="TensorRT is not installed", exc_type=ImportError)
    for kind, wanted in (
        ("DataType", set(DATATYPES)),
        ("ExecutionContextAllocationStrategy", {"STATIC", "ON_PROFILE_CHANGE"}),
        ("TensorFormat", {"LINEAR"}),
        ("TensorIOMode", {"INPUT", "OUTPUT"}),
        ("TensorLocation", {"HOST", "DEVICE"}),
    ):
        assert wanted <= set(getattr(real, kind).__members__), kind
    assert {"INTERNAL_ERROR", "ERROR", "WARNING"} <= set(real.ILogger.Severity.__members__)
    passage: Any = None
    assert measure(real, passage).shape is None
    assert tuple(real.Dims((2, 3))) == (2, 3)


@everywhere
def test_calls_of_nvml(where: str) -> None:
    """Each takes a GPU's handle first, and nothing else must be given."""
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    for call in (
        "UtilizationRates", "MemoryInfo", "PowerUsage", "PowerManagementLimit", "TotalEnergyConsumption",
        "ComputeRunningProcesses",
    ):  # fmt: skip
        first, *others = inspect.signature(getattr(real, f"nvmlDeviceGet{call}")).parameters.values()
        assert first.name == "handle"
        assert all(each.default is not inspect.Parameter.empty for each in others)
    assert {name for name, _ in real.c_nvmlMemory_t._fields_} == {"total", "free", "used"}
    assert {"pid", "usedGpuMemory"} <= {name for name, _ in real.c_nvmlProcessInfo_v3_t._fields_}
