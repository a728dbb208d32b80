"""The rules of sequences, on a scheduler with a loop that the test turns and instances that it finishes."""

from __future__ import annotations

import pytest

from conch.types.error import Code, InferError, internal
from support.sequences import MS, STATE, Bench

START, END = 1, 2
OLDEST = "oldest { max_candidate_sequences: 8 }"


def refusal(bench: Bench, name: int | str, flags: int = 0) -> str:
    with pytest.raises(InferError) as caught:
        bench.send(name, flags)
    return caught.value.message


def values(bench: Bench) -> list[list[int]]:
    """What each execution so far was given; -1 for a row without a request."""
    return [[row.value if row.controls["READY"] else -1 for row in batch] for batch in bench.batches]


@pytest.mark.parametrize("inside", ["", OLDEST])
def test_a_sequence_begins_with_start_and_ends_with_end(inside: str) -> None:
    """A request that is part of no sequence is refused."""
    bench = Bench(inside)
    assert "must specify the START flag" in refusal(bench, 1)
    for flags, value in ((START, 5), (0, 7), (END, 8)):
        bench.send(1, flags, value)
        bench.drain()
    assert "must specify the START flag" in refusal(bench, 1)
    assert list(bench.sink.of.values()) == [5, 12, 20]


@pytest.mark.parametrize("inside", ["", OLDEST])
def test_controls_tell_what_the_request_is(inside: str) -> None:
    """START, END, READY and the id come after the client's inputs."""
    bench = Bench(inside)
    for flags in (START, 0, END):
        bench.send(9, flags)
    bench.drain()
    assert [row.controls for batch in bench.batches for row in batch] == [
        {"START": 1, "END": 0, "READY": 1, "CORRID": 9},
        {"START": 0, "END": 0, "READY": 1, "CORRID": 9},
        {"START": 0, "END": 1, "READY": 1, "CORRID": 9},
    ]


def test_direct_rows_are_slots() -> None:
    """An execution covers the rows up to the last that is ready; the others are there and not ready."""
    bench = Bench("direct { }")
    for name in (1, 2, 3):
        bench.send(name, START, name)
    bench.drain()
    bench.send(3, 0, 30)
    bench.drain()
    bench.send(1, END, 10)
    bench.drain()
    bench.send(4, START, 4)
    bench.send(2, 0, 20)
    bench.drain()
    assert values(bench) == [[1, 2, 3], [-1, -1, 30], [10], [4, 20]]
    empty = bench.batches[1][0]
    assert empty.controls == {"START": 0, "END": 0, "READY": 0, "CORRID": 0}
    assert bench.stats.inferences == 0  # the instance counts, not the scheduler


def test_direct_waits_for_slots_to_fill() -> None:
    """Below the utilization asked for, up to the delay; then with what there is."""
    bench = Bench("direct { max_queue_delay_microseconds: 5000 minimum_slot_utilization: 0.5 }")
    bench.send(1, START, 1)
    bench.loop.advance(4 * MS)
    assert bench.batches == []
    bench.loop.advance(2 * MS)
    assert values(bench) == [[1]]
    bench.drain()
    bench.send(1, 0, 10)
    bench.send(2, START, 2)
    bench.loop.settle()
    assert values(bench)[1] == [10, 2]


def test_direct_does_not_wait_without_a_utilization() -> None:
    """The delay alone means nothing."""
    bench = Bench("direct { max_queue_delay_microseconds: 5000 }")
    bench.send(1, START, 1)
    bench.loop.settle()
    assert values(bench) == [[1]]


def test_oldest_runs_one_request_per_sequence() -> None:
    """First ready, first run; what follows in a sequence waits for its predecessor."""
    bench = Bench(OLDEST, batch=2)
    for name in (1, 2, 3):
        bench.send(name, START, name)
        bench.send(name, 0, 10 * name)
    bench.drain()
    assert values(bench) == [[1, 2], [3, 10], [20, 30]]


def test_oldest_prefers_sizes() -> None:
    """With a delay it waits for the largest preferred size, without it takes what there is."""
    inside = "oldest { max_candidate_sequences: 8 preferred_batch_size: [ 2 ] %s }"
    bench = Bench(inside % "max_queue_delay_microseconds: 5000")
    bench.send(1, START, 1)
    bench.loop.settle()
    assert bench.batches == []
    bench.send(2, START, 2)
    bench.send(3, START, 3)
    bench.loop.settle()
    assert values(bench) == [[1, 2]]
    bench.finish()
    bench.loop.advance(6 * MS)
    assert values(bench) == [[1, 2], [3]]


