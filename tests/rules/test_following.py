"""What polls lead to, through thousands of random histories of a repository."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from conch.repository.api import Survey
from conch.repository.following import Following, Turn

SETTLE = 1.0
NAMES = ("a", "b", "c")
names = st.sampled_from(NAMES)


def test_a_new_model_waits_until_it_stands_still() -> None:
    """A model whose files still move is not loaded; the turn says when to look again."""
    following = Following(SETTLE)
    following.start(Survey({}), 0.0)
    assert following.look(Survey({"m": "half"}), 10.0) == Turn(again_at=11.0)
    assert following.look(Survey({"m": "more"}), 11.0) == Turn(again_at=12.0)
    assert following.look(Survey({"m": "more"}), 12.0) == Turn(compare=("m",))
    assert following.compared("m", "whole")
    assert following.look(Survey({"m": "more"}), 13.0) == Turn()


def test_touched_files_load_nothing() -> None:
    """Other looks with the same contents are no change, for a model that loaded and for one that failed."""
    following = Following(SETTLE)
    following.start(Survey({"m": "1"}), 0.0)
    assert following.unknown() == ["m"]
    following.learn("m", "1", "same")
    following.look(Survey({"m": "2"}), 1.0)
    assert following.look(Survey({"m": "2"}), 2.0).compare == ("m",)
    assert not following.compared("m", "same")
    assert following.look(Survey({"m": "2"}), 3.0) == Turn()


def test_a_model_that_is_away_for_a_moment_stays() -> None:
    """Replacing a folder by two renames unloads nothing."""
    following = Following(SETTLE)
    following.start(Survey({"m": "1"}), 0.0)
    assert following.look(Survey({}), 1.0) == Turn(again_at=2.0)
    assert following.look(Survey({"m": "2"}), 2.0) == Turn(again_at=3.0)
    assert following.look(Survey({"m": "2"}), 3.0) == Turn(compare=("m",))


def test_a_repository_that_cannot_be_read_takes_no_model_away() -> None:
    """What a survey could not see is not gone; what it shows twice is."""
    following = Following(SETTLE)
    following.start(Survey({"m": "1", "n": "1"}), 0.0)
    unreadable = Survey({}, frozenset({"n"}), complete=False)
    following.look(unreadable, 1.0)
    assert following.look(unreadable, 9.0) == Turn(gone=("n",))


def test_a_model_that_changes_itself_is_given_ever_more_rest() -> None:
    """Loads that change the model's own files follow one another in doubling distances, of at most a minute."""
    following = Following(SETTLE)
    following.start(Survey({}), 0.0)
    now, rests = 0.0, []
    following.look(Survey({"m": "0"}), now)
    for number in range(1, 11):
        seen = now
        turn = Turn(again_at=now)
        while not turn.compare:
            assert turn.again_at is not None
            now = turn.again_at
            turn = following.look(Survey({"m": str(number - 1)}), now)
        rests.append(now - seen)
        assert turn.restless == (("m",) if number > 2 else ())
        assert following.compared("m", str(number))
        following.ended("m")
        following.look(Survey({"m": str(number)}), now)
    assert rests == [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


class Repository(RuleBasedStateMachine):
    """Models are written, touched, taken away and doubled between polls; loads end whenever they like."""

    @initialize(start=st.dictionaries(names, st.integers(0, 3)))
    def begin(self, start: dict[str, int]) -> None:
        self.now = 0.0
        self.clock = 0
        #: Name -> contents; each change gives a new look.
        self.there: dict[str, str] = {}
        self.looks: dict[str, str] = {}
        self.changed: dict[str, float] = {}
        self.twice: set[str] = set()
        self.complete = True
        self.loading: set[str] = set()
        #: What the server was told last: contents, or None for gone.
        self.told: dict[str, str | None] = {}
        self.following = Following(SETTLE)
        for name, contents in start.items():
            self.write(name, str(contents))
        self.following.start(self.survey(), self.now)
        self.told = dict(self.there)
        for name in self.following.unknown():
            self.following.learn(name, self.looks[name], self.there[name])

    def survey(self) -> Survey:
        if not self.complete:
            return Survey({}, frozenset(self.twice), complete=False)
        looks = {name: look for name, look in self.looks.items() if name not in self.twice}
        return Survey(looks, frozenset(self.twice))

    def write(self, name: str, contents: str) -> None:
        self.clock += 1
        self.there[name] = contents
        self.looks[name] = f"look {self.clock}"
        self.changed[name] = self.now

    @rule(name=names, contents=st.sampled_from("xyz"))
    def save(self, name: str, contents: str) -> None:
        self.write(name, contents)

    @rule(name=names)
    def touch(self, name: str) -> None:
        if name in self.there:
            self.write(name, self.there[name])

    @rule(name=names)
    def remove(self, name: str) -> None:
        self.changed[name] = self.now
        self.there.pop(name, None)
        self.looks.pop(name, None)

    @rule(name=names)
    def double(self, name: str) -> None:
        self.twice ^= {name}
        self.changed[name] = self.now

    @rule()
    def mount(self) -> None:
        self.complete = not self.complete

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.loading)))
        self.loading.remove(name)
        self.following.ended(name)

    @rule(seconds=st.sampled_from([0.1, 0.6, 1.5, 70.0]))
    def poll(self, seconds: float) -> None:
        self.now += seconds
        turn = self.following.look(self.survey(), self.now)
        assert not {*turn.compare, *turn.gone} & self.loading, "acted on a model that is being loaded"
        for name in turn.gone:
            assert name in self.twice or (self.complete and name not in self.there)
            self.told[name] = None
            self.loading.add(name)
        for name in turn.compare:
            assert self.now - self.changed[name] >= 0
            if self.following.compared(name, self.there[name]):
                assert self.told.get(name) != self.there[name], "loaded though nothing changed"
                self.told[name] = self.there[name]
                self.loading.add(name)
        assert turn.again_at is None or turn.again_at > self.now

    @invariant()
    def nothing_but_what_was_there_is_known(self) -> None:
        assert set(self.following.unknown()) <= set(NAMES)

    def teardown(self) -> None:
        """Once everything stands still and all loads have ended, two polls suffice: the server was told all."""
        if not hasattr(self, "there"):
            return
        self.complete = True
        for _ in range(3):
            for name in list(self.loading):
                self.loading.remove(name)
                self.following.ended(name)
            self.poll(70.0)
        wanted = {name: text for name, text in self.there.items() if name not in self.twice}
        assert {name: text for name, text in self.told.items() if text is not None} == wanted


TestRepository = Repository.TestCase
TestRepository.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
