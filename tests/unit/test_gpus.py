"""GPUs: how they are found, which of them models use, what the metrics page says of them, when loads are refused."""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.config.flags import parse
from conch.config.gpus import Absent, Gpu, read_gpus, usable
from conch.config.server import GpuOptions, ServerOptions
from conch.gpus import Gpus
from conch.observe import metrics
from conch.observe.gpu import _GAUGES, GpuGauges, GpuWatch, Nvml, load_limit
from conch.observe.stats import ModelStats
from conch.registry.crew import Equipment
from conch.registry.places import Places
from conch.types.error import Code, InferError
from support.configs import model
from support.gpu import FakeDriver, FakeNvml, NVMLError, gpu

FIRST, SECOND = gpu(0).uuid, gpu(1).uuid


def test_gpus_are_what_the_driver_shows() -> None:
    """Number, UUID, name, compute capability and memory of each device come from the driver."""
    found = read_gpus(lambda: FakeDriver(("NVIDIA A", 8, 6, 100), ("NVIDIA B", 12, 1, 200)))
    assert found == [
        Gpu(0, "00000000-0000-0000-0000-000000000001", "NVIDIA A", 8.6, 100),
        Gpu(1, "00000000-0000-0000-0000-000000000002", "NVIDIA B", 12.1, 200),
    ]


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (FakeDriver(fails=("cuInit", 100)), "cuInit failed with CUresult 100"),
        (FakeDriver(), "shows no GPU to this process .see CUDA_VISIBLE_DEVICES"),
        (SimpleNamespace(), "driver is too old: .*cuInit"),
    ],
)
def test_a_driver_without_gpus_says_why(driver: object, said: str) -> None:
    """No device, a driver that does not start, or one that lacks a call: one sentence each."""
    with pytest.raises(Absent, match=said):
        read_gpus(lambda: driver)


def test_without_a_driver_there_are_no_gpus() -> None:
    """The driver's library is not there: that is what is said."""

    def lacking() -> ctypes.CDLL:
        raise OSError("libcuda.so.1: cannot open shared object file")

    with pytest.raises(Absent, match=r"driver is not installed .libcuda.so.1 was not found."):
        read_gpus(lacking)


def test_flags_of_gpus() -> None:
    """The least compute capability, limits by GPU, and the environment's word that no GPU is to be used."""
    arguments = [
        "--model-repository=/r",
        "--min-supported-compute-capability=7.5",
        "--model-load-gpu-limit=0:0.8",
        "--model-load-gpu-limit=1:0.5",
    ]
    options = parse(arguments, "tritonserver", {})
    assert options.gpu == GpuOptions(True, 7.5, {0: 0.8, 1: 0.5})
    assert options.ignored == ()
    for value, enabled in (("1", False), ("true", False), ("0", True), ("", True)):
        assert parse(arguments, "tritonserver", {"TRITON_SERVER_CPU_ONLY": value}).gpu.enabled is enabled


def test_models_use_gpus_that_can_do_enough() -> None:
    """A GPU below the least compute capability is left alone; none is used where the CPU alone is asked for."""
    both = [gpu(0, 7.0), gpu(1, 8.6)]
    assert usable(both, GpuOptions(min_compute_capability=7.5)) == [both[1]]
    assert usable(both, GpuOptions(enabled=False)) == []


class Framework:
    """A backend that can use GPUs, or cannot."""

    name = "framework"

    def __init__(self, able: bool) -> None:
        self.able = able

    def on_gpus(self) -> bool:
        return self.able


def placed(text: str, *, able: bool = True, gpus: tuple[int, ...] = (0, 1)) -> list[tuple[str, str, int]]:
    config = model(text)
    places = Places([gpu(number) for number in gpus], 7.5, Equipment())
    groups = places.groups(config, Framework(able), 2)  # type: ignore[arg-type]
    return [(group.kind, place.name, place.device) for group in groups for place in group.places()]


def test_a_model_that_says_nothing_has_an_instance_on_each_gpu() -> None:
    """KIND_AUTO is KIND_GPU, on all GPUs, where the backend can use them."""
    assert placed("") == [("GPU", "m_0", 0), ("GPU", "m_0", 1)]


def test_several_instances_share_a_gpu() -> None:
    """`count` is per GPU listed: a stream of its own for each is what lets them overlap."""
    assert placed("instance_group { count: 2 kind: KIND_GPU gpus: [ 1 ] }") == [
        ("GPU", "m_0_0", 1),
        ("GPU", "m_0_1", 1),
    ]


def test_a_backend_that_cannot_use_gpus_stays_on_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    """KIND_AUTO is then KIND_CPU with the CPU's number of instances, and the log says so."""
    with caplog.at_level(logging.INFO, "conch"):
        assert placed("", able=False) == [("CPU", "m_0", 0), ("CPU", "m_1", 0)]
    assert "runs on the CPU: backend" in caplog.text


