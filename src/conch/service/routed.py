"""A routed name at work: what its arms and shadows stand for now."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from conch.config.route import Arm, Target, TrafficRoute
from conch.observe.traffic import ArmCounts, RouteCounts
from conch.registry.traffic import Choice, Pins
from conch.schedule.api import Version
from conch.service.shadow import Comparer, LiveShadow
from conch.types.error import InferError, unavailable
from conch.types.model import ModelSpec, TensorSpec

#: How often it is asked whether the runtimes of arms can answer.
_LOOK_NS: Final = 100_000_000

#: Where a sequence is: the label of its arm, and the version itself.
Pin = tuple[str, str, int]


class Registry(Protocol):
    """What routes need to know of the registry."""

    @property
    def generation(self) -> int: ...
    def find(self, name: str, version: str) -> Version: ...


class LiveArm:
    __slots__ = ("arm", "counts", "misfit", "reason", "version")

    def __init__(self, arm: Arm, counts: ArmCounts) -> None:
        self.arm = arm
        self.counts = counts
        #: What it stands for now; None where it is not ready, and then why.
        self.version: Version | None = None
        self.reason = ""
        #: Whether it is there, but other requests than the default arm's are for it.
        self.misfit = False

    @property
    def label(self) -> str:
        return self.arm.target.label


class Routed:
    """One name with a route. Any thread. `pins` and `counts` outlive it when the route changes."""

    def __init__(
        self,
        name: str,
        route: TrafficRoute,
        registry: Registry,
        comparer: Comparer,
        counts: RouteCounts,
        pins: Pins[Pin],
    ) -> None:
        self.name = name
        self.route = route
        self.counts = counts
        self.pins = pins
        self.arms = tuple([LiveArm(arm, counts.arm(arm.target.label)) for arm in route.arms])
        self.shadows = tuple(
            [LiveShadow(name, each, counts.shadow(each.target.label), comparer) for each in route.shadows]
        )
        self.choice = Choice([arm.label for arm in self.arms], [arm.arm.weight for arm in self.arms])
        self._registry = registry
        self._generation = -1
        self._default: LiveArm | None = None
        #: The arms that serve, whether their runtimes can answer at this moment or not.
        self._serving: tuple[int, ...] = ()
        #: When to look at the runtimes again, in monotonic nanoseconds.
        self.look_at = 0
        self.lock = threading.Lock()
        #: The number of the arm whose turn it is; -1 where none is ready.
        self.next: Callable[[], int] = self._next

    def settle(self, generation: int) -> None:
        """See which versions the arms and shadows stand for; `generation` was read before."""
        with self.lock:
            if generation == self._generation:
                return
            for arm in self.arms:
                arm.version, arm.reason = self._find(arm.arm.target)
                arm.misfit = False
            able = [arm for arm in self.arms if arm.version is not None and arm.arm.weight]
            self._default = able[0] if able else None
            others: list[LiveArm | LiveShadow] = [*able[1:], *self._look_up_shadows()]
            for each in others:
                self._compare(each)
            self._serving = tuple([n for n, arm in enumerate(self.arms) if arm.version is not None])
            self._share(self._serving)
            self.look_at = 0
            self._generation = generation

    def look(self, now: int) -> None:
        """Arms whose runtimes cannot answer now get nothing, unless none can."""
        self.look_at = now + _LOOK_NS
        with self.lock:
            arms = [(number, self.arms[number].version) for number in self._serving]
            ready = [number for number, version in arms if version is not None and version.ready()]
            weighty = any(self.arms[number].arm.weight for number in ready)
            self._share(ready if weighty else self._serving)

    def _share(self, ready: Sequence[int]) -> None:
        choice = self.choice
        choice.settle(ready)
        self.next = choice.next if choice.shared else self._next

    def _next(self) -> int:
        with self.lock:
            return self.choice.next()

    def default(self) -> Version:
        """The first arm that serves: what questions about the name are about. Raises InferError where none does."""
        if self._default is None or self._default.version is None:
            raise self.gone()
        return self._default.version

    def ready(self) -> bool:
        """Whether any of its arms can answer now. Raises InferError where none serves."""
        self.default()
        return any(version.ready() for version in self.serving())

    def gone(self) -> InferError:
        reasons = [f"{arm.label} ({arm.reason or 'it has weight 0'})" for arm in self.arms]
        return unavailable(
            f"no arm of the traffic route of '{self.name}' is ready: {'; '.join(reasons)}",
            "load one of them, or change the route",
        )

    def serving(self) -> list[Version]:
        """The versions that the arms stand for."""
        versions = [arm.version for arm in self.arms if arm.version is not None]
        return [version for number, version in enumerate(versions) if version not in versions[:number]]

    def find_pinned(self, model: str, number: int) -> Version | None:
        return self._find(Target(model, number))[0]

    def _find(self, target: Target) -> tuple[Version | None, str]:
        try:
            return self._registry.find(target.model, "" if target.version is None else str(target.version)), ""
        except InferError as error:
            return None, error.message

    def _look_up_shadows(self) -> Sequence[LiveShadow]:
        for shadow in self.shadows:
            shadow.version, shadow.reason = self._find(shadow.shadow.target)
            shadow.misfit = shadow.version is not None and shadow.version.spec.decoupled
            if shadow.misfit:
                shadow.version, shadow.reason = None, "it is decoupled: only single answers can be compared"
        return [shadow for shadow in self.shadows if shadow.version is not None]

    def _compare(self, other: LiveArm | LiveShadow) -> None:
        """What does not fit the default arm is as if it were not there."""
        if self._default is None or self._default.version is None or other.version is None:
            return
        fault = misfit(self._default.version.spec, other.version.spec)
        if fault:
            other.misfit = True
            other.version, other.reason = None, f"it does not fit {self._default.label}: {fault}"


def misfit(one: ModelSpec, other: ModelSpec) -> str:
    """Why requests for `one` are none for `other`; empty where they are. Dims are checked with each request."""
    if one.decoupled != other.decoupled:
        return "one of the two is decoupled"
    if (one.max_batch_size > 0) != (other.max_batch_size > 0):
        return "one of the two does not batch"
    missing = _missing("input", one.inputs, other.inputs) or _missing("output", one.outputs, other.outputs)
    if missing:
        return missing
    known = {tensor.name for tensor in one.inputs}
    needed = [tensor.name for tensor in other.inputs if not tensor.optional and tensor.name not in known]
    return f"it needs the input '{needed[0]}'" if needed else ""


def _missing(kind: str, wanted: Sequence[TensorSpec], there: Sequence[TensorSpec]) -> str:
    types = {tensor.name: tensor.datatype for tensor in there}
    for tensor in wanted:
        found = types.get(tensor.name)
        if found is None:
            return f"it has no {kind} '{tensor.name}'"
        if found is not tensor.datatype:
            return f"its {kind} '{tensor.name}' is {found.name}, not {tensor.datatype.name}"
    return ""
