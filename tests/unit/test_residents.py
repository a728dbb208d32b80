"""What keeps the books of memory when something goes wrong: models stay closed or open, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from conch.config.memory import PARAMETER
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.budget import Budget
from conch.registry.desk import Desk
from conch.registry.lifecycle import Key
from conch.registry.residency import Residency
from conch.registry.resident import Resident
from conch.registry.scales import Scales
from conch.registry.sleeper import Sleeper
from conch.registry.steward import Steward
from conch.registry.tenant import Stage, Tenant
from conch.schedule.policy import QueuePolicy
from conch.types.error import InferError, internal
from support.fake_models import FakeLoaded, FakeScheduler, FakeStore
from support.until import until


class Scale:
    """A gauge that fails when it is told to."""

    def __init__(self) -> None:
        self.broken = False

    def server(self) -> dict[str, int]:
        if self.broken:
            raise OSError("cannot be read")
        return {"ram": 1}

    def families(self, heads: object) -> dict[int, dict[str, int]]:
        self.server()
        return {}

    def everything(self) -> dict[str, int]:
        return self.server()

    def whole(self) -> frozenset[str]:
        return frozenset()


class Opened:
    """A version that is open."""

    def __init__(self) -> None:
        self.scheduler = FakeScheduler()
        self.loaded = FakeLoaded()

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        self.loaded.close()


class Bed:
    def __init__(self) -> None:
        self.now = 1
        self.gauge = Scale()
        self.opened: list[Opened] = []
        self.fault: BaseException | None = None
        stats = ModelStats()
        self.sleeper = Sleeper(stats, QueuePolicy(), lambda: None, lambda call: call(), self.later, lambda: self.now)
        self.tenant = Tenant("m", {"ram": 1})
        outline: Any = SimpleNamespace(stats=stats)
        self.resident = Resident(outline, self.tenant, self.sleeper, self.open, self.gauge, lambda: None)

    def later(self, seconds: float, call: Callable[[], object]) -> Any:
        raise AssertionError("nobody is late")

    def open(self, outline: object, release: object) -> Any:
        if self.fault is not None:
            raise self.fault
        self.opened.append(Opened())
        if len(self.opened) == 1:
            self.gauge.broken = True
        return self.opened[-1]


def test_a_model_that_cannot_be_measured_is_closed_again() -> None:
    """Whoever woke it hears of the error, and the model does not stay open unseen."""
    bed = Bed()
    with pytest.raises(OSError, match="cannot be read"):
        bed.resident.wake()
    assert bed.resident.inner is None
    assert [each.loaded.times_closed for each in bed.opened] == [1]
    assert bed.resident.note == "asleep: the last load failed: Internal: OSError: cannot be read"


def test_a_model_that_cannot_be_measured_still_goes_to_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it took is not known then; that it is closed is."""
    bed = Bed()
    bed.opened.append(Opened())
    assert bed.resident.wake() is not None
    bed.gauge.broken = True
    monkeypatch.setattr(Resident, "processes", lambda self: [1])
    with pytest.raises(OSError, match="cannot be read"):
        bed.resident.doze()
    assert bed.resident.inner is None
    assert bed.opened[-1].loaded.times_closed == 1


class WholeScale(Scale):
    """One GPU that is measured whole, and a model with a process of its own, whose RAM alone can be told."""

    def __init__(self) -> None:
        super().__init__()
        self.used = 100

    def server(self) -> dict[str, int]:
        return {"ram": 1, "gpu:0": self.used}

    def families(self, heads: Iterable[int]) -> dict[int, dict[str, int]]:
        return {head: {"ram": 7} for head in heads}

    def whole(self) -> frozenset[str]:
        return frozenset({"gpu:0"})


def test_on_a_gpu_that_is_measured_whole_a_model_takes_what_that_grows_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is loaded; a model with processes of its own too. The rest is the server's."""
    monkeypatch.setattr(Resident, "processes", lambda self: [5])
    bed = Bed()
    gauge = WholeScale()
    bed.resident._gauge = gauge

    def open_it(outline: object, release: object) -> Any:
        gauge.used += 30
        return Opened()

    monkeypatch.setattr(bed.resident, "_open", open_it)
    takes = bed.resident.wake()
    assert takes == {"ram": 7, "gpu:0": 30}
    bed.tenant.takes, bed.tenant.stage, gauge.used = takes, Stage.AWAKE, 150
    budget = Budget({"ram": 100, "gpu:0": 1000}, 4)
    scales = Scales(budget, gauge, lambda: 0.0)
    bed.resident.outline.stats.memory = {}
    scales.look(0.0, {bed.tenant: bed.resident})
    assert bed.tenant.takes == {"ram": 7, "gpu:0": 30}
    assert budget.own["gpu:0"] == 120


