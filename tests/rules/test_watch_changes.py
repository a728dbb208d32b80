"""`--watch`: which model a changed file belongs to, which changes count, and when a model is loaded."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from conch.repository.changes import ECHOES, GONE, LONGEST, QUIET, Action, Changes, Place, decide, place

ROOTS = ("/r", "/r/inner", "/other")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/r/m/1/model.py", Place("/r", "m", ("1", "model.py"))),
        ("/r/m/config.pbtxt", Place("/r", "m", ("config.pbtxt",))),
        ("/r/m", Place("/r", "m", ())),
        ("/r/m/4913", Place("/r", "m", ("4913",))),
        ("/r/inner/m/1/model.onnx", Place("/r/inner", "m", ("1", "model.onnx"))),
        ("/other/m/1", Place("/other", "m", ("1",))),
    ],
)
def test_whose_file_it_is(path: str, found: Place) -> None:
    """The folder in the repository is the model; of nested repositories the inner one has it."""
    assert place(path, ROOTS) == found


@pytest.mark.parametrize(
    "path",
    [
        "/r", "/elsewhere/m/1/model.py", "/rather/m", "/r/.git/HEAD", "/r/m/.ipynb_checkpoints/x.py",
        "/r/m/1/__pycache__/model.cpython-311.pyc", "/r/m/1/.model.py.swp", "/r/m/1/model.py~", "/r/m/1/4913",
        "/r/m/1/#model.py#", "/r/m/1/.#model.py", "/r/m/1/model.py___jb_tmp___", "/r/m/1/model.onnx.part",
        "/r/m/1/model.py.tmp.123.456", "/r/m/1/model.swo", "/r/m/1/x.pyc", "/r/m/1/.goutputstream-X",
    ],
)  # fmt: skip
def test_what_does_not_count(path: str) -> None:
    """Files outside, hidden ones, caches, and what editors and copying programs leave for a moment."""
    assert place(path, ROOTS) is None


@pytest.mark.parametrize(
    ("present", "versions", "wanted", "explicit", "action"),
    [
        (True, True, True, False, Action.LOAD),
        (True, True, False, False, Action.LOAD),
        (True, False, False, False, None),  # a folder that is being filled
        (True, False, True, False, Action.LOAD),  # and so told that no version is left
        (False, False, True, False, Action.UNLOAD),
        (False, False, False, False, None),
        (True, True, False, True, None),  # nobody asked for it
        (True, True, True, True, Action.LOAD),
        (False, False, True, True, Action.UNLOAD),
    ],
)
def test_what_is_done(*, present: bool, versions: bool, wanted: bool, explicit: bool, action: Action | None) -> None:
    """New models are loaded, changed ones loaded again, those that are gone unloaded; explicit ones if asked for."""
    assert decide(present=present, versions=versions, wanted=wanted, explicit=explicit) is action


def test_what_is_saved_together_is_loaded_together() -> None:
    """A model is due when nothing more has come for a moment, and once."""
    changes = Changes()
    changes.changed("m", "1/model.py", 0.0)
    changes.changed("m", "config.pbtxt", 0.04)
    assert changes.due(0.04 + QUIET - 0.001) == []
    assert changes.due(0.04 + QUIET + 0.001) == ["m"]
    assert changes.began("m") == 0.0
    assert changes.due(9.0) == []


def test_a_change_during_a_load_leads_to_another() -> None:
    """It waits for the end of the load that may not have seen it."""
    changes = Changes()
    changes.changed("m", "1/model.py", 0.0)
    changes.began("m")
    changes.changed("m", "1/model.py", 1.0)
    assert changes.due(5.0) == []
    changes.ended("m", 5.0)
    assert changes.due(5.0) == ["m"]


def test_a_missing_folder_waits_longer() -> None:
    """Programs that write a folder anew remove it first."""
    changes = Changes()
    changes.changed("m", "", 0.0)
    assert changes.due(GONE - 0.01, gone=["m"]) == []
    assert changes.due(GONE + 0.01, gone=["m"]) == ["m"]


def test_endless_writing_is_loaded_now_and_then() -> None:
    """A file that never comes to rest does not keep its model from being loaded."""
    changes = Changes()
    now = 0.0
    while not changes.due(now):
        changes.changed("m", "1/model.onnx", now)
        now += QUIET / 2
    assert now == pytest.approx(LONGEST, abs=1)


def load_that_writes(changes: Changes, file: str, now: float) -> float:
    """Waits until the model is due, and loads it, which changes `file`; the time at which it was due."""
    while not changes.due(now):
        now += 0.01
    changes.began("m")
    changes.changed("m", file, now + 0.1)
    changes.ended("m", now + 0.2)
    return now


def test_a_model_that_changes_its_own_files_is_loaded_ever_less_often() -> None:
    """It would be loaded for ever, as fast as it can be; what people write is loaded at once."""
    changes = Changes()
    changes.changed("m", "1/model.py", 0.0)
    times, told = [0.0], []
    for _ in range(ECHOES + 4):
        times.append(load_that_writes(changes, "1/calls.log", times[-1]))
        told.append(changes.writes_itself("m"))
    pauses = [after - before for before, after in itertools.pairwise(times[1:])]
    assert max(pauses[: ECHOES - 1]) < 1 < min(pauses[ECHOES:])
    assert pauses[ECHOES:] == sorted(pauses[ECHOES:])
    assert told.count(True) == 1
    now = times[-1] + 0.3
    changes.changed("m", "1/model.py", now)
    assert changes.due(now + QUIET) == ["m"]


class Watching(RuleBasedStateMachine):
    """Changes, loads and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = Changes()
        self.now = 0.0
        #: Models with changes that no load has begun after, and those being loaded.
        self.open: set[str] = set()
        self.loading: set[str] = set()

    @rule(name=st.sampled_from("abc"), file=st.sampled_from(["1/model.py", "1/data"]))
    def change(self, name: str, file: str) -> None:
        self.changes.changed(name, file, self.now)
        self.open.add(name)

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def act(self) -> None:
        for name in self.changes.due(self.now):
            self.changes.began(name)
            self.open.discard(name)
            assert name not in self.loading
            self.loading.add(name)

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.loading)))
        self.loading.discard(name)
        self.changes.ended(name, self.now)

    @invariant()
    def no_change_is_lost(self) -> None:
        assert set(self.changes.waiting()) == self.open - self.loading
        assert set(self.changes.due(self.now + 1000)) == self.open - self.loading


TestWatching = Watching.TestCase


@given(st.text(alphabet="ab/.~#_14", max_size=12))
def test_any_path(text: str) -> None:
    """Whatever a path looks like, it is a model's or nobody's."""
    found = place(f"/r/{text}", ROOTS)
    assert found is None or (found.root in ROOTS and found.model and not found.model.startswith("."))