@pytest.mark.parametrize("inside", ["direct { }", "oldest { max_candidate_sequences: 1 }"])
def test_more_sequences_than_slots_wait_in_order(inside: str) -> None:
    """A slot that is given back goes to the sequence that waits for the longest time, with all it has."""
    bench = Bench(inside, batch=1)
    for name in (1, 2, 3):
        bench.send(name, START, name)
        bench.send(name, END, 10 * name)
    bench.drain()
    assert values(bench) == [[1], [10], [2], [20], [3], [30]]


@pytest.mark.parametrize("inside", ["direct { }", OLDEST])
def test_a_sequence_keeps_its_instance(inside: str) -> None:
    """Sequences spread over the instances, and stay where they are."""
    bench = Bench(inside, batch=2, instances=2)
    seen: dict[int, set[int]] = {}
    for _ in range(3):
        for name in (1, 2, 3, 4):
            bench.send(name, START if not seen.get(name) else 0, name)
            bench.loop.settle()
            for lane, instance in enumerate(bench.instances):
                for row in instance.rows():
                    if row.controls["READY"]:
                        seen.setdefault(row.value, set()).add(lane)
            bench.drain()
    assert seen == {1: {0}, 2: {1}, 3: {0}, 4: {1}}


def test_idle_sequences_give_their_slot_back() -> None:
    """Counted from the last answer; meanwhile nothing of the sequence waits or runs."""
    bench = Bench("max_sequence_idle_microseconds: 50000 direct { }", batch=1)
    bench.send(1, START, 1)
    bench.send(2, START, 2)
    bench.loop.advance(500 * MS)
    assert values(bench) == [[1]]
    bench.finish()
    bench.loop.advance(49 * MS)
    assert values(bench) == [[1]]
    bench.loop.advance(2 * MS)
    assert values(bench) == [[1], [2]]
    assert "must specify the START flag" in refusal(bench, 1)


def test_start_on_a_live_sequence_begins_it_anew(caplog: pytest.LogCaptureFixture) -> None:
    """What waits is run before; the log says that the first did not end."""
    bench = Bench(OLDEST)
    bench.send(1, START, 1)
    bench.send(1, 0, 2)
    bench.send(1, START, 10)
    bench.send(1, END, 20)
    bench.drain()
    assert list(bench.sink.of.values()) == [1, 3, 10, 30]
    assert "The previous sequence did not end before this sequence start" in caplog.text


def test_an_id_may_be_used_again_at_once() -> None:
    """After END, even before that is answered: the new sequence comes after the old one and those that wait."""
    bench = Bench("direct { }", batch=1)
    bench.send(1, START | END, 1)
    bench.send(2, START | END, 2)
    bench.send(1, START, 3)
    assert "must specify the START flag" in refusal(bench, 2)
    bench.send(1, END, 4)
    bench.drain()
    assert values(bench) == [[1], [2], [3], [4]]
    assert list(bench.sink.of.values()) == [1, 2, 3, 7]


def test_timeouts_are_for_the_backlog() -> None:
    """A request with a time-out takes its whole sequence along when no slot came free; in a slot it means nothing."""
    bench = Bench("max_sequence_idle_microseconds: 9000000 direct { }", batch=1)
    bench.send(1, START, 1, timeout_us=1000)
    waiting = [bench.send(2, START, 2), bench.send(2, 0, 3, timeout_us=5000)]
    bench.loop.advance(4 * MS)
    assert bench.sink.of == {}
    bench.loop.advance(2 * MS)
    errors = [bench.sink.of[request] for request in waiting]
    assert [(error.code, error.message) for error in errors if isinstance(error, InferError)] == [
        (Code.UNAVAILABLE, "timeout of the corresponding sequence has been expired")
    ] * 2
    assert "must specify the START flag" in refusal(bench, 2)
    bench.drain()
    assert bench.stats.failures
    assert bench.scheduler.inflight() == 0


def test_a_request_nobody_waits_for_ends_its_sequence() -> None:
    """What comes after it would be wrong: it is cancelled, too, and START is asked for."""
    bench = Bench(OLDEST)
    running = bench.send(1, START, 1)
    bench.loop.settle()
    gone, after = bench.send(1, 0, 2), bench.send(1, 0, 3)
    gone.form.withdraw(gone)
    bench.loop.settle()
    assert {bench.sink.of[each].code for each in (gone, after)} == {Code.CANCELLED}  # type: ignore[union-attr]
    assert "must specify the START flag" in refusal(bench, 1)
    bench.drain()
    assert bench.sink.of[running] == 1


def test_a_deadline_of_the_client_is_kept() -> None:
    """On time, though the instance is busy; what follows in the sequence is cancelled."""
    bench = Bench(OLDEST)
    bench.send(1, START, 1)
    bench.loop.settle()
    late = bench.send(1, 0, 2, expires_ns=bench.loop.now + 5 * MS)
    after = bench.send(1, 0, 3)
    bench.loop.advance(6 * MS)
    assert [bench.sink.of[each].message for each in (late, after)] == [  # type: ignore[union-attr]
        "Request timeout expired",
        "",
    ]


