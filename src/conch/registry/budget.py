"""Which models are loaded while there is not room for all: pure decisions, no thread, no clock.

Rules: by the books, what is loaded never takes more than the budget, and room is made before a load, not after; first
come, first served; what was used the longest time ago goes to sleep first; pinned models stay; a model with requests in
flight stays too, unless somebody waits whom nothing else helps and it has served for a while: then its new requests are
held back until it has answered those that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from conch.config.memory import RAM, amount
from conch.registry.tenant import Amounts, Stage, Tenant, Verdict, fits, larger, less, plus, total
from conch.types.error import InferError, unavailable

#: Seconds: how long a busy model serves before it may have to make room, how long it may take to do so, and how long a
#: load waits for room.
RESIDENCY: Final = 1.0
DRAIN: Final = 10.0
PATIENCE: Final = 60.0
#: How long a model that has to be loaded alone is left alone: it may be loading the others itself.
ALONE: Final = 10.0

#: Whether a model has requests in flight; those that are held back while it makes room do not count.
Busy = Callable[[Tenant], bool]


@dataclass(slots=True)
class _Round:
    """One decision. `room` is there now, `free` when those have left that are leaving; what was promised is off it."""

    now: float
    busy: Busy
    verdict: Verdict
    room: dict[str, int]
    free: dict[str, int]
    #: Who could sleep, the longest unused first.
    idle: list[Tenant]


class Budget:
    """`limit` are bytes by device; a device that it does not name has no limit.

    At most `loads` loads go on at a time; more than one, for a model may have others loaded while it is.
    """

    def __init__(self, limit: Amounts, loads: int = 4) -> None:
        self.limit = dict(limit)
        self._loads = loads
        #: So many loads more may go on: models wait for them while they are loaded themselves.
        self.lent = 0
        self._tenants: dict[Tenant, None] = {}
        self._waiting: list[Tenant] = []
        #: What the server itself takes, and the least that it ever took.
        self.own: Amounts = {}
        self._least: Amounts | None = None
        #: For whom others are draining (None: nobody, or the budget itself, which is exceeded), and since when.
        self._drains_for: Tenant | None = None
        self._drains_since: float | None = None

    def __iter__(self) -> Iterator[Tenant]:
        return iter(list(self._tenants))

    # ---- what happens

    def add(self, tenant: Tenant) -> None:
        self._tenants[tenant] = None

    def remove(self, tenant: Tenant) -> None:
        """It is closed for good."""
        self._tenants.pop(tenant, None)
        if tenant in self._waiting:
            self._waiting.remove(tenant)

    def want(self, tenant: Tenant, now: float) -> None:
        """Somebody needs it. Any number of times: it is loaded once."""
        if tenant not in self._tenants:
            return
        if tenant.stage is Stage.ASLEEP:
            tenant.stage, tenant.since = Stage.WAITING, now
            self._waiting.append(tenant)
        elif tenant.stage in {Stage.LEAVING, Stage.DRAINING}:
            tenant.wanted = True

    def loaded(self, tenant: Tenant, takes: Amounts, now: float) -> None:
        """It is loaded and was measured."""
        tenant.takes, tenant.known = takes, True
        tenant.stage, tenant.since, tenant.last_used = Stage.AWAKE, now, now

    def slept(self, tenant: Tenant, now: float) -> None:
        """It takes nothing any more: it was closed, or its load has failed, or came to nothing."""
        tenant.stage, tenant.rests = Stage.ASLEEP, False
        if tenant.wanted:
            tenant.wanted = False
            self.want(tenant, now)

    def measured_own(self, own: Amounts) -> None:
        self.own = own
        # Where it is large for a moment, that is no reason to say that a model can never be loaded.
        self._least = own if self._least is None else {each: min(own[each], self._least.get(each, 0)) for each in own}

    # ---- questions

    def taken(self) -> dict[str, int]:
        """By the books, the server's own included."""
        return total([self.own, *[each.takes for each in self._tenants if each.held]])

    def never(self, tenant: Tenant) -> InferError | None:
        """Why it cannot be loaded, whoever else sleeps; None where it can."""
        needs = tenant.takes if tenant.known else tenant.sure
        room = self._most(tenant)
        for device, most in room.items():
            if needs.get(device, 0) > most:
                return unavailable(
                    f"model '{tenant.name}' needs {amount(needs[device])}{_of(device)}; {self._shares(tenant, device)}",
                    "raise --memory-budget, or unpin a model" if self._pinned(tenant) else "raise --memory-budget",
                )
        return None

    def decide(self, now: float, busy: Busy) -> Verdict:
        verdict = Verdict()
        for tenant in self._tenants:
            self._settle(tenant, now, busy, verdict)
        for tenant in list(self._waiting):
            error = self.never(tenant) or self._late(tenant, now, busy)
            if error is not None:
                self._give_up(tenant)
                verdict.refuse.append((tenant, error))
        room = less(self.limit, {device: size for device, size in self.taken().items() if device in self.limit})
        leaving = total([each.takes for each in self._tenants if each.stage is Stage.LEAVING])
        free = {device: size + leaving.get(device, 0) for device, size in room.items()}
        idle = [each for each in self._tenants if each.stage is Stage.AWAKE and not each.pinned and not busy(each)]
        idle.sort(key=lambda each: each.last_used)
        this = _Round(now, busy, verdict, room, free, idle)
        # The budget may be exceeded: models grow.
        exceeded = not self._claim({}, this)
        stuck = self._serve(this, exceeded)
        if exceeded or stuck is not None:
            self._drain(stuck if not exceeded else None, this)
        else:
            self._resume(this)
        return verdict

    # ---- the parts of a decision

    def _settle(self, tenant: Tenant, now: float, busy: Busy, verdict: Verdict) -> None:
        """Those that have answered all, and those that nobody has asked for long, go."""
        if tenant.stage is Stage.AWAKE and not tenant.pinned:
            idle = tenant.idle_seconds
            goes = tenant.rests or (idle is not None and now - tenant.last_used >= idle)
        else:
            goes = tenant.stage is Stage.DRAINING
        if goes and not busy(tenant):
            tenant.stage = Stage.LEAVING
            verdict.sleep.append(tenant)

    def _serve(self, this: _Round, exceeded: bool) -> Tenant | None:
        """Load who waits and has room, make room for others. Returns the first for whom there is no way."""
        loading = [each for each in self._tenants if each.stage is Stage.LOADING]
        stuck: Tenant | None = None
        for tenant in list(self._waiting):
            if len(loading) >= self._loads + self.lent or (stuck is not None and self._drains_for is stuck):
                # Those that make room for one must not lose it to another.
                break
            if tenant.alone and any(each.alone and this.now - each.since < ALONE for each in loading):
                continue
            now = not exceeded and fits(self._needs(tenant), this.room)
            if not self._claim(self._needs(tenant), this):
                stuck = stuck or tenant
            elif now:
                this.room = less(this.room, self._limited(self._needs(tenant)))
                self._waiting.remove(tenant)
                tenant.takes = self._needs(tenant)
                tenant.stage, tenant.since = Stage.LOADING, this.now
                loading.append(tenant)
                this.verdict.load.append(tenant)
        return stuck

    def _claim(self, needs: Amounts, this: _Round) -> bool:
        """Promise so much of what is or becomes free, and put to sleep who is idle for it. False: it is not enough."""
        free, sleepers = dict(this.free), []
        for each in this.idle:
            short = [device for device, size in free.items() if needs.get(device, 0) > size]
            if not short:
                break
            if any(each.takes.get(device, 0) for device in short):
                sleepers.append(each)
                free = plus(free, self._limited(each.takes))
        if not fits(needs, free):
            return False
        for each in sleepers:
            this.idle.remove(each)
            each.stage = Stage.LEAVING
            this.verdict.sleep.append(each)
        this.free = less(free, self._limited(needs))
        return True

    def _drain(self, stuck: Tenant | None, this: _Round) -> None:
        """Have busy models make room for `stuck` (None: for the budget itself)."""
        if self._drains_since is not None and self._drains_for is not stuck:
            self._resume(this)
        if self._drains_since is not None and this.now - self._drains_since > DRAIN:
            # A model that waits for another one's answer cannot end before that is loaded: let others have their turn.
            self._resume(this)
            if stuck is not None:
                self._waiting.remove(stuck)
                self._waiting.append(stuck)
            return
        needs = {} if stuck is None else self._needs(stuck)
        coming = [each for each in self._tenants if each.stage is Stage.DRAINING]
        room = total([this.free, *[self._limited(each.takes) for each in (*this.idle, *coming)]])
        candidates = [
            each
            for each in self._tenants
            if each.stage is Stage.AWAKE
            and not each.pinned
            and each not in this.idle
            and this.now - each.since >= RESIDENCY
        ]
        chosen = []
        for each in sorted(candidates, key=lambda each: each.since):
            if fits(needs, room):
                break
            chosen.append(each)
            room = plus(room, self._limited(each.takes))
        if not fits(needs, room) or not chosen:
            return
        for each in chosen:
            each.stage = Stage.DRAINING
        this.verdict.drain += chosen
        if self._drains_since is None:
            self._drains_for, self._drains_since = stuck, this.now

    def _resume(self, this: _Round) -> None:
        """Nobody has to make room any more."""
        self._drains_for = self._drains_since = None
        for each in self._tenants:
            if each.stage is Stage.DRAINING:
                each.stage, each.since, each.wanted = Stage.AWAKE, this.now, False
                this.verdict.resume.append(each)

    def _late(self, tenant: Tenant, now: float, busy: Busy) -> InferError | None:
        if now - tenant.since < PATIENCE:
            return None
        device = next((each for each in self.limit if tenant.takes.get(each, 0)), RAM)
        awake = sorted(each.name for each in self._tenants if each.held and not each.pinned and busy(each))
        error = unavailable(
            f"model '{tenant.name}' needs {amount(tenant.takes.get(device, 0))}{_of(device)}, for which no room could "
            f"be made in {PATIENCE:.0f} s; {self._shares(tenant, device)}; busy are {', '.join(awake) or 'none'}",
            "raise --memory-budget, or send fewer requests to other models",
        )
        error.retry_after_s = RESIDENCY
        return error

    def _give_up(self, tenant: Tenant) -> None:
        self._waiting.remove(tenant)
        tenant.stage = Stage.ASLEEP

    # ---- sums

    def _limited(self, amounts: Amounts) -> dict[str, int]:
        return {device: size for device, size in amounts.items() if device in self.limit}

    def _needs(self, tenant: Tenant) -> Amounts:
        """A mere guess must not be the reason that a model is never loaded."""
        if tenant.known:
            return tenant.takes
        most = self._most(tenant)
        guess = tenant.takes if tenant.told else self._guess(tenant.takes)
        capped = {device: max(0, min(size, most.get(device, size))) for device, size in guess.items()}
        return larger(capped, tenant.sure)

    def _guess(self, least: Amounts) -> Amounts:
        """What to think of a model that nobody has measured: as large as the largest."""
        for each in self._tenants:
            if each.known:
                least = larger(least, each.takes)
        return least

    def _pinned(self, but: Tenant) -> list[Tenant]:
        return [each for each in self._tenants if each.pinned and each is not but and each.held]

    def _most(self, tenant: Tenant) -> dict[str, int]:
        """What there would be for it alone."""
        fixed = total([self._least or {}, *[each.takes for each in self._pinned(tenant)]])
        return {device: size - fixed.get(device, 0) for device, size in self.limit.items()}

    def _shares(self, tenant: Tenant, device: str) -> str:
        pinned = [each for each in self._pinned(tenant) if each.takes.get(device, 0)]
        parts = []
        if pinned:
            names = ", ".join(sorted(each.name for each in pinned))
            parts.append(f"{amount(sum(each.takes[device] for each in pinned))} are pinned ({names})")
        parts.append(f"{amount((self._least or {}).get(device, 0))} the server's own")
        return f"the budget is {amount(self.limit.get(device, 0))} of which {' and '.join(parts)}"


def _of(device: str) -> str:
    return "" if device == RAM else f" of {device}"
