"""The memory budget's decisions, through thousands of random histories and through some that matter."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from conch.registry.budget import ALONE, DRAIN, PATIENCE, RESIDENCY, Budget
from conch.registry.tenant import Stage, Tenant, Verdict, fits, total
from conch.types.error import Code

LIMIT = {"ram": 100, "gpu:0": 50}
amounts = st.fixed_dictionaries({"ram": st.integers(0, 45)}, optional={"gpu:0": st.integers(0, 30)})


def tenant(name: str, ram: int, **more: object) -> Tenant:
    return Tenant(name, {"ram": ram}, **{"known": True, **more})  # type: ignore[arg-type]


class House:
    """A budget of 100 bytes of RAM, and models that do at once what they are told; `busy` are those in use."""

    def __init__(self, *tenants: Tenant, own: int = 0, limit: int = 100) -> None:
        self.budget = Budget({"ram": limit})
        self.budget.measured_own({"ram": own})
        self.busy: set[Tenant] = set()
        self.now = 0.0
        for each in tenants:
            self.budget.add(each)

    def decide(self, passed: float = 0.0) -> Verdict:
        self.now += passed
        return self.budget.decide(self.now, lambda each: each in self.busy)

    def wake(self, each: Tenant) -> None:
        """Ask for it, and let all happen that follows."""
        self.now += 0.001
        self.budget.want(each, self.now)
        while each.stage is not Stage.AWAKE:
            verdict = self.decide(0.001)
            for slept in verdict.sleep:
                self.budget.slept(slept, self.now)
            for loaded in verdict.load:
                self.budget.loaded(loaded, loaded.takes, self.now)

    def awake(self) -> list[str]:
        return [each.name for each in self.budget if each.stage is Stage.AWAKE]


def test_the_one_used_the_longest_time_ago_makes_room() -> None:
    """What was used last stays."""
    a, b, c = (tenant(name, 40) for name in "abc")
    house = House(a, b, c)
    house.wake(a)
    house.wake(b)
    a.last_used = house.now + 1
    house.wake(c)
    assert house.awake() == ["a", "c"]


def test_pinned_models_stay() -> None:
    """Whoever else has to go, and however long ago a pinned model was used."""
    a, b, c = tenant("a", 40, pinned=True), tenant("b", 40), tenant("c", 40)
    house = House(a, b, c)
    for each in (a, b, c):
        house.wake(each)
    assert house.awake() == ["a", "c"]


def test_room_is_made_before_the_load() -> None:
    """A model is loaded only once that which leaves for it has left."""
    a, b = tenant("a", 80), tenant("b", 80)
    house = House(a, b)
    house.wake(a)
    house.budget.want(b, house.now)
    assert house.decide().sleep == [a]
    assert house.decide().load == []
    house.budget.slept(a, house.now)
    assert house.decide().load == [b]


def test_a_model_that_never_fits_is_refused_with_numbers() -> None:
    """The text says what is needed, what there is, and who has the rest."""
    mib = 1 << 20
    pinned = [tenant(name, 30 * mib, pinned=True) for name in "ab"]
    big = tenant("big", 60 * mib)
    house = House(*pinned, big, own=5 * mib, limit=100 * mib)
    for each in pinned:
        house.wake(each)
    house.budget.want(big, house.now)
    ((refused, error),) = house.decide().refuse
    assert refused is big
    assert error.code is Code.UNAVAILABLE
    assert error.message == (
        "model 'big' needs 60 MiB; the budget is 100 MiB of which 60 MiB are pinned (a, b) and 5.0 MiB the server's own"
    )
    assert big.stage is Stage.ASLEEP


def test_a_mere_guess_refuses_nobody() -> None:
    """A model that nobody has measured is taken to be as large as the largest, but never too large for the budget."""
    large, pinned, unknown = tenant("large", 80), tenant("pinned", 30, pinned=True), tenant("unknown", 1, known=False)
    house = House(large, pinned, unknown, own=5)
    house.wake(large)
    house.wake(pinned)
    house.budget.want(unknown, house.now)
    assert house.decide().load == [unknown]
    assert unknown.takes == {"ram": 65}


def test_busy_models_make_room_when_nothing_else_helps() -> None:
    """They are held back after a while, sleep once they have answered, and come back in their turn."""
    a, b = tenant("a", 80), tenant("b", 80)
    house = House(a, b)
    house.wake(a)
    house.busy.add(a)
    house.budget.want(b, house.now)
    assert house.decide() == Verdict()
    assert house.decide(RESIDENCY).drain == [a]
    house.budget.want(a, house.now)
    house.busy.clear()
    assert house.decide(0.1).sleep == [a]
    house.budget.slept(a, house.now)
    assert a.stage is Stage.WAITING
    assert house.decide().load == [b]


def test_a_model_that_does_not_come_to_an_end_is_let_go_on() -> None:
    """Its requests may wait for those behind: after a while others have their turn, and its own are let in again."""
    a, b, c = tenant("a", 60), tenant("b", 80), tenant("c", 40)
    house = House(a, b, c)
    house.wake(a)
    house.busy.add(a)
    house.budget.want(b, house.now)
    assert house.decide(RESIDENCY).drain == [a]
    house.budget.want(c, house.now)
    assert house.decide(0.1) == Verdict()
    assert house.decide(DRAIN).resume == [a]
    assert house.decide().load == [c]


def test_nobody_waits_for_ever() -> None:
    """After a while a load is refused, and says who was busy."""
    a, b = tenant("a", 80, pinned=False), tenant("b", 80)
    house = House(a, b)
    house.wake(a)
    house.busy.add(a)
    house.budget.want(b, house.now)
    refused = [each for _ in range(int(PATIENCE) + 1) for each in house.decide(1.0).refuse]
    assert [each.name for each, _ in refused] == ["b"]
    assert "no room could be made in 60 s" in refused[0][1].message
    assert "busy are a" in refused[0][1].message


def test_unknown_models_are_loaded_one_at_a_time() -> None:
    """What grows meanwhile would else be nobody's; but not for ever, for one may need the other to be loaded."""
    a, b, c = tenant("a", 1, known=False), tenant("b", 1, known=False), tenant("c", 1)
    house = House(a, b, c)
    for each in (a, b, c):
        house.budget.want(each, house.now)
    assert house.decide().load == [a, c]
    assert house.decide().load == []
    assert house.decide(ALONE).load == [b]