def test_a_running_request_hears_that_it_is_cancelled() -> None:
    """The instance's own request says so; the sequence goes on if it is answered."""
    bench = Bench(OLDEST)
    request = bench.send(1, START, 1)
    bench.loop.settle()
    request.form.withdraw(request)
    bench.loop.settle()
    assert bench.instances[0].batch[0].cancelled
    bench.drain()
    bench.send(1, 0, 2)
    bench.drain()
    assert list(bench.sink.of.values()) == [1, 3]


def test_a_request_that_was_dropped_ends_its_sequence() -> None:
    """An instance that never executed it says CANCELLED."""
    bench = Bench(OLDEST)
    request = bench.send(1, START, 1)
    bench.loop.settle()
    request.form.withdraw(request)
    bench.loop.settle()
    bench.finish(error=InferError(Code.CANCELLED, ""))
    assert "must specify the START flag" in refusal(bench, 1)


@pytest.mark.parametrize("ends", [0, END])
def test_an_id_is_free_when_what_runs_of_it_is_answered(ends: int) -> None:
    """A sequence is dropped while a request of it runs: the next of its id waits for that one, and is not dropped with
    it."""
    bench = Bench("direct { }", instances=2)
    running = bench.send(1, START, 1)
    bench.loop.settle()
    gone = bench.send(1, ends, 2)
    gone.form.withdraw(gone)
    bench.loop.settle()
    assert "must specify the START flag" in refusal(bench, 1)
    again, after = bench.send(1, START, 10), bench.send(1, END, 20)
    running.form.withdraw(running)
    bench.loop.settle()
    assert values(bench) == [[1]]
    bench.finish(error=InferError(Code.CANCELLED, ""))
    bench.drain()
    assert [bench.sink.of[each] for each in (again, after)] == [10, 30]
    assert bench.scheduler.sequences() == 0


@pytest.mark.parametrize("lost", [False, True])
def test_a_cancelled_end_is_the_matter_of_its_sequence_alone(lost: bool) -> None:
    """The next sequence of the same id waits for it, and goes on."""
    bench = Bench(OLDEST)
    end = bench.send(1, START | END, 1)
    bench.loop.settle()
    again = bench.send(1, START, 10)
    end.form.withdraw(end)
    bench.loop.settle()
    bench.finish(error=InferError(Code.CANCELLED, "") if lost else None)
    bench.drain()
    assert bench.sink.of[again] == 10


def test_the_next_of_a_dropped_id_takes_its_turn_behind_the_backlog() -> None:
    """It is another sequence, which came later than those that wait for a slot."""
    bench = Bench("direct { }", batch=1)
    bench.send(1, START, 1)
    bench.loop.settle()
    gone = bench.send(1, 0, 2)
    bench.send(2, START | END, 100)
    gone.form.withdraw(gone)
    bench.loop.settle()
    bench.send(1, START | END, 10)
    bench.drain()
    assert values(bench) == [[1], [100], [10]]


def test_a_model_that_says_cancelled_has_failed() -> None:
    """Nobody has cancelled the request: as after any error the sequence goes on."""
    bench = Bench(OLDEST + STATE)
    bench.send(1, START, 1)
    bench.drain()
    bench.send(1, 0, 10)
    bench.loop.settle()
    bench.finish(error=InferError(Code.CANCELLED, "the model's word"))
    bench.send(1, 0, 100)
    bench.drain()
    assert bench.batches[-1][0].state == 1


def test_failures_do_not_end_a_sequence() -> None:
    """As in Triton: the client may go on, or begin anew."""
    bench = Bench(OLDEST + STATE)
    bench.send(1, START, 1)
    bench.drain()
    bench.send(1, 0, 10)
    bench.loop.settle()
    bench.finish(error=internal("no"))
    bench.send(1, 0, 100)
    bench.drain()
    assert bench.batches[-1][0].state == 1


def test_a_start_that_fails_leaves_nothing_of_the_old_state() -> None:
    """The next request finds the initial state."""
    bench = Bench(OLDEST + STATE)
    bench.send(1, START, 1)
    bench.drain()
    bench.send(1, START, 10)
    bench.loop.settle()
    bench.finish(error=internal("no"))
    bench.send(1, 0, 100)
    bench.drain()
    assert bench.batches[-1][0].state == 0


def test_states_are_the_servers_matter() -> None:
    """The output of one request is the input of the next; clients do not see it."""
    bench = Bench(OLDEST + STATE)
    for flags in (START, 0, 0):
        bench.send(1, flags, 5)
        bench.send(2, flags, 7)
    bench.drain()
    assert [[row.state for row in batch] for batch in bench.batches] == [[0, 0], [5, 7], [10, 14]]
    assert set(map(tuple, bench.sink.names.values())) == {("OUT",)}


