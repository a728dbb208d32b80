"""GPUs: how they are found, which of them models use, what the metrics page says of them, when loads are refused."""

from __future__ import annotations

import ctypes
import logging
import re
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.config.flags import parse
from conch.config.gpus import Absent, Gpu, has_context, named, read_gpus, usable
from conch.config.server import GpuOptions, ServerOptions
from conch.gpus import Gpus
from conch.observe.gpu import _GAUGES, GpuGauges, GpuWatch, Nvml, load_limit
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
        (FakeDriver(fails=("cuInit", 100)), "NVIDIA's driver shows no GPU to this process$"),
        (FakeDriver(), "NVIDIA's driver shows no GPU to this process$"),
        (FakeDriver(fails=("cuInit", 1)), "cuInit failed with CUresult 1$"),
        (FakeDriver(fails=("cuInit", 802)), "CUresult 802 .system not yet initialized.; start nvidia-fabricmanager"),
        (FakeDriver(fails=("cuInit", 807)), "cuInit failed with CUresult 807; MPS refuses this process"),
        (FakeDriver(("A", 8, 0, 1), fails=("cuDeviceGetName", 999)), "cuDeviceGetName failed with CUresult 999 .unk"),
        (SimpleNamespace(), "driver is too old: .*cuInit"),
    ],
)
def test_a_driver_without_gpus_says_why(driver: object, said: str, tmp_path: Path) -> None:
    """No device, a driver that does not start, or one that lacks a call: one sentence each, and how it is mended."""
    with pytest.raises(Absent, match=said):
        read_gpus(lambda: driver, nodes=tmp_path)


@pytest.mark.parametrize(
    ("visible", "nodes", "said", "broken"),
    [
        (None, (), "to this process", False),
        ("", (0o666,), "to this process: CUDA_VISIBLE_DEVICES is ''", False),
        ("-1", (0o666,), "to this process: CUDA_VISIBLE_DEVICES is '-1'", False),
        ("NoDevFiles", (0o666,), "to this process: CUDA_VISIBLE_DEVICES is 'NoDevFiles'", False),
        ("GPU-12", (0o666,), "CUDA_VISIBLE_DEVICES=GPU-12 names none that it has; nvidia-smi -L lists them", True),
        (None, (0o666, 0o666), "though [^ ]*nvidia0 is there: see what nvidia-smi -L lists", True),
        (None, (0o666, 0), "which may not open [^ ]*nvidia1: give its user the right to", True),
    ],
)
def test_a_driver_that_shows_no_gpu(
    visible: str | None,
    nodes: tuple[int, ...],
    said: str,
    broken: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That is as wished or as the machine is, or it is a surprise: rights, a wrong name, a GPU that is not served."""
    for number, mode in enumerate(nodes):
        (tmp_path / f"nvidia{number}").touch(mode)
        (tmp_path / f"nvidia{number}").chmod(mode)
    # The superuser may open everything.
    monkeypatch.setattr("os.access", lambda path, how: stat.S_IMODE(Path(path).stat().st_mode) & 0o6 == how)
    with pytest.raises(Absent, match=said) as absent:
        read_gpus(lambda: FakeDriver(fails=("cuInit", 100)), visible, tmp_path)
    assert absent.value.broken is broken


@pytest.mark.parametrize(
    ("visible", "wanted"),
    [
        ("", []),
        ("-1", []),
        ("0, 2,-1,1", ["0", "2"]),
        ("GPU-8932f937,MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2", None),
        ("MIG-d9a47cfb-d1f2-d08c-b40e-0812b597ae69,", ["MIG-d9a47cfb-d1f2-d08c-b40e-0812b597ae69"]),
        ("0,x,1", ["0", "x", "1"]),
    ],
)
def test_what_cuda_visible_devices_asks_for(visible: str, wanted: list[str] | None) -> None:
    """Numbers, UUIDs, also the beginning of one, parts of MIG in both forms; a number below 0 ends the list."""
    assert named(visible) == (visible.split(",") if wanted is None else wanted)


@pytest.mark.parametrize(("visible", "told"), [(None, False), ("1,0", False), ("-1", False), ("1,9,0", True)])
def test_gpus_that_are_asked_for_and_not_shown_are_told(
    visible: str | None, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver itself leaves out what follows an entry that it does not know, without a word."""
    found = Gpus(ServerOptions(), lambda: [gpu(0), gpu(1)], visible)
    found.find()
    assert ("names 3 GPUs and the driver shows 2: it stops at an entry" in caplog.text) == told


def test_gpus_that_mig_divides_are_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight GPUs, four divided, the driver may show five: four, and one part. The parts are named as NVML does."""
    shown = [gpu(number) for number in range(5)]
    known = [f"MIG-{FIRST}", *[f"GPU-{each.uuid}" for each in shown[1:]]]
    monkeypatch.setattr("conch.gpus.open_nvml", lambda gpus: Nvml(FakeNvml(*known, Count=8), gpus))
    caplog.set_level(logging.INFO, "conch")
    found = Gpus(ServerOptions(), lambda: shown)
    found.find()
    found.watch()
    found.close()
    assert list(found.names.values()) == known
    assert "the driver has 8 GPUs and shows 5 to this process" in caplog.text


def test_what_a_gpu_cannot_say_is_left_out() -> None:
    """A part of MIG has memory, and no power or utilisation of its own."""
    silent = {name: NVMLError("Not Supported") for name in ("UtilizationRates", "PowerUsage", "PowerManagementLimit")}
    found = GpuGauges(Nvml(FakeNvml(f"MIG-{FIRST}", **silent, TotalEnergyConsumption=NVMLError("No")), [gpu(0)]))
    for _ in range(3):
        found.read()
    names = re.findall(r"^(nv_\w+)\{", found.render().decode(), re.MULTILINE)
    assert names == ["nv_gpu_memory_total_bytes", "nv_gpu_memory_used_bytes"]


def test_nvml_says_why_it_does_not_know_a_gpu(caplog: pytest.LogCaptureFixture) -> None:
    """In its own words, for both names that the GPU may have."""
    assert not Nvml(FakeNvml(), [gpu(0)]).devices
    assert f"NVML says of GPU-{FIRST}: Not Found, of MIG-{FIRST}: Not Found" in caplog.text


def test_a_driver_that_may_not_be_read_is_broken() -> None:
    """A library that is there and cannot be loaded is no machine without GPUs."""

    def closed() -> ctypes.CDLL:
        raise OSError("libcuda.so.1: cannot open shared object file: Permission denied")

    with pytest.raises(Absent, match=r"driver cannot be loaded: libcuda.so.1: .* Permission denied") as absent:
        read_gpus(closed)
    assert absent.value.broken


def test_without_a_driver_there_are_no_gpus() -> None:
    """The driver's library is not there: that is what is said."""

    def lacking() -> ctypes.CDLL:
        raise OSError("libcuda.so.1: cannot open shared object file: No such file or directory")

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
    names = {*asked, "nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByUUID", "NVMLError"}
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
    with pytest.raises(InferError, match="the memory in use of GPU 0 cannot be read: NVML does not know it"):
        load_limit({0: 0.8}, Nvml(FakeNvml(), [gpu(0)]))(0, "m_0_0")


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
def test_a_broken_driver_is_told(driver: object, level: int, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A machine with GPUs that serves on its CPU is a surprise; one without GPUs is none."""
    caplog.set_level(logging.DEBUG, "conch")
    assert Gpus(ServerOptions(), lambda: read_gpus(lambda: driver, nodes=tmp_path)).find() == []
    assert [(each.levelno, each.message.split(":")[0]) for each in caplog.records] == [(level, "models run on the CPU")]


def test_gpus_that_are_left_alone_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """By number, name and capability."""
    caplog.set_level(logging.INFO, "conch")
    found = Gpus(ServerOptions(gpu=GpuOptions(min_compute_capability=7.5)), lambda: [gpu(0, 7.0), gpu(1, 8.6)])
    assert [each.device for each in found.find()] == [1]
    assert "is not used, its compute capability 7.0 is below the least supported of 7.5" in caplog.text


def test_whether_this_process_computes_on_a_gpu() -> None:
    """The driver knows, if there is one."""
    driver = FakeDriver(("A", 8, 0, 1), ("B", 8, 0, 1))
    driver.computing.add(1)
    assert [has_context(device, lambda: driver) for device in (0, 1)] == [False, True]
    driver.fails = ("cuDeviceGet", 3)
    assert not has_context(1, lambda: driver)
    for missing in (OSError("no library"), AttributeError("too old")):

        def open_library(error: Exception = missing) -> Any:
            raise error

        assert not has_context(1, open_library)
