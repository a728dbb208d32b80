"""Weighted fair queueing among tenants (start-time fair queueing, Goyal, Vin and Cheng 1996). Pure.

Each tenant has a queue and a virtual time at which its next request starts; the earliest start is next, and a request
moves its tenant's time on by its rows over the tenant's weight. So for any two tenants that always have something to do
the rows done, each divided by its weight, never differ by more than one request of each. A tenant that comes, or comes
back, starts at the time of now: it has saved up nothing, and starves nobody.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

from conch.config.fairness import Fairness
from conch.types.request import InferRequest, RequestForm

#: So many tenants are told apart at a time; the others share a queue, for names cost the client nothing.
MAX_TENANTS: Final = 1024


class Tenant:
    __slots__ = ("start", "waiting", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        #: The virtual time at which its next request starts.
        self.start = 0.0
        self.waiting: OrderedDict[InferRequest, None] = OrderedDict()


#: The virtual time of a tenant's next request, the turn in which it began to wait (no two are equal), the tenant.
_Entry = tuple[float, int, Tenant]


class FairLine:
    """Implements `schedule.line.Line`; the queue of each tenant is first come, first served."""

    __slots__ = ("_fairness", "_heap", "_limit", "_memo", "_now", "_owners", "_shared", "_tenants", "_turns")

    def __init__(self, fairness: Fairness, limit: int = MAX_TENANTS) -> None:
        self._fairness = fairness
        self._limit = limit
        self._memo = ("tenant", fairness.by)
        #: The virtual time at which the request that was taken last started.
        self._now = 0.0
        self._turns = 0
        #: Those with something to do.
        self._heap: list[_Entry] = []
        self._owners: dict[InferRequest, Tenant] = {}
        self._tenants: dict[str, Tenant] = {}
        self._shared = Tenant(fairness.others or 1.0)

    def append(self, request: InferRequest) -> None:
        tenant = self._tenant(self._name(request.form))
        if not tenant.waiting:
            tenant.start = max(tenant.start, self._now)
            self._turns += 1
            heappush(self._heap, (tenant.start, self._turns, tenant))
        tenant.waiting[request] = None
        self._owners[request] = tenant

    def remove(self, request: InferRequest) -> None:
        tenant = self._owners.pop(request)
        del tenant.waiting[request]
        if not tenant.waiting:
            self._heap = [entry for entry in self._heap if entry[2] is not tenant]
            heapify(self._heap)
            self._rest()

    def take(self, count: int) -> list[InferRequest]:
        taken = []
        heap = self._heap
        for _ in range(count):
            start, turn, tenant = heap[0]
            request, _none = tenant.waiting.popitem(last=False)
            del self._owners[request]
            self._now = start
            tenant.start = start + request.form.rows / tenant.weight
            if tenant.waiting:
                heapreplace(heap, (tenant.start, turn, tenant))
            else:
                heappop(heap)
            taken.append(request)
        self._rest()
        return taken

    def __iter__(self) -> Iterator[InferRequest]:
        heap = self._heap.copy()
        ahead: dict[int, Iterator[InferRequest]] = {}
        while heap:
            start, turn, tenant = heap[0]
            waiting = ahead.get(turn)
            if waiting is None:
                waiting = ahead[turn] = iter(tenant.waiting)
            request = next(waiting, None)
            if request is None:
                heappop(heap)
            else:
                yield request
                heapreplace(heap, (start + request.form.rows / tenant.weight, turn, tenant))

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, request: object) -> bool:
        return request in self._owners

    @property
    def tenants(self) -> int:
        """How many tenants are remembered."""
        return len(self._tenants)

    def _name(self, form: RequestForm) -> str:
        """The tenant that a request's parameters name; empty for none. HTTP spells headers as the client likes."""
        name = form.memo.get(self._memo)
        if name is None:
            by = self._fairness.by
            values = [value for key, value in (form.parameters or {}).items() if key.lower() == by]
            name = form.memo[self._memo] = str(values[0]) if values else ""
        return str(name)

    def _tenant(self, name: str) -> Tenant:
        known = self._tenants.get(name)
        if known is not None:
            return known
        weight = self._fairness.weights.get(name, self._fairness.others)
        if weight is None:
            return self._shared
        if len(self._tenants) >= self._limit:
            self._forget()
        # While others without room wait together, this one may have requests among them, which come first.
        crowded = len(self._tenants) >= self._limit or self._shared.waiting
        if crowded and name not in self._fairness.weights:
            return self._shared
        tenant = self._tenants[name] = Tenant(weight)
        return tenant

    def _forget(self) -> None:
        """Who waits for nothing and is not ahead of the time would start like anybody new."""
        self._tenants = {
            name: each for name, each in self._tenants.items() if each.waiting or each.start > self._now
        }  # fmt: skip

    def _rest(self) -> None:
        """Nothing waits: whoever comes next starts equal."""
        if not self._owners:
            self._now = 0.0
            self._tenants.clear()
            self._shared.start = 0.0
