"""What operators say of memory, how it is measured, and what is shown of it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.config.flag_values import FlagValueError
from conch.config.flags import FlagError, parse
from conch.config.gpus import Gpu
from conch.config.memory import PARAMETER, MemoryWish, amount, memory_budget, memory_wish
from conch.observe.footprint import Gauge, GpuReader, families, resident, untold
from conch.observe.gpu import Nvml
from conch.observe.memory_page import ModelMemory, render
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry import residency
from conch.registry.residency import open_residency
from conch.types.error import InferError
from support.fake_models import FakeLoader, FakeStore

GIB, MIB = 1 << 30, 1 << 20


def config(said: object) -> ModelConfig:
    made = ModelConfig(name="m", backend="python")
    made.parameters[PARAMETER].string_value = said if isinstance(said, str) else json.dumps(said)
    return made


# ---- what operators say


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("6GiB", {"ram": 6 * GIB}),
        ("ram=1.5 GB, gpu:0=40GiB", {"ram": 1_500_000_000, "gpu:0": 40 * GIB}),
        ("1048576", {"ram": MIB}),
    ],
)
def test_a_budget_is_an_amount_or_several_by_device(text: str, budget: dict[str, int]) -> None:
    """Binary and decimal units, or bytes."""
    assert memory_budget(text) == budget
    assert parse([f"--memory-budget={text}", "repo"], "conch").memory.budget == budget


@pytest.mark.parametrize("text", ["", "0", "much", "-1", "6XB", "cpu=1GiB", "gpu=1GiB", "ram=1GiB,ram=2GiB", "1e99"])
def test_a_budget_that_cannot_be_meant_is_refused(text: str) -> None:
    """With what was expected."""
    with pytest.raises(FlagValueError, match=r"Invalid option value\. Got"):
        memory_budget(text)
    with pytest.raises(FlagError, match='Bad option: "--memory-budget"'):
        parse([f"--memory-budget={text}", "repo"], "conch")


def test_a_model_says_what_it_wants() -> None:
    """Everything may be left out."""
    assert memory_wish(ModelConfig(name="m")) is None
    assert memory_wish(config({})) == MemoryWish()
    said = {"ram": "300MiB", "gpu:1": 5, "pinned": True, "load": "on_demand"}
    assert memory_wish(config(said)) == MemoryWish({"ram": 300 * MIB, "gpu:1": 5}, pinned=True, on_demand=True)
    assert memory_wish(config({"idle_seconds": 600})) == MemoryWish(idle_seconds=600.0)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("{", "is no JSON"),
        ([], "expected a JSON object"),
        ({"ram": "much"}, "'much' in 'ram', expected an amount of memory"),
        ({"ram": -1}, "-1 in 'ram'"),
        ({"pinned": "yes"}, "'yes' in 'pinned', expected true or false"),
        ({"idle_seconds": 0}, "0 in 'idle_seconds', expected seconds above 0"),
        ({"load": "later"}, "'later' in 'load', expected start or on_demand"),
        ({"size": 1}, "has an unknown key 'size'"),
        ({"pinned": True, "idle_seconds": 5}, "has both 'pinned' and 'idle_seconds'"),
    ],
)
def test_a_wish_that_cannot_be_meant_is_refused(said: object, text: str) -> None:
    """The error names the parameter, the model and the key."""
    with pytest.raises(InferError, match=text) as caught:
        memory_wish(config(said))
    assert caught.value.message.startswith("parameter 'conch_memory' of model 'm' ")
    assert caught.value.hint


def test_amounts_are_written_for_people() -> None:
    """In the unit that leaves few digits."""
    assert [amount(size) for size in (5, 2048, 5 * MIB, 60 * MIB, 3435973836)] == [
        "5 B", "2.0 KiB", "5.0 MiB", "60 MiB", "3.2 GiB",
    ]  # fmt: skip


# ---- without a budget


class Two(FakeLoader):
    outline = open = front = None


@pytest.mark.parametrize("said", [None, {"pinned": True}])
def test_without_a_budget_models_are_loaded_as_ever(said: object, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is put around them; what has no effect then is named in a warning."""
    store, loader = FakeStore(), Two()
    store.put("m", 1)
    residency, steward = open_residency(loader, {}, lambda call: call(), None)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        key: Any = object()
        wanted = ModelConfig(name="m") if said is None else config(said)
        served = residency.load(wanted, store.fetch("m"), 1, key, lambda: None)
    assert served is loader.made[0]
    assert steward.page() == b""
    assert ("no effect without --memory-budget" in caplog.text) == (said is not None)