def test_a_failed_load_on_demand_makes_unready_for_as_long_as_it_refuses() -> None:
    """Nobody would ask a model that is not ready, and so it would never be tried again."""
    bed = Bed()
    assert bed.resident.ready()
    bed.fault = internal("no such file")
    with pytest.raises(InferError):
        bed.resident.wake()
    bed.sleeper.fail(internal("no such file"), 2.0)
    assert not bed.resident.ready()
    bed.now += 1_999_999_999
    assert not bed.resident.ready()
    bed.now += 1
    assert bed.resident.ready()
    assert "no such file" in bed.resident.note


def test_what_cannot_be_measured_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    """Models are let in by what is in the books; the log says once that those do not change."""
    gauge = Scale()
    gauge.broken = True
    steward = Steward(Budget({"ram": 100}, 4), gauge)
    for number in range(3):
        tenant = Tenant(str(number), {"ram": 1}, known=True)
        steward.admit(tenant)
        steward.gone(tenant)
    steward.close()
    assert [each.levelname for each in caplog.records] == ["ERROR"]
    assert "what was measured last counts" in caplog.text


class Halves:
    """A loader whose last step fails."""

    def __init__(self) -> None:
        self.opened: list[Opened] = []

    def outline(self, config: ModelConfig, stored: object, version: int, key: object) -> Any:
        return SimpleNamespace(config=config, stats=ModelStats(), spec=None, stored=stored)

    def open(self, outline: object, release: object) -> Opened:
        self.opened.append(Opened())
        return self.opened[-1]

    def front(self, scheduler: object, outline: object) -> Any:
        raise MemoryError("no cache for you")


@pytest.mark.parametrize("said", ["{}", '{"load": "on_demand"}'])
def test_a_load_whose_last_step_fails_leaves_nothing_in_the_books(said: str) -> None:
    """What was opened is closed again, and takes no room."""
    config = ModelConfig(name="m", backend="fake")
    config.parameters[PARAMETER].string_value = said
    store = FakeStore()
    store.put("m", 1)
    halves = Halves()
    steward = Steward(Budget({"ram": 100}, 4), Scale())
    sleeper = Sleeper(ModelStats(), QueuePolicy(), lambda: None, lambda call: call(), None)  # type: ignore[arg-type]
    residency = Residency(halves, steward, Scale(), lambda *_: sleeper, limited=True)  # type: ignore[arg-type]
    with pytest.raises(InferError, match="no cache for you"):
        residency.load(config, store.fetch("m"), 1, Key("", b"", "", ""), lambda: None)
    until(lambda: not list(steward.budget) and not steward.models())
    assert [each.loaded.times_closed for each in halves.opened] == [1] * len(halves.opened)
    steward.close()


def test_a_model_that_is_gone_leaves_no_failures() -> None:
    """It could not be woken, and was closed before the steward heard of it."""
    bed = Bed()
    steward = Steward(Budget({}, 4), Scale())
    steward._lost(bed.resident, internal("no such file"))
    assert not steward._failures
    steward.close()


def test_a_model_that_waits_for_another_load_does_not_hold_it_up() -> None:
    """However many of them load one another: each load that a model waits for is one more that may go on."""
    steward = Steward(Budget({}, 1), Scale(), 1)
    tenants = [Tenant(str(number), {"ram": 1}, known=True) for number in range(4)]
    waits: list[Future[None]] = [Future() for _ in tenants]
    for tenant, future in zip(tenants, waits, strict=True):
        steward.admit(tenant)
        steward.lend(future)
    for future in waits:
        future.set_result(None)
    until(lambda: steward.budget.lent == 0)
    steward.close()


def test_woken_models_have_threads_of_their_own_for_what_they_wait_for() -> None:
    """One that sleeps and is needed by one that is being woken is woken too."""
    steward = Steward(Budget({}, 1), Scale(), 1)
    first, second = threading.Event(), threading.Event()
    waits: Future[None] = Future()
    steward._loads.submit(lambda: (first.set(), second.wait(30)))
    assert first.wait(30)
    steward.lend(waits)
    steward._loads.submit(second.set).result(30)
    waits.set_result(None)
    steward.close()


def test_who_comes_after_the_end_is_refused() -> None:
    """Whether the steward ever worked or not."""
    for worked in (False, True):
        steward = Steward(Budget({}, 4), Scale())
        if worked:
            steward.admit(Tenant("a", {}))
        steward.close()
        with pytest.raises(InferError, match="Server exiting"):
            steward.admit(Tenant("b", {}))


def test_a_word_that_fails_is_told_to_who_asked_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The desk goes on with the next word."""
    desk = Desk("test-desk", lambda: 10.0, lambda: None, "it went wrong")
    asked: Future[None] = Future()
    done = threading.Event()

    def fail() -> None:
        raise ValueError("no")

    desk.ask(fail, asked)
    desk.say(fail)
    desk.say(done.set)
    assert done.wait(10)
    error = asked.exception(10)
    desk.close()
    assert isinstance(error, InferError)
    assert error.message == "ValueError: no"
    assert [each.getMessage() for each in caplog.records] == ["it went wrong"] * 2
    after = threading.Event()
    desk.say(after.set)
    assert after.wait(10)