def test_states_that_are_outputs_are_shown() -> None:
    """A state that is listed as an output may be asked for."""
    bench = Bench(OLDEST + STATE)
    bench.config.output.add(name="STATE_OUT", data_type=9, dims=[1])
    bench.scheduler.controls._outputs = ("OUT", "STATE_OUT")
    bench.send(1, START, 5)
    bench.drain()
    assert list(bench.sink.names.values()) == [["OUT", "STATE_OUT"]]


def test_answers_may_keep_the_order_of_their_batch() -> None:
    """With preserve_ordering, what is answered out of order waits for those before it."""
    bench = Bench("oldest { max_candidate_sequences: 4 preserve_ordering: true }")
    sent = [bench.send(name, START, name) for name in (1, 2, 3)]
    bench.loop.settle()
    batch = bench.instances[0].batch
    error = internal("no")
    for index in (2, 1):
        batch[index].sink.fail(batch[index], error)
    assert bench.sink.order == []
    batch[0].sink.fail(batch[0], error)
    assert bench.sink.order == sent


def test_stopping_lets_sequences_go_on() -> None:
    """Those that have begun; new ones are refused."""
    bench = Bench(OLDEST)
    bench.send(1, START, 1)
    bench.drain()
    bench.scheduler.stop()
    assert "Server is stopping" in refusal(bench, 2, START)
    bench.send(1, END, 2)
    bench.drain()
    assert list(bench.sink.of.values()) == [1, 3]
    bench.scheduler.close()


def test_iterative_requests_are_sequences_of_their_own() -> None:
    """Each has an id of its own, START the first time, and runs again in a later batch until it is answered."""
    bench = Bench("iterative_sequence: true " + OLDEST)
    first, second = bench.send(0, 0, 5), bench.send(0, 0, 7)
    bench.loop.settle()
    seen = [[(row.controls["START"], row.controls["CORRID"]) for row in bench.batches[0]]]
    instance = bench.instances[0]
    for request in instance.batch:
        assert request.form.reschedule is not None
        request.form.reschedule(request)
    idle, instance.idle, instance.batch = instance.idle, None, ()
    assert idle is not None
    idle()
    bench.loop.settle()
    seen.append([(row.controls["START"], row.controls["CORRID"]) for row in bench.batches[1]])
    ids = [each for _, each in seen[0]]
    assert len(set(ids)) == 2
    assert seen == [[(1, ids[0]), (1, ids[1])], [(0, ids[0]), (0, ids[1])]]
    assert bench.scheduler.inflight() == 2
    bench.drain()
    assert set(bench.sink.of) == {first, second}
    assert bench.scheduler.inflight() == 0


def test_an_iterative_request_that_is_cancelled_does_not_run_again() -> None:
    """It is refused when the model gives it back."""
    bench = Bench("iterative_sequence: true " + OLDEST)
    request = bench.send(0, 0, 5)
    bench.loop.settle()
    request.form.withdraw(request)
    bench.loop.settle()
    made = bench.instances[0].batch[0]
    assert made.form.reschedule is not None
    made.form.reschedule(made)
    error = bench.sink.of[request]
    assert isinstance(error, InferError)
    assert error.code is Code.CANCELLED


def give_back(bench: Bench) -> None:
    """The model releases what it runs, to have it again."""
    instance = bench.instances[0]
    for request in instance.batch:
        assert request.form.reschedule is not None
        request.form.reschedule(request)
    idle, instance.idle, instance.batch = instance.idle, None, ()
    assert idle is not None
    idle()


def test_a_deadline_is_kept_while_an_iterative_request_runs_again_and_again() -> None:
    """Also where other deadlines have passed while it ran."""
    bench = Bench("iterative_sequence: true " + OLDEST, batch=1)
    now = bench.loop.now
    bench.send(0, 0, 1, expires_ns=now + 20 * MS)
    other = bench.send(0, 0, 2, expires_ns=now + 5 * MS)
    bench.loop.advance(6 * MS)
    assert isinstance(bench.sink.of[other], InferError)
    give_back(bench)
    blocker = bench.send(0, 0, 3)
    bench.loop.advance(1 * MS)
    while bench.instances[0].batch[0].client is not blocker:  # type: ignore[attr-defined]
        give_back(bench)
        bench.loop.settle()
    bench.loop.advance(30 * MS)
    assert [str(error) for error in bench.sink.of.values()] == ["Unavailable: Request timeout expired"] * 2


def test_forms_are_made_once() -> None:
    """Requests of one form give the instance one form, whatever their bytes."""
    bench = Bench(OLDEST)
    bench.send(1, START)
    bench.drain()
    forms = []
    for _ in range(2):
        bench.send(1, 0)
        bench.loop.settle()
        forms.append(bench.instances[0].batch[0].form)
        bench.drain()
    assert forms[0] is forms[1]
