"""Where instances run: host policies on the command line, on the machine, and in a crew that is made and changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from conch.backend.api import Placement
from conch.config.flags import FlagError, parse
from conch.config.instances import InstanceGroup, instance_groups
from conch.config.machine import policy_cores
from conch.config.server import HostPolicy, RateOptions
from conch.registry.crew import Crew, Equipment
from conch.schedule.rate import Limit
from conch.schedule.turns import LimitedThread, Turns
from conch.types.error import Code, InferError, internal
from conch.types.request import InferRequest
from support.configs import model


def options(*flags: str) -> object:
    return parse(["--model-repository=/r", *flags], "tritonserver", {})


def test_flags_of_the_rate_limiter() -> None:
    """Mode and resources, with and without a device."""
    given = parse(
        ["--model-repository=/r", "--rate-limit=execution_count", "--rate-limit-resource=R:4",
         "--rate-limit-resource=S:2:1"], "tritonserver", {},
    )  # fmt: skip
    assert given.rate == RateOptions("execution_count", (("R", 4, None), ("S", 2, 1)))
    assert given.ignored == ()


def test_flags_of_host_policies() -> None:
    """Settings of one policy meet; cores are ranges or numbers."""
    given = parse(
        ["--model-repository=/r", "--host-policy=cpu,cpu-cores=0-2,7", "--host-policy=cpu,numa-node=1",
         "--host-policy=gpu_0,numa-node=0"], "tritonserver", {},
    )  # fmt: skip
    assert given.host_policies == {
        "cpu": HostPolicy(frozenset({0, 1, 2, 7}), 1),
        "gpu_0": HostPolicy(numa_node=0),
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("cpu", "--host-policy option format is '<policy name>,<setting>=<value>'. Got cpu"),
        ("cpu,colour=1", "Unsupported host policy setting 'colour' is specified"),
        ("cpu,numa-node=x", "Invalid option value. Got x"),
        ("cpu,cpu-cores=x", "format is '<lower_cpu_core_id>-<upper_cpu_core_id>'. Got x"),
        ("cpu,cpu-cores=1-", "format is '<lower_cpu_core_id>-<upper_cpu_core_id>'. Got 1-"),
        ("cpu,cpu-cores=0-1,,3", "format is '<lower_cpu_core_id>-<upper_cpu_core_id>'. Got "),
        ("cpu,cpu-cores=3-1", "host policy setting 'cpu-cores' has no cores from 3 to 1"),
        ("cpu,cpu-cores=0-99999999999", "has no cores from 0 to 999999999"),
    ],
)
def test_bad_policies(value: str, text: str) -> None:
    """What was expected, and what came."""
    with pytest.raises(FlagError) as caught:
        options(f"--host-policy={value}")
    assert text in str(caught.value)


def test_cores_of_a_policy(tmp_path: Path) -> None:
    """Cores that are named, those of the NUMA node, or those that are both."""
    allowed = frozenset(os.sched_getaffinity(0))
    first = min(allowed)
    (tmp_path / "node0").mkdir()
    (tmp_path / "node0" / "cpulist").write_text(f"{first}\n")
    (tmp_path / "node1").mkdir()
    (tmp_path / "node1" / "cpulist").write_text("\n")
    assert policy_cores("p", HostPolicy(), tmp_path) == allowed
    assert policy_cores("p", HostPolicy(frozenset({first})), tmp_path) == {first}
    assert policy_cores("p", HostPolicy(numa_node=0), tmp_path) == {first}
    for policy in (HostPolicy(numa_node=1), HostPolicy(numa_node=2), HostPolicy(frozenset({65_000}))):
        with pytest.raises(InferError, match="host policy 'p'") as caught:
            policy_cores("p", policy, tmp_path)
        assert caught.value.code is Code.INVALID_ARG


def test_usual_policies() -> None:
    """A group without a policy has that of its kind."""
    three = groups("{ kind: KIND_CPU }", "{ kind: KIND_MODEL }", '{ kind: KIND_CPU host_policy: "own" }')
    assert [place.host_policy for group in three for place in group.places()] == ["cpu", "model", "own"]
    (group,) = instance_groups(model("instance_group { kind: KIND_GPU }"), (0, 3))
    assert [place.host_policy for place in group.places()] == ["gpu_0", "gpu_3"]


def groups(*texts: str) -> list[InstanceGroup]:
    return instance_groups(model(" ".join(f"instance_group {text}" for text in texts)), ())


class Part:
    """A thread instance, and what was done to it."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.born_on = os.sched_getaffinity(0)
        self.closed = 0

    def run(self, batch: Sequence[InferRequest]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.closed += 1


class Loaded:
    """Makes parts; the one that is called `bad` cannot be made."""

    def __init__(self, bad: str = "") -> None:
        self.bad = bad
        self.parts: list[Part] = []

    def instance(self, placement: Placement) -> Part:
        if placement.name == self.bad:
            raise internal("no more memory")
        self.parts.append(Part(placement))
        return self.parts[-1]

    def ready(self) -> bool:
        return True

    def close(self) -> None: ...


class Scheduler:
    """Elastic; keeps who was hired and dismissed. It hires no more than `most`."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.hired: list[str] = []
        self.dismissed: list[object] = []

    def hire(self, instance: object, name: str, /) -> None:
        if len(self.hired) == self.most:
            raise RuntimeError("can't start new thread")
        self.hired.append(name)

    def dismiss(self, instance: object, /) -> None:
        self.dismissed.append(instance)


def crew(loaded: Loaded, equipment: Equipment | None = None, warm: Callable[..., None] = lambda *_: None) -> Crew:
    return Crew("m", loaded, equipment or Equipment(), lambda call: call(), warm)  # type: ignore[arg-type]


def test_a_change_makes_and_dismisses_what_differs() -> None:
    """Instances of equal kind stay, whatever they are called; the last ones go."""
    loaded, scheduler = Loaded(), Scheduler()
    house = crew(loaded)
    house.open(groups("{ kind: KIND_CPU count: 3 }"))
    house.serve(scheduler)
    assert house.elastic
    house.change(groups('{ name: "z" kind: KIND_CPU count: 1 }', "{ kind: KIND_MODEL }")).commit()
    house.settle()
    assert scheduler.hired == ["m_1_0"]
    assert scheduler.dismissed == loaded.parts[1:3]
    assert [part.closed for part in loaded.parts] == [0, 1, 1, 0]
    house.close()
    assert [part.closed for part in loaded.parts] == [1, 1, 1, 1]


def test_a_change_that_cannot_be_put_in_force_leaves_nothing_open() -> None:
    """What works stays until the end, and what could not be put to work is closed at once."""
    loaded = Loaded()
    house = crew(loaded)
    house.open(groups("{ kind: KIND_CPU }"))
    house.serve(Scheduler(most=1))
    change = house.change(groups("{ kind: KIND_MODEL count: 3 }"))
    with pytest.raises(RuntimeError, match="new thread"):
        change.commit()
    assert [part.closed for part in loaded.parts] == [0, 0, 1, 1]
    assert len(house.instances) == 2
    house.close()
    assert [part.closed for part in loaded.parts] == [1, 1, 1, 1]


def test_a_change_that_comes_too_late_closes_what_was_made_for_it() -> None:
    """The version is closing: its scheduler gets no instances any more."""
    loaded, scheduler = Loaded(), Scheduler()
    house = crew(loaded)
    house.open(groups("{ kind: KIND_CPU }"))
    house.serve(scheduler)
    change = house.change(groups("{ kind: KIND_CPU count: 2 }"))
    # As `ServedVersion.close` does: the scheduler is closed between these two.
    house.settle()
    change.commit()
    house.close()
    assert scheduler.hired == []
    assert [part.closed for part in loaded.parts] == [1, 1]
    with pytest.raises(InferError, match="Server exiting"):
        house.change(groups("{ kind: KIND_CPU count: 2 }"))


def test_a_change_that_fails_or_is_cancelled_leaves_nothing() -> None:
    """What was made for it is closed, and its places at the rate limiter are given back."""
    loaded = Loaded(bad="m_1_1")
    turns = Turns([Limit("R", 2)])
    claim = "rate_limiter { resources [ { name: 'R' count: 1 } ] }"
    house = crew(loaded, Equipment(turns))
    house.open(groups(f"{{ kind: KIND_CPU {claim} }}"))
    house.serve(Scheduler())
    more = groups(f"{{ kind: KIND_CPU {claim} }}", f"{{ kind: KIND_MODEL count: 3 {claim} }}")
    with pytest.raises(InferError, match="no more memory"):
        house.change(more)
    loaded.bad = ""
    house.change(more).cancel()
    assert [part.closed for part in loaded.parts] == [0, 1, 1, 1, 1]
    assert len(turns._limiter._tickets) == 1
    with pytest.raises(InferError, match='Resource count for "R" is limited to 2'):
        house.change(groups("{ kind: KIND_CPU rate_limiter { resources [ { name: 'R' count: 3 } ] } }"))
    assert len(house.instances) == 1
    assert isinstance(house.instances[0], LimitedThread)
    house.close()
    assert turns._limiter._tickets == []


def test_a_change_of_a_crew_that_is_closed_comes_to_nothing() -> None:
    """A server that stops closes what was made for a change that is under way."""
    loaded, scheduler = Loaded(), Scheduler()
    house = crew(loaded)
    house.open(groups("{ kind: KIND_CPU }"))
    house.serve(scheduler)
    change = house.change(groups("{ kind: KIND_CPU count: 2 }"))
    house.close()
    change.commit()
    assert (scheduler.hired, [part.closed for part in loaded.parts]) == ([], [1, 1])


def test_an_instance_that_cannot_be_warmed_up_is_closed() -> None:
    """And so are those that were made before it, when the crew is closed."""
    loaded = Loaded()
    turns = Turns()

    def warm(instance: object, name: str) -> None:
        if name == "m_0_1":
            raise internal("cold")

    house = crew(loaded, Equipment(turns), warm)
    with pytest.raises(InferError, match="cold"):
        house.open(groups("{ kind: KIND_CPU count: 3 }"))
    assert [part.closed for part in loaded.parts] == [0, 1]
    house.close()
    assert [part.closed for part in loaded.parts] == [1, 1]
    assert turns._limiter._tickets == []


def test_what_an_instance_starts_is_where_its_policy_says() -> None:
    """The thread that makes it is on the policy's cores meanwhile, and the placement names them."""
    core = min(os.sched_getaffinity(0))
    here = os.sched_getaffinity(0)
    loaded = Loaded()
    house = crew(loaded, Equipment(policies={"cpu": frozenset({core})}))
    house.open(groups("{ kind: KIND_CPU }", "{ kind: KIND_MODEL }"))
    first, second = loaded.parts
    assert (first.born_on, first.placement.cores) == ({core}, frozenset({core}))
    assert (second.born_on, second.placement.cores) == (here, frozenset())
    assert os.sched_getaffinity(0) == here
    house.close()