def test_gpus_that_cannot_be_measured_are_refused() -> None:
    """A budget that would not be kept is none."""
    with pytest.raises(InferError, match="--memory-budget names gpu:0, and what models take there cannot be measured"):
        open_residency(Two(), {"gpu:0": 1}, lambda call: call(), None)  # type: ignore[arg-type]


# ---- measuring


def test_memory_of_processes_with_what_they_have_started() -> None:
    """The memory of a child is its parent's too, and what it allocates shows."""
    hold = f"import sys; block = bytearray(b'x') * {64 * MIB}; print(len(block), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        gauge = Gauge()
        found = gauge.families([child.pid])[child.pid]
        whole, alone = gauge.everything(), gauge.server()
        child.communicate("")
    assert 64 * MIB < found["ram"] < 100 * MIB
    assert whole["ram"] - alone["ram"] >= 64 * MIB
    assert resident(child.pid) == 0
    assert resident(os.getpid()) > 0


def test_families_are_whole() -> None:
    """Children of children belong to it, others do not."""
    assert families({2: 1, 3: 2, 4: 3, 5: 1}, [2, 5]) == {2: [2, 3, 4], 5: [5]}


FIRST, SECOND = "11111111-0000-0000-0000-000000000000", "22222222-0000-0000-0000-000000000000"


class NVMLError(Exception):
    """As nvidia-ml-py's."""


class FakeNvml:
    """Knows two GPUs, in an order of its own, by UUID."""

    NVMLError = NVMLError

    def __init__(self) -> None:
        self.running: dict[str, list[Any]] = {f"GPU-{FIRST}": [], f"GPU-{SECOND}": []}
        self.used = 1000
        self.broken = False

    def run(self, uuid: str, pid: int, size: int | None) -> None:
        self.running[f"GPU-{uuid}"].append(SimpleNamespace(pid=pid, usedGpuMemory=size))

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:  # noqa: N802
        if uuid.decode() not in self.running:
            raise NVMLError("Not Found")
        return uuid.decode()

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        if self.broken:
            raise NVMLError("GPU is lost")
        return self.running[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(total=GIB, used=self.used, free=GIB - self.used)


def gpu(device: int, uuid: str) -> Gpu:
    return Gpu(device, uuid, "a GPU", 9.0, GIB)


def test_gpu_memory_is_counted_by_process() -> None:
    """By CUDA's numbers, whatever NVML's are; None where the driver does not tell."""
    nvml = FakeNvml()
    for uuid, pid, size in ((FIRST, 7, 100), (FIRST, 8, 4), (SECOND, 7, 5), (SECOND, 7, 6)):
        nvml.run(uuid, pid, size)
    read = GpuReader(Nvml(nvml, [gpu(0, SECOND), gpu(1, FIRST)]))
    assert read() == {7: {"gpu:0": 11, "gpu:1": 100}, 8: {"gpu:1": 4}}
    assert read.devices == {"gpu:0", "gpu:1"}
    assert GpuReader(Nvml(nvml, [gpu(0, SECOND)]))() == {7: {"gpu:0": 11}}
    nvml.run(FIRST, 9, None)
    nvml.run(FIRST, 9, 5)
    assert read()[9] == {"gpu:1": None}


pids = st.integers(1, 4)
names = st.sampled_from(["gpu:0", "gpu:1"])


@given(
    st.dictionaries(pids, st.dictionaries(names, st.none() | st.integers(0, 9), min_size=1)),
    st.sets(pids),
    st.sets(names),
    st.booleans(),
)
def test_whether_the_driver_tells_what_we_take(
    use: dict[int, dict[str, int | None]], ours: set[int], computing: set[str], contained: bool
) -> None:
    """It does not where it lists one of our processes without a size, or none though we compute there, or might."""
    found = untold(["gpu:0", "gpu:1"], use, ours, computing, contained=contained)
    for device in ("gpu:0", "gpu:1"):
        sizes = [use[pid][device] for pid in ours & use.keys() if device in use[pid]]
        assert (device in found) == (None in sizes if sizes else device in computing or contained)


@pytest.mark.parametrize(("computing", "contained"), [(True, False), (False, True)])
def test_a_server_that_the_driver_does_not_list(
    caplog: pytest.LogCaptureFixture, computing: bool, contained: bool
) -> None:
    """What the whole GPU has grown by is the server's, and of no worker anything; the log says so once."""
    nvml = FakeNvml()
    nvml.run(FIRST, 1 << 30, 700)
    reader = GpuReader(Nvml(nvml, [gpu(0, FIRST)]), lambda device: computing)
    gauge = Gauge(reader, contained=lambda: contained)
    nvml.used = 1300
    assert gauge.server()["gpu:0"] == gauge.everything()["gpu:0"] == 300
    assert "gpu:0" not in gauge.families([os.getpid()])[os.getpid()]
    assert gauge.whole() == {"gpu:0"}
    nvml.used = 900
    assert gauge.server()["gpu:0"] == 0
    (record,) = caplog.records
    assert record.getMessage().startswith("the driver does not say what this server's processes take of gpu:0")


def test_a_server_that_is_not_on_a_gpu_takes_nothing_there() -> None:
    """What others take of it is theirs."""
    nvml = FakeNvml()
    nvml.run(FIRST, 1 << 30, 700)
    gauge = Gauge(GpuReader(Nvml(nvml, [gpu(0, FIRST)]), lambda device: False), contained=lambda: False)
    nvml.used = 5000
    assert "gpu:0" not in gauge.server()
    assert gauge.whole() == frozenset()


def test_gpus_that_cannot_be_read_keep_what_was_read_last(caplog: pytest.LogCaptureFixture) -> None:
    """An error of the driver is told once and stops nothing."""
    nvml = FakeNvml()
    nvml.run(FIRST, os.getpid(), 123)
    gauge = Gauge(GpuReader(Nvml(nvml, [gpu(0, FIRST)])), contained=lambda: False)
    assert gauge.server()["gpu:0"] == 123
    nvml.broken = True
    assert gauge.server()["gpu:0"] == gauge.everything()["gpu:0"] == 123
    assert [each.getMessage() for each in caplog.records] == [
        "what models take of GPUs cannot be read, what was read last counts: GPU is lost"
    ]


def test_a_budget_for_a_gpu_that_is_not_there_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning names the part of --memory-budget that has no effect, and the GPUs there are."""
    monkeypatch.setattr(residency, "open_nvml", lambda gpus: Nvml(FakeNvml(), gpus))
    limit = {"ram": GIB, "gpu:0": 1, "gpu:7": 1}
    open_residency(Two(), limit, lambda call: call(), None, 4, [gpu(0, SECOND)])  # type: ignore[arg-type]
    assert [each.getMessage() for each in caplog.records] == [
        "--memory-budget=gpu:7=... has no effect: there is no such GPU for models, there are: gpu:0"
    ]


# ---- showing


def test_the_metrics_page_shows_the_budget() -> None:
    """The budget, the server's own, and each model with its state; nothing where there is nothing to tell."""
    models = [ModelMemory("m", 1, "", "asleep", {"ram": 5}, 2, 1.5)]
    lines = render({"ram": 100}, {"ram": 40}, models).decode().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        'conch_memory_budget_bytes{device="ram"} 100',
        'conch_memory_server_bytes{device="ram"} 40',
        'conch_model_memory_bytes{device="ram",model="m",state="asleep",version="1"} 5',
        'conch_model_cold_loads_total{model="m",version="1"} 2',
        'conch_model_cold_load_seconds_total{model="m",version="1"} 1.5',
    ]
    assert render({}, {}, []) == b""