def test_a_model_that_grows_puts_others_to_sleep() -> None:
    """The budget holds for what is loaded already, too."""
    a, b = tenant("a", 40), tenant("b", 40)
    house = House(a, b)
    house.wake(a)
    house.wake(b)
    house.busy.add(b)
    b.takes = {"ram": 70}
    assert house.decide().sleep == [a]


def test_idle_models_sleep_after_their_time() -> None:
    """Those that say so, and are not in use."""
    a, b = tenant("a", 10, idle_seconds=5.0), tenant("b", 10)
    house = House(a, b)
    house.wake(a)
    house.wake(b)
    house.busy.add(a)
    assert house.decide(6).sleep == []
    house.busy.clear()
    assert house.decide().sleep == [a]


def test_a_reload_of_a_sleeping_model_sleeps() -> None:
    """It is loaded, which shows that it can be, and goes back to sleep."""
    a = tenant("a", 10, rests=True)
    house = House(a)
    house.wake(a)
    assert house.decide().sleep == [a]
    house.budget.slept(a, house.now)
    house.wake(a)
    assert house.decide().sleep == []


class Histories(RuleBasedStateMachine):
    """Models come, are wanted, load, answer, sleep and go, in any order and at any speed."""

    @initialize()
    def begin(self) -> None:
        self.budget = Budget(LIMIT, loads=2)
        self.now = 0.0
        self.busy: set[Tenant] = set()
        #: What has been begun and not ended.
        self.loading: set[Tenant] = set()
        self.leaving: set[Tenant] = set()
        #: Wanted, and neither loaded nor refused since.
        self.owed: set[Tenant] = set()
        self.grown = False
        self.budget.measured_own({"ram": 10})
        self.count = 0

    def tenants(self) -> list[Tenant]:
        return list(self.budget)

    @rule(takes=amounts, pinned=st.booleans(), known=st.booleans(), shares=st.booleans())
    def come(self, takes: dict[str, int], pinned: bool, known: bool, shares: bool) -> None:
        if len(self.tenants()) < 8:
            self.count += 1
            # Few are pinned, else there is nothing left to decide.
            self.budget.add(
                Tenant(f"m{self.count}", takes, pinned=pinned and self.count % 4 == 0, known=known, shares=shares)
            )

    @precondition(lambda self: self.tenants())
    @rule(data=st.data())
    def want(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(self.tenants()))
        self.budget.want(each, self.now)
        if each.stage in {Stage.WAITING, Stage.LOADING, Stage.LEAVING}:
            self.owed.add(each)

    @precondition(lambda self: self.tenants())
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(self.tenants()))
        if each in self.busy:
            self.busy.remove(each)
        elif each.stage is Stage.AWAKE:
            self.busy.add(each)
            each.last_used = self.now

    @rule(seconds=st.sampled_from([0.0, 0.01, RESIDENCY, DRAIN + 1, PATIENCE + 1]))
    def decide(self, seconds: float) -> None:
        self.now += seconds
        idle = [
            each for each in self.tenants() if each.stage is Stage.AWAKE and each not in self.busy and not each.pinned
        ]
        before = {each: each.last_used for each in idle}
        verdict = self.budget.decide(self.now, lambda each: each in self.busy)
        self.check(verdict, before)
        self.loading.update(verdict.load)
        self.leaving.update(verdict.sleep)
        self.owed.difference_update([each for each, _ in verdict.refuse])

    def check(self, verdict: Verdict, idle: dict[Tenant, float]) -> None:
        for each in (*verdict.sleep, *verdict.drain):
            assert not each.pinned
        for each in verdict.sleep:
            assert each not in self.busy
            assert each not in self.leaving
        for each in verdict.load:
            assert each not in self.loading, "loaded twice at a time"
        if verdict.load and not self.grown:
            assert fits(self.budget.taken(), LIMIT), "there was no room"
        went = [each for each in verdict.sleep if each in idle]
        stayed = [each for each in idle if each not in verdict.sleep]
        if went and stayed:
            devices = {device for each in stayed for device, size in each.takes.items() if size}
            same = [each for each in went if all(each.takes.get(device, 0) for device in devices)]
            alike = [each for each in stayed if all(each.takes.get(device, 0) for device in LIMIT)]
            assert all(idle[first] <= idle[second] for first in same for second in alike), "not the oldest"
        if verdict.drain or any(each.stage is Stage.DRAINING for each in self.tenants()):
            assert self.owed or self.grown or not fits(self.budget.taken(), LIMIT)

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), fails=st.booleans(), grown=st.booleans(), more=st.integers(1, 10))
    def end_load(self, data: st.DataObject, fails: bool, grown: bool, more: int) -> None:
        each = data.draw(st.sampled_from(sorted(self.loading, key=lambda each: each.name)))
        self.loading.remove(each)
        self.owed.discard(each)
        if fails:
            self.budget.slept(each, self.now)
            return
        if grown:
            self.grown = True
        takes = {device: size + more if grown else size for device, size in each.takes.items()}
        self.budget.loaded(each, takes, self.now)

    @precondition(lambda self: self.leaving)
    @rule(data=st.data())
    def end_sleep(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(sorted(self.leaving, key=lambda each: each.name)))
        self.leaving.remove(each)
        self.budget.slept(each, self.now)

    @precondition(lambda self: self.tenants())
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(self.tenants()))
        if each.stage is Stage.ASLEEP:
            self.budget.remove(each)
            self.owed.discard(each)

    @invariant()
    def within_the_budget(self) -> None:
        """By the books, as long as models take what they were taken to take."""
        if not self.grown:
            assert fits(self.budget.taken(), LIMIT), (self.budget.taken(), self.tenants())

    @invariant()
    def states_agree(self) -> None:
        assert {each for each in self.tenants() if each.stage is Stage.LOADING} == self.loading
        assert {each for each in self.tenants() if each.stage is Stage.LEAVING} == self.leaving

    def teardown(self) -> None:
        """Whoever was wanted is loaded, or is told that it cannot be: nobody is forgotten."""
        if not hasattr(self, "budget"):
            return
        self.busy.clear()
        for _ in range(400):
            for each in list(self.loading):
                self.budget.loaded(each, each.takes, self.now)
                self.loading.discard(each)
                self.owed.discard(each)
            for each in list(self.leaving):
                self.budget.slept(each, self.now)
            self.leaving.clear()
            self.decide(0.5)
            if not self.owed:
                return
        raise AssertionError(f"forgotten: {[(each, each.stage) for each in self.owed]}, {total([self.budget.own])}")


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase
