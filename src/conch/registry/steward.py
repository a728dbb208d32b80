"""Keeps the books of the memory budget, and sees to it that what they say happens: one thread decides, others do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from conch.config.memory import amount
from conch.observe.memory_page import ModelMemory, render
from conch.registry.budget import Budget
from conch.registry.desk import Desk
from conch.registry.resident import Gauge, Resident
from conch.registry.scales import WATCHING, Scales
from conch.registry.tenant import Amounts, Stage, Tenant, Verdict
from conch.registry.threads import Threads
from conch.types.error import InferError, foreign, unavailable

_log = logging.getLogger("conch.registry")

#: Seconds between two looks: while somebody waits, and else.
_WAITING, _RESTING = 0.02, 1.0
#: How long a model that could not be loaded refuses requests, in seconds: twice as long after each failure.
_SHORTEST, _LONGEST = 1.0, 30.0


class Steward:
    """Everything that changes the books happens on one thread, in the order in which it was said."""

    def __init__(
        self, budget: Budget, gauge: Gauge, threads: int = 4, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.budget = budget
        self._clock = clock
        self._desk = Desk("conch-memory", self._pause, self._look, "the memory budget could not be looked after")
        self._residents: dict[Tenant, Resident] = {}
        #: First loads that wait until there is room for them.
        self._admissions: dict[Tenant, Future[None]] = {}
        self._failures: dict[Tenant, int] = {}
        self._loads = Threads(threads, "conch-wake")
        self._sleeps = ThreadPoolExecutor(8, "conch-sleep")
        self._stopping = False
        self._scales = Scales(budget, gauge, clock)
        #: Whether the last measurement failed.
        self._blind = False

    # ---- first loads; blocking

    def admit(self, tenant: Tenant) -> None:
        """Returns when there is room. Raises InferError."""
        future: Future[None] = Future()
        self._desk.ask(partial(self._admit, tenant, future), future)
        future.result()

    def settle(self, resident: Resident, takes: Amounts | None) -> None:
        """An admitted model is loaded and takes this much; None: it is to be loaded on demand. Raises InferError where
        it cannot stay; then it is to be closed."""
        future: Future[None] = Future()
        self._desk.ask(partial(self._settle, resident, takes, future), future)
        future.result()

    # ---- any thread, without delay

    def call(self, tenant: Tenant) -> None:
        """Somebody waits for it."""
        self._desk.say(lambda: self.budget.want(tenant, self._clock()))

    def gone(self, tenant: Tenant) -> None:
        """It is closed, or its first load has failed."""
        self._desk.say(partial(self._remove, tenant))

    def lend(self, until: Future[None]) -> None:
        """A model waits for this load, maybe while it is loaded itself: it must not be one too many."""
        self._desk.say(partial(self._lent, 1))
        self._loads.lend(until)
        until.add_done_callback(lambda _: self._desk.say(partial(self._lent, -1)))

    def stop(self) -> None:
        """First loads that still wait never begin."""
        self._stopping = True
        self._desk.say(self._refuse_admissions)

    def close(self) -> None:
        """After everything is closed."""
        self.stop()
        self._desk.close()
        self._loads.end(cancel=True)
        self._sleeps.shutdown(wait=False, cancel_futures=True)

    def page(self) -> bytes:
        """What the metrics page says of it."""
        return render(self.budget.limit, self.budget.own, self.models())

    def models(self) -> list[ModelMemory]:
        """By name and version."""
        found = []
        for tenant, each in list(self._residents.items()):
            outline = each.outline
            found.append(
                ModelMemory(
                    outline.spec.name, outline.spec.version, outline.stored.namespace, tenant.stage.value, tenant.takes,
                    each.cold_loads, each.cold_seconds,
                )
            )  # fmt: skip
        return sorted(found, key=lambda each: (each.name, each.namespace, each.version))

    # ---- the thread

    def _pause(self) -> float:
        pause, now = _RESTING, self._clock()
        for tenant in self.budget:
            if tenant.stage in {Stage.WAITING, Stage.DRAINING}:
                return _WAITING
            if tenant.stage is Stage.LOADING and not tenant.known:
                pause = min(pause, WATCHING)
            elif tenant.stage is Stage.AWAKE and tenant.idle_seconds is not None:
                pause = min(pause, max(_WAITING, tenant.last_used + tenant.idle_seconds - now))
        return pause

    def _look(self) -> None:
        now = self._clock()
        for tenant, resident in self._residents.items():
            tenant.last_used = max(tenant.last_used, resident.sleeper.used_ns / 1e9)
        if self.budget.limit:
            self._measure(now)
        self._carry_out(self.budget.decide(now, self._busy))

    def _measure(self, now: float) -> None:
        """What cannot be measured keeps nobody waiting: the books stay as they are."""
        try:
            self._scales.look(now, self._residents)
        except Exception:  # noqa: BLE001
            if not self._blind:
                _log.exception("what models take could not be measured, what was measured last counts")
            self._blind = True
        else:
            self._blind = False

    def _busy(self, tenant: Tenant) -> bool:
        resident = self._residents.get(tenant)
        return resident is None or resident.sleeper.busy()

    def _carry_out(self, verdict: Verdict) -> None:
        for tenant in (*verdict.drain, *verdict.sleep):
            self._residents[tenant].sleeper.close_gate()
        for tenant in verdict.resume:
            self._residents[tenant].sleeper.open_gate()
        for tenant in verdict.sleep:
            self._sleeps.submit(self._sleep, tenant, self._residents[tenant])
        for tenant in verdict.load:
            admission = self._admissions.pop(tenant, None)
            if admission is not None:
                admission.set_result(None)
            else:
                self._loads.submit(self._wake, tenant, self._residents[tenant])
        for tenant, error in verdict.refuse:
            admission = self._admissions.pop(tenant, None)
            _log.warning("%s", error.message)
            if admission is not None:
                admission.set_exception(error)
            else:
                self._residents[tenant].sleeper.fail(error, 0.0)

    # ---- what is said

    def _lent(self, loads: int) -> None:
        self.budget.lent += loads

    def _admit(self, tenant: Tenant, future: Future[None]) -> None:
        if self._stopping:
            future.set_exception(unavailable("Server exiting"))
            return
        self._admissions[tenant] = future
        self.budget.add(tenant)
        self.budget.want(tenant, self._clock())

    def _settle(self, resident: Resident, takes: Amounts | None, future: Future[None]) -> None:
        tenant = resident.tenant
        self._residents[tenant] = resident
        now = self._clock()
        if takes is None:
            self.budget.slept(tenant, now)
            future.set_result(None)
            return
        self.budget.loaded(tenant, takes, now)
        error = self.budget.never(tenant)
        if error is not None:
            future.set_exception(error)
            return
        self._awake(resident)
        future.set_result(None)

    def _awake(self, resident: Resident) -> None:
        inner = resident.inner
        if inner is not None:
            resident.outline.stats.memory = resident.tenant.takes
            resident.sleeper.open_gate(inner.scheduler)

    def _woken(self, resident: Resident, takes: Amounts | None, seconds: float) -> None:
        tenant, now = resident.tenant, self._clock()
        self._failures.pop(tenant, None)
        if takes is None:
            self.budget.slept(tenant, now)
            return
        resident.cold_loads += 1
        resident.cold_seconds += seconds
        self.budget.loaded(tenant, takes, now)
        self._awake(resident)
        _log.info("woke '%s' in %.2f s, it takes %s", tenant.name, seconds, _shown(takes))

    def _lost(self, resident: Resident, error: InferError) -> None:
        """It could not be woken."""
        tenant = resident.tenant
        failures = self._failures.get(tenant, 0) + 1
        if tenant in self._residents:
            self._failures[tenant] = failures
        self.budget.slept(tenant, self._clock())
        _log.error("could not wake '%s': %s", tenant.name, error)
        refusal = unavailable(f"model '{tenant.name}' could not be loaded on demand: {error.message}", error.hint)
        resident.sleeper.fail(refusal, min(_LONGEST, _SHORTEST * 2 ** (failures - 1)))

    def _slept(self, resident: Resident, takes: Amounts) -> None:
        tenant = resident.tenant
        tenant.takes = takes
        resident.outline.stats.memory = {}
        self.budget.slept(tenant, self._clock())
        # What it has given back, the next load may take.
        self._scales.forget()
        _log.info("put '%s' to sleep, which frees %s", tenant.name, _shown(takes))

    def _remove(self, tenant: Tenant) -> None:
        self.budget.remove(tenant)
        self._failures.pop(tenant, None)
        resident = self._residents.pop(tenant, None)
        if resident is not None:
            resident.outline.stats.memory = {}

    def _refuse_admissions(self) -> None:
        for tenant, future in self._admissions.items():
            self.budget.remove(tenant)
            future.set_exception(unavailable("Server exiting"))
        self._admissions.clear()

    # ---- other threads

    def _wake(self, tenant: Tenant, resident: Resident) -> None:
        begun = self._clock()
        try:
            takes = resident.wake()
        except BaseException as raised:  # noqa: BLE001  a model's code may raise anything
            self._desk.say(partial(self._lost, resident, foreign(raised)))
        else:
            self._desk.say(partial(self._woken, resident, takes, self._clock() - begun))

    def _sleep(self, tenant: Tenant, resident: Resident) -> None:
        takes = tenant.takes
        try:
            takes = resident.doze()
        except BaseException:  # noqa: BLE001
            # Foreign code; the model is gone either way.
            _log.exception("failed to close '%s'", tenant.name)
        self._desk.say(partial(self._slept, resident, takes))


def _shown(takes: Amounts) -> str:
    return ", ".join(amount(size) + ("" if device == "ram" else f" of {device}") for device, size in takes.items())