def test_what_asks_for_a_gpu_that_is_not_there_is_refused() -> None:
    """Triton's text, with the least compute capability and the GPUs that there are."""
    with pytest.raises(InferError) as refused:
        placed("instance_group { kind: KIND_GPU gpus: [ 3 ] }")
    assert refused.value.message.endswith("compute compatibility of 7.500000 are: 0, 1")


def gauges(**values: object) -> GpuGauges:
    found = GpuGauges(Nvml(FakeNvml(f"GPU-{FIRST}", **values), [gpu(0)]))
    found.read()
    return found


def test_gpu_gauges_have_tritons_names_units_and_digits() -> None:
    """Shares from 0 to 1, bytes, watts; plain digits, and `gpu_uuid` as the only label (perf_analyzer's patterns)."""
    label = f'{{gpu_uuid="GPU-{FIRST}"}}'
    assert gauges().render().decode().splitlines() == [
        "# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)",
        "# TYPE nv_gpu_utilization gauge",
        f"nv_gpu_utilization{label} 0.25",
        "# HELP nv_gpu_memory_total_bytes GPU total memory, in bytes",
        "# TYPE nv_gpu_memory_total_bytes gauge",
        f"nv_gpu_memory_total_bytes{label} 17179869184",
        "# HELP nv_gpu_memory_used_bytes GPU used memory, in bytes",
        "# TYPE nv_gpu_memory_used_bytes gauge",
        f"nv_gpu_memory_used_bytes{label} 1073741824",
        "# HELP nv_gpu_power_usage GPU power usage in watts",
        "# TYPE nv_gpu_power_usage gauge",
        f"nv_gpu_power_usage{label} 58.954",
        "# HELP nv_gpu_power_limit GPU power management limit in watts",
        "# TYPE nv_gpu_power_limit gauge",
        f"nv_gpu_power_limit{label} 300",
        "# HELP nv_energy_consumption GPU energy consumption in joules since the Triton Server started",
        "# TYPE nv_energy_consumption counter",
        f"nv_energy_consumption{label} 0",
    ]


def test_energy_counts_from_the_servers_start() -> None:
    """What the GPU took before is not the server's."""
    nvml = FakeNvml(f"GPU-{FIRST}")
    found = GpuGauges(Nvml(nvml, [gpu(0)]))
    found.read()
    nvml.values["TotalEnergyConsumption"] += 1500
    found.read()
    assert f'nv_energy_consumption{{gpu_uuid="GPU-{FIRST}"}} 1.5' in found.render().decode()


@given(st.lists(st.booleans(), max_size=12))
def test_a_gauge_is_left_out_after_three_failures_in_a_row(fails: list[bool]) -> None:
    """Any history of failures: three in a row end the gauge for good, fewer leave its last value."""
    nvml = FakeNvml(f"GPU-{FIRST}")
    found = GpuGauges(Nvml(nvml, [gpu(0)]))
    for failed in fails:
        nvml.values["PowerUsage"] = NVMLError("Not Supported") if failed else 1000
        found.read()
    text = "".join("x" if failed else "." for failed in fails)
    ended = "xxx" in text
    assert (b"nv_gpu_power_usage{" in found.render()) == (not ended and "." in text)
    assert (b"nv_gpu_power_limit{" in found.render()) == bool(fails)


def test_parts_of_a_gpu_have_names_of_their_own() -> None:
    """CUDA gives the UUID of MIG's part; NVML knows it with another prefix."""
    nvml = Nvml(FakeNvml(f"MIG-{FIRST}", f"GPU-{SECOND}"), [gpu(0), gpu(1), gpu(2)])
    assert {number: name for number, (name, _) in nvml.devices.items()} == {0: f"MIG-{FIRST}", 1: f"GPU-{SECOND}"}


def test_the_gpus_of_nvidia_ml_py_can_be_asked() -> None:
    """Every call that is made exists in the real module."""
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    asked: list[str] = []

    class Number(int):
        gpu = total = used = 1

    class Record:
        def __getattr__(self, name: str) -> Callable[[str], object]:
            asked.append(name)
            return lambda device: Number(1)

    for _, _, _, ask in _GAUGES:
        ask(Record(), "device")
    names = {*asked, "nvmlInit", "nvmlDeviceGetHandleByUUID", "NVMLError"}
    assert not [name for name in names if not hasattr(pynvml, name)]


