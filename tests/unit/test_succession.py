"""Which version answers a request of a sequence when another version has taken over meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.lifecycle import Key
from conch.registry.served import ServedVersion
from conch.registry.succession import elders_of, lingers, succeed
from conch.schedule.api import Version
from conch.service.succession import reordered, succession
from conch.types.error import InferError, invalid
from conch.types.model import ModelSpec
from conch.types.request import InferRequest, RequestForm, RequestHead
from support.fake_models import FakeLoaded, FakeScheduler
from support.requests import Recorder

START, END = 1, 2


class SequenceScheduler(FakeScheduler):
    """Remembers the ids that are under way, and refuses others without START, as the real one does."""

    sequential = True

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def submit(self, request: InferRequest, /) -> None:
        name = int(request.form.correlation_id)
        if not request.form.flags & START and name not in self.ids:
            raise invalid("must specify the START flag")
        self.ids.add(name)
        if request.form.flags & END:
            self.ids.discard(name)

    def continues(self, request: InferRequest, /) -> bool:
        return request.form.correlation_id in self.ids

    def sequences(self) -> int:
        return len(self.ids)


def version(number: int = 1, scheduler: FakeScheduler | None = None) -> ServedVersion:
    return ServedVersion(
        ModelSpec("m", number, 0, (), ()),
        ModelConfig(name="m"),
        stats=ModelStats(),
        scheduler=scheduler or SequenceScheduler(),
        loaded=FakeLoaded(),  # type: ignore[arg-type]
        key=Key("", b"", "", ""),
        release=lambda: None,
    )


def form(of: Version, id: int, flags: int = 0, order: tuple[int, ...] = (0,)) -> RequestForm:
    sizes = (0,) * len(order)
    return RequestForm(
        RequestHead("m"), of, of.scheduler.submit, 1, 1, sizes, order, (), (), sizes, (), 1, None, None,
        correlation_id=id, flags=flags,
    )  # fmt: skip


def send(to: ServedVersion, id: int, flags: int = 0) -> object:
    """The version that takes the request."""
    made = form(to, id, flags)
    if elders_of(to):
        made = succession(to, elders_of, lambda each, _: form(each, id, flags), RequestHead("m"))
    request = InferRequest(made, "", (b"",), Recorder(), 0)
    made.submit(request)
    return request.form.model


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["send", "end", "start", "reload"])), max_size=40))
def test_a_sequence_stays_where_it_began(history: list[tuple[int, str]]) -> None:
    """Through any history of reloads a sequence is answered by one version from START to END; begun anew, by the
    newest."""
    now = version()
    owners: dict[int, ServedVersion] = {}
    for name, step in history:
        if step == "reload":
            new = version()
            succeed({1: now}, {1: new})
            now = new
        elif step == "start":
            assert send(now, name, START) is now
            owners[name] = now
        elif name in owners:
            assert send(now, name, END if step == "end" else 0) is owners[name]
            if step == "end":
                del owners[name]
                for each in (now, *elders_of(now)):
                    scheduler = each.scheduler
                    assert isinstance(scheduler, SequenceScheduler)
                    # What a sequence that began anew has left behind is idle, and goes by itself.
                    scheduler.ids.discard(name)
        else:
            with pytest.raises(InferError, match="START"):
                send(now, name)


def test_a_version_lingers_while_its_sequences_can_be_reached() -> None:
    """It goes when they have ended, and when the model is unloaded, for then nobody can go on."""
    old, new = version(), version()
    send(old, 1, START)
    succeed({1: old}, {1: new})
    assert lingers(old)
    assert send(new, 1, END) is old
    assert not lingers(old)
    send(old, 2, START)
    assert lingers(old)
    succeed({1: new}, {})
    assert not lingers(old)
    assert not lingers(new)


def test_the_latest_version_takes_over_from_the_latest_before() -> None:
    """A version that comes beside another one inherits its sequences, and gives them back when it goes."""
    one, two = version(1), version(2)
    send(one, 1, START)
    succeed({1: one}, {1: one, 2: two})
    assert send(two, 1) is one
    send(two, 2, START)
    succeed({1: one, 2: two}, {1: one})
    assert send(one, 2) is two
    assert send(one, 1) is one


def test_models_without_sequences_have_no_elders() -> None:
    """A reload of any other model leaves nothing that requests would have to ask."""
    old, new = version(scheduler=FakeScheduler()), version(scheduler=FakeScheduler())
    succeed({1: old}, {1: new})
    assert not elders_of(new)
    assert not lingers(old)


def test_closed_versions_are_forgotten() -> None:
    """Nobody asks a version that is closed."""
    old, new = version(), version()
    succeed({1: old}, {1: new})
    assert list(elders_of(new)) == [old]
    old.close()
    assert not elders_of(new)


def test_a_head_that_fits_the_old_version_alone_goes_on_there() -> None:
    """The new version may have other inputs: sequences of the old one go on, others hear what is wrong."""
    old, new = version(), version()
    send(old, 1, START)
    succeed({1: old}, {1: new})

    def prepare(each: Version, head: RequestHead) -> RequestForm:
        if each is new:
            raise invalid("no input X")
        return form(each, 1)

    made = succession(new, elders_of, prepare, RequestHead("m"))
    request = InferRequest(made, "", (b"",), Recorder(), 0)
    made.submit(request)
    assert request.form.model is old
    scheduler = old.scheduler
    assert isinstance(scheduler, SequenceScheduler)
    scheduler.ids.clear()
    with pytest.raises(InferError, match="no input X"):
        made.submit(InferRequest(made, "", (b"",), Recorder(), 0))


@given(st.permutations(range(4)), st.permutations(range(4)))
def test_data_follows_its_inputs(old: list[int], new: list[int]) -> None:
    """Bytes that were sorted for one form are sorted for another one of the same head."""
    data = tuple([bytes([place]) for place in old])
    assert reordered(data, old, new) == tuple([bytes([place]) for place in new])


def test_a_swap_while_somebody_looks_is_not_undone() -> None:
    """Whoever looks for elders while another swap gives the version others leaves those as they are."""
    old, new, newest = version(), version(), version()
    succeed({1: old}, {1: new})

    class Meanwhile(list[ServedVersion]):
        """Swapped between the look at it and the end of the look."""

        def __iter__(self) -> Iterator[ServedVersion]:
            new.elders = [newest]
            return super().__iter__()

    new.elders = Meanwhile([old])
    assert list(elders_of(new)) == [old]
    assert new.elders == [newest]