@pytest.mark.parametrize(("used", "refused"), [(80, False), (81, True)])
def test_loads_are_refused_on_a_full_gpu(used: int, refused: bool) -> None:
    """`--model-load-gpu-limit`: more than the share in use is UNAVAILABLE, in Triton's words; other GPUs have none."""
    nvml = Nvml(FakeNvml(f"GPU-{FIRST}", MemoryInfo=SimpleNamespace(total=100, used=used)), [gpu(0)])
    admit = load_limit({0: 0.8}, nvml)
    admit(1, "m_0_1")
    if not refused:
        admit(0, "m_0_0")
        return
    with pytest.raises(InferError) as error:
        admit(0, "m_0_0")
    assert error.value.code is Code.UNAVAILABLE
    assert error.value.message == (
        "can not create model 'm_0_0': memory limit set for GPU 0 has exceeded, model loading is rejected."
    )


def test_a_gpu_that_cannot_be_measured_refuses_loads() -> None:
    """A limit that cannot be kept is not forgotten."""
    admit = load_limit({0: 0.8}, Nvml(FakeNvml(f"GPU-{FIRST}", MemoryInfo=NVMLError("lost")), [gpu(0)]))
    with pytest.raises(InferError, match="the memory in use of GPU 0 cannot be read: lost"):
        admit(0, "m_0_0")


def test_the_watch_reads_until_it_is_stopped() -> None:
    """The first reading is there when it has started."""
    found = GpuGauges(Nvml(FakeNvml(f"GPU-{FIRST}"), [gpu(0)]))
    watch = GpuWatch(found, 0.01)
    watch.start()
    assert b"nv_gpu_utilization{" in found.render()
    watch.stop()


def test_a_server_without_gpus_warns_of_limits(caplog: pytest.LogCaptureFixture) -> None:
    """A limit for a GPU that is not there is named, and nothing else happens."""

    def none() -> list[Gpu]:
        raise Absent("no driver")

    found = Gpus(ServerOptions(gpu=GpuOptions(load_limits={0: 0.5})), none)
    assert found.find() == []
    found.watch()
    assert found.page() == b""
    assert "--model-load-gpu-limit=0:... has no effect: there is no such GPU" in caplog.text


def test_nothing_is_asked_of_the_driver_for_the_cpu_alone() -> None:
    """With TRITON_SERVER_CPU_ONLY GPUs are not even looked for."""

    def never() -> list[Gpu]:
        raise AssertionError

    assert Gpus(ServerOptions(gpu=GpuOptions(enabled=False)), never).find() == []


def test_a_model_on_one_gpu_has_its_name_as_a_label() -> None:
    """`gpu_uuid` among the labels of a model whose instances are on one GPU; without GPUs nothing changes."""

    def version(*gpus: int) -> SimpleNamespace:
        return SimpleNamespace(
            name="m", version=1, stats=ModelStats(), namespace="", tags={}, gpus=gpus, pending=lambda: 0
        )

    names = {0: f"GPU-{FIRST}", 1: f"GPU-{SECOND}"}
    labels = {
        gpus: re.search(r"nv_inference_count(\{.*\})", metrics.render([version(*gpus)], gpus=names).decode())[1]
        for gpus in ((), (1,), (0, 1))
    }
    assert labels == {
        (): '{model="m",version="1"}',
        (1,): f'{{gpu_uuid="GPU-{SECOND}",model="m",version="1"}}',
        (0, 1): '{model="m",version="1"}',
    }


@pytest.mark.parametrize(
    ("driver", "level"),
    [
        (FakeDriver(fails=("cuInit", 999)), logging.WARNING),
        (FakeDriver(("NVIDIA A", 8, 6, 100), fails=("cuDeviceGetCount", 3)), logging.WARNING),
        (SimpleNamespace(), logging.WARNING),
        (FakeDriver(fails=("cuInit", 100)), logging.DEBUG),
        (FakeDriver(), logging.DEBUG),
    ],
)
def test_a_broken_driver_is_told(driver: object, level: int, caplog: pytest.LogCaptureFixture) -> None:
    """A machine with GPUs that serves on its CPU is a surprise; one without GPUs is none."""
    caplog.set_level(logging.DEBUG, "conch")
    assert Gpus(ServerOptions(), lambda: read_gpus(lambda: driver)).find() == []
    assert [(each.levelno, each.message.split(":")[0]) for each in caplog.records] == [(level, "models run on the CPU")]


def test_gpus_that_are_left_alone_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """By number, name and capability."""
    caplog.set_level(logging.INFO, "conch")
    found = Gpus(ServerOptions(gpu=GpuOptions(min_compute_capability=7.5)), lambda: [gpu(0, 7.0), gpu(1, 8.6)])
    assert [each.device for each in found.find()] == [1]
    assert "is not used, its compute capability 7.0 is below the least supported of 7.5" in caplog.text
