"""What loads and unloads do to what serves, with models that are fakes."""

from __future__ import annotations

import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from conch.registry.served import ServedVersion
from conch.registry.threads import Threads
from conch.service.models import Models
from conch.types.error import Code, InferError
from support.fake_models import House, loaded_of, scheduler_of
from support.until import until

pytestmark = pytest.mark.slow


def error_of(future: Future[None]) -> InferError:
    error = future.exception(30)
    assert isinstance(error, InferError)
    return error


def refusal(house: House, name: str, version: str = "") -> tuple[Code, str]:
    with pytest.raises(InferError) as caught:
        house.registry.find(name, version)
    return caught.value.code, caught.value.message


def test_start_loads_every_model_and_a_broken_one_stops_no_other() -> None:
    """Without model control all models are loaded; those that fail are UNAVAILABLE with their reason."""
    with House(control_mode="none") as house:
        house.store.put("bad", 1)
        house.store.put("good", 1)
        house.store.put("nover")
        house.store.put("text", 1, config="broken")
        house.loader.broken["bad", 1] = RuntimeError("boom")
        house.registry.start()
        assert house.index() == [
            ("bad", "1", "UNAVAILABLE", "Internal: RuntimeError: boom"),
            ("good", "1", "READY", ""),
            (
                "nover",
                "",
                "UNAVAILABLE",
                "Invalid argument: at least one version must be available under the version policy of model 'nover'",
            ),
            ("text", "", "UNAVAILABLE", "Internal: this config is broken"),
        ]
        assert not house.registry.ready()
        assert house.registry.find("good", "").version == 1


def test_start_raises_when_the_server_exits_on_errors() -> None:
    """With exit-on-error, one model that fails is the end of the start."""
    with House(control_mode="explicit", exit_on_error=True, load_models=("good", "ghost")) as house:
        house.store.put("good", 1)
        with pytest.raises(InferError) as caught:
            house.registry.start()
        assert str(caught.value) == "Internal: failed to load all models"


def test_start_in_explicit_mode_loads_the_models_named() -> None:
    """Explicit mode loads what `--load-model` names, `*` stands for all, and must stand alone."""
    for wanted, loaded in ((("a",), ["a"]), (("*",), ["a", "b"]), ((), [])):
        with House(load_models=wanted) as house:
            house.store.put("a", 1)
            house.store.put("b", 1)
            house.registry.start()
            assert [served.name for served in house.registry.ready_versions()] == loaded
            assert house.registry.ready()
    with House(load_models=("*", "a")) as house, pytest.raises(InferError, match="ONLY startup model"):
        house.registry.start()


def test_poll_mode_starts_with_all_models() -> None:
    """Who polls begins with everything that is there."""
    with House(control_mode="poll") as house:
        house.store.put("a", 1)
        house.registry.start()
        assert [served.name for served in house.registry.ready_versions()] == ["a"]


def test_a_forced_load_makes_anew_what_has_not_changed() -> None:
    """`force_reload` loads all versions again, says nothing of the model, and lasts for one load."""
    with House() as house:
        house.registry.start()
        house.store.put("m", 1, 2, config="all")
        house.load("m")
        before = [house.registry.find("m", version) for version in ("1", "2")]
        house.load("m", force_reload="false")
        assert [house.registry.find("m", version) for version in ("1", "2")] == before
        house.load("m", force_reload="true")
        after = [house.registry.find("m", version) for version in ("1", "2")]
        assert not set(map(id, after)) & set(map(id, before))
        house.load("m")
        assert [house.registry.find("m", version) for version in ("1", "2")] == after


def test_a_config_that_was_never_understood_holds_back_no_readiness() -> None:
    """As in Triton: a model that nobody can know yet is no reason to send clients away, one that fails to load is."""
    with House(control_mode="poll") as house:
        house.store.put("good", 1)
        house.registry.start()
        house.store.put("mistaken", 1, config="broken")
        error_of(house.registry.load("mistaken", {}))
        assert house.registry.ready()
        house.store.put("nover")
        error_of(house.registry.load("nover", {}))
        assert not house.registry.ready()


def test_look_up_texts() -> None:
    """Each way in which a model cannot be had has Triton's own text."""
    with House() as house:
        house.registry.start()
        house.store.put("m", 1, 2, config="all")
        house.store.put("bad", 1)
        house.loader.broken["bad", 1] = RuntimeError("boom")
        house.load("m")
        error_of(house.registry.load("bad", {}))
        assert house.registry.find("m", "").version == 2
        assert house.registry.find("m", "1").version == 1
        assert house.registry.find("m", "01").version == 1
        assert refusal(house, "ghost") == (Code.NOT_FOUND, "Request for unknown model: 'ghost' is not found")
        assert refusal(house, "ghost", "1") == (Code.NOT_FOUND, "Request for unknown model: 'ghost' is not found")
        assert refusal(house, "m", "3") == (Code.NOT_FOUND, "Request for unknown model: 'm' version 3 is not found")
        assert refusal(house, "bad") == (Code.NOT_FOUND, "Request for unknown model: 'bad' has no available versions")
        assert refusal(house, "bad", "1") == (
            Code.UNAVAILABLE,
            "Request for unknown model: 'bad' version 1 is not at ready state",
        )
        assert refusal(house, "m", "x") == (
            Code.INVALID_ARG,
            (
                "failed to get model version from specified version string 'x' (details: stol), "
                "version should be an integral value > 0"
            ),
        )
        assert refusal(house, "m", "-1") == (
            Code.INVALID_ARG,
            "invalid model version specified '-1' , version should be an integral value > 0",
        )
        assert refusal(house, "m", "9" * 20)[0] is Code.INVALID_ARG


def test_no_model_answers_before_the_start_is_over() -> None:
    """Until the start-up load has finished, what is not there yet may still come."""
    with House() as house:
        assert refusal(house, "m") == (Code.UNAVAILABLE, "Server not ready")
        assert not house.registry.ready()


def test_load_errors_are_told_as_triton_tells_them() -> None:
    """The text of a failed load names every version that failed, and its reason."""
    with House() as house:
        house.store.put("two", 1, 2, config="all")
        house.store.put("nover")
        house.store.put("text", 1, config="broken")
        house.loader.broken["two", 1] = InferError(Code.INVALID_ARG, "no")
        house.loader.broken["two", 2] = MemoryError()
        assert str(error_of(house.registry.load("two", {}))) == (
            "Invalid argument: load failed for model 'two': version 1 is at UNAVAILABLE state: Invalid argument: no;"
            "version 2 is at UNAVAILABLE state: Internal: MemoryError;\n"
        )
        assert str(error_of(house.registry.load("nover", {}))) == (
            "Invalid argument: load failed for model 'nover': at least one version must be available under the "
            "version policy of model 'nover'\n"
        )
        for name in ("text", "ghost"):
            assert str(error_of(house.registry.load(name, {}))) == (
                f"Internal: failed to load '{name}', failed to poll from model repository"
            )


def test_one_failing_version_fails_the_load_and_closes_its_siblings() -> None:
    """A load is all or nothing."""
    with House() as house:
        house.store.put("half", 1, 2, config="all")
        house.loader.broken["half", 2] = SystemExit(3)
        error_of(house.registry.load("half", {}))
        assert loaded_of(house.loader.made[0]).closed.wait(30)
        assert house.index() == [
            ("half", "1", "UNAVAILABLE", "unloaded"),
            ("half", "2", "UNAVAILABLE", "Internal: SystemExit: 3"),
        ]


def test_load_of_an_unchanged_model_does_nothing() -> None:
    """Loading again what is loaded and unchanged is a success that changes nothing."""
    with House() as house:
        house.store.put("m", 1)
        house.load("m")
        generation = house.registry.generation
        house.load("m")
        assert len(house.loader.made) == 1
        assert house.registry.generation == generation


def test_reload_replaces_only_the_versions_that_changed() -> None:
    """A changed version folder makes that version new; the others go on as they are."""
    with House() as house:
        house.store.put("m", 1, 2, config="all")
        house.load("m")
        first = house.registry.find("m", "1")
        second = house.registry.find("m", "2")
        house.store.put("m", 1, 2, config="all", v2="changed")
        house.load("m")
        assert house.registry.find("m", "1") is first
        assert house.registry.find("m", "2") is not second
        assert loaded_of(second).closed.wait(30)


def test_reload_with_another_config_replaces_every_version() -> None:
    """A changed config makes all versions new."""
    with House() as house:
        house.store.put("m", 1, 2, config="all")
        house.load("m")
        house.store.put("m", 1, 2, config="all other")
        house.load("m")
        assert len(house.loader.made) == 4


def test_old_versions_serve_until_all_new_ones_are_ready() -> None:
    """A reload is make-before-break, and swaps all versions at once."""
    with House() as house:
        house.store.put("m", 1)
        house.load("m")
        old = house.registry.find("m", "")
        house.loader.gates["m"] = threading.Event()
        house.store.put("m", 1, 2, config="all", v1="changed")
        pending = house.registry.load("m", {})
        for _ in range(3):
            assert house.loader.entered.acquire(timeout=30)
        assert house.registry.find("m", "") is old
        assert house.state("m") == {"1": "READY", "2": "LOADING"}
        generation = house.registry.generation
        house.loader.gates["m"].set()
        pending.result(30)
        assert house.registry.generation == generation + 1
        assert house.registry.find("m", "").version == 2
        assert house.state("m") == {"1": "READY", "2": "READY"}


def test_failed_reload_leaves_the_old_versions_serving() -> None:
    """When a reload fails, its error goes to the caller and nothing else changes."""
    with House() as house:
        house.registry.start()
        house.store.put("m", 1)
        house.load("m")
        old = house.registry.find("m", "")
        for config in ("other", "broken"):
            house.store.put("m", 1, config=config)
            house.loader.broken["m", 1] = RuntimeError("boom")
            error_of(house.registry.load("m", {}))
            assert house.registry.find("m", "") is old
            assert house.state("m") == {"1": "READY"}
            assert house.registry.ready()
        assert scheduler_of(old).stopped == 0


def test_replaced_version_is_closed_only_when_its_last_request_is_answered() -> None:
    """Requests in flight on the old version are answered by it."""
    with House() as house:
        house.store.put("m", 1)
        house.load("m")
        old = house.registry.find("m", "")
        scheduler_of(old).busy = 1
        house.store.put("m", 1, v1="changed")
        house.load("m")
        assert house.registry.find("m", "") is not old
        assert not loaded_of(old).closed.wait(0.05)
        scheduler_of(old).busy = 0
        assert loaded_of(old).closed.wait(30)
        assert (scheduler_of(old).stopped, scheduler_of(old).closed) == (1, 1)


def test_unload_returns_at_once_and_ends_when_the_last_request_is_answered() -> None:
    """An unloaded version is UNLOADING while requests are in flight, and then UNAVAILABLE, `unloaded`."""
    with House() as house:
        house.registry.start()
        house.store.put("m", 1)
        house.load("m")
        served = house.registry.find("m", "")
        scheduler_of(served).busy = 1
        house.unload("m")
        assert house.state("m") == {"1": "UNLOADING"}
        assert refusal(house, "m")[1] == "Request for unknown model: 'm' has no available versions"
        scheduler_of(served).busy = 0
        assert loaded_of(served).closed.wait(30)
        wait_for_state(house, ("m", "1", "UNAVAILABLE", "unloaded"))
        assert house.registry.ready()


def test_model_loaded_again_while_it_drains_is_not_ended_by_the_old_unload() -> None:
    """The end of an old unload says nothing about a version loaded since."""
    with House() as house:
        house.store.put("m", 1)
        house.load("m")
        old = house.registry.find("m", "") if house.registry.ready() else house.registry.ready_versions()[0]
        scheduler_of(old).busy = 1
        house.unload("m")
        house.load("m")
        scheduler_of(old).busy = 0
        assert loaded_of(old).closed.wait(30)
        assert house.state("m") == {"1": "READY"}


def test_unload_of_a_failed_model_makes_the_server_ready() -> None:
    """A failed model counts against strict readiness until it is unloaded; an unknown one can be unloaded."""
    with House() as house:
        house.registry.start()
        house.store.put("bad", 1)
        house.store.put("nover")
        house.loader.broken["bad", 1] = RuntimeError("boom")
        error_of(house.registry.load("bad", {}))
        error_of(house.registry.load("nover", {}))
        assert not house.registry.ready()
        house.unload("bad")
        assert not house.registry.ready()
        house.unload("nover")
        house.unload("ghost")
        assert house.registry.ready()


def test_version_that_is_no_longer_wanted_is_unloaded_after_the_swap() -> None:
    """A version outside the new policy goes once the new ones are ready; one whose folder is gone is forgotten."""
    with House() as house:
        house.store.put("m", 1, 2, config="all")
        house.load("m")
        house.store.put("m", 1, 2, config="")
        house.load("m")
        wait_for_state(house, ("m", "1", "UNAVAILABLE", "unloaded"))
        house.store.put("m", 2, 3, config="")
        house.load("m")
        assert set(house.state("m")) == {"2", "3"}


def test_readiness_asks_the_runtime_and_a_dead_one_is_loaded_anew() -> None:
    """A version whose runtime cannot answer is not ready, and a load of it is no longer a no-op."""
    with House() as house:
        house.registry.start()
        house.store.put("m", 1)
        house.load("m")
        loaded_of(house.registry.find("m", "")).well = False
        assert not house.registry.ready()
        house.load("m")
        assert len(house.loader.made) == 2
        assert house.registry.ready()


def test_readiness_without_strictness_means_started() -> None:
    """Without strict readiness a failed model does not make the server unready."""
    with House(strict_readiness=False, control_mode="none") as house:
        house.store.put("bad", 1, config="broken")
        house.registry.start()
        assert house.registry.ready()


def test_override_is_undone_by_the_next_plain_load() -> None:
    """A config that came with a load replaces the repository's until the next plain load."""
    with House() as house:
        house.store.put("m", 1)
        house.load("m")
        house.load("m", config="special")
        (served,) = house.registry.ready_versions("m")
        assert served.config.metric_tags["text"] == "special"
        house.load("m")
        assert house.registry.ready_versions("m")[0].config.metric_tags["text"] == ""
        assert loaded_of(served).closed.wait(30)
        until(lambda: house.store.released == 1)


def test_files_of_an_override_are_released_once_when_its_load_fails() -> None:
    """What was made for a load that fails is removed."""
    with House() as house:
        house.store.put("m", 1, 2)
        house.loader.broken["m", 2] = RuntimeError("boom")
        error_of(house.registry.load("m", {"config": "all", "file:1/x": b"x"}))
        until(lambda: house.store.released == 1)


def test_override_that_cannot_be_parsed_is_told_in_its_own_words() -> None:
    """A client hears what is wrong with the config that it sent, but not details of the repository."""
    with House() as house:
        house.store.put("m", 1)
        error = error_of(house.registry.load("m", {"config": "broken"}))
        assert error.message == "failed to load 'm', failed to poll from model repository"
        assert "this config is broken" in error.hint


def test_mistakes_of_a_client_do_not_make_the_server_unready() -> None:
    """A load of a model that is nowhere, or with a broken override, leaves the server as ready as it was."""
    with House() as house:
        house.registry.start()
        house.store.put("m", 1)
        error_of(house.registry.load("ghost", {}))
        error_of(house.registry.load("m", {"config": "broken"}))
        assert house.registry.ready()
        assert house.index() == [("m", "", "", "")]


def test_index_covers_what_the_repositories_hold_now() -> None:
    """A model never loaded has only a name, one whose folder is gone vanishes, a duplicate says so."""
    with House() as house:
        house.store.put("gone", 1)
        house.store.put("twice", 1)
        house.store.put("new", 1)
        house.load("gone")
        del house.store.models["gone"]
        house.store.twice = frozenset({"twice"})
        assert house.index() == [
            ("new", "", "", ""),
            ("twice", "", "UNAVAILABLE", "model appears in two or more repositories"),
        ]
        assert house.registry.index(True) == []


def test_loads_of_one_model_take_turns_and_of_different_models_run_together() -> None:
    """Two loads of a model never overlap; a slow model does not hold up another."""
    with House(load_threads=4) as house:
        house.store.put("slow", 1)
        house.store.put("quick", 1)
        house.loader.gates["slow"] = threading.Event()
        first = house.registry.load("slow", {})
        second = house.registry.load("slow", {})
        house.load("quick")
        assert not first.done()
        house.loader.gates["slow"].set()
        first.result(30)
        second.result(30)
        assert house.loader.most_running["slow"] == 1
        assert len(house.loader.made) == 2


def test_waiter_that_gives_up_does_not_stop_the_load() -> None:
    """The future of a load cannot be cancelled."""
    with House() as house:
        house.store.put("m", 1)
        house.loader.gates["m"] = threading.Event()
        future = house.registry.load("m", {})
        assert not future.cancel()
        house.loader.gates["m"].set()
        future.result(30)


def test_stop_waits_for_requests_and_closes_everything_once(caplog: pytest.LogCaptureFixture) -> None:
    """At the end requests in flight are answered, what waits is told of in the log, and nothing stays open."""
    house = House()
    house.store.put("m", 1, 2, config="all")
    house.load("m")
    busy = next(served for served in house.registry.ready_versions("m") if served.version == 2)
    scheduler_of(busy).busy = 3
    waiting = "Model 'm' (version 2) has 3 in-flight inferences"

    def answer() -> None:
        until(lambda: waiting in caplog.messages)
        scheduler_of(busy).busy = 0

    with caplog.at_level("INFO"), ThreadPoolExecutor(1) as client:
        client.submit(answer)
        assert house.registry.stop(60.0, tick=0.02)
    assert house.loader.times_closed() == [1, 1]
    assert "Waiting for in-flight requests to complete." in caplog.messages
    assert "All models are stopped, unloading models" in caplog.messages
    # The seconds that are left are the machine's.
    told = [each.split(": ", 1)[1] for each in caplog.messages if re.match(r"Timeout \d+: ", each)]
    assert "Found 1 model versions that have in-flight inferences" in told
    assert "Found 0 live models and 0 in-flight non-inference requests" in told


def test_stop_gives_up_at_its_deadline() -> None:
    """A request that never ends does not keep the server from ending."""
    house = House()
    house.store.put("m", 1)
    house.load("m")
    scheduler_of(house.registry.ready_versions("m")[0]).busy = 1
    assert not house.registry.stop(0.05)


def test_stop_lets_a_load_in_progress_end_and_then_closes_it(caplog: pytest.LogCaptureFixture) -> None:
    """A model that becomes ready while the server stops is closed too, and new loads are refused."""
    house = House()
    house.store.put("m", 1)
    gate = house.loader.gates["m"] = threading.Event()
    loading = house.registry.load("m", {})
    waiting = house.registry.load("m", {})
    assert house.loader.entered.acquire(timeout=30)

    def go_on() -> None:
        until(lambda: "Waiting for in-flight requests to complete." in caplog.messages)
        gate.set()

    with caplog.at_level("INFO"), ThreadPoolExecutor(1) as other:
        other.submit(go_on)
        assert house.registry.stop(30.0)
    assert loading.done()
    assert error_of(waiting).message == "Server exiting"
    assert error_of(house.registry.load("m", {})).message == "Server exiting"
    assert house.loader.times_closed() == [1]


def test_a_thousand_models_load_quickly() -> None:
    """The work per model does not grow with the number of models."""
    with House(control_mode="none") as house:
        for number in range(1000):
            house.store.put(f"m{number:04}", 1)
        house.registry.start()
        assert len(house.registry.ready_versions()) == 1000
        assert house.registry.ready()
        assert len(house.registry.index(True)) == 1000


def test_statuses_tell_of_every_model() -> None:
    """The table at start-up shows each version's state and why a model has none."""
    with House(control_mode="none") as house:
        house.store.put("good", 1)
        house.store.put("nover")
        house.registry.start()
        assert house.registry.statuses() == [
            ("good", "1", "READY"),
            (
                "nover",
                "-",
                (
                    "Not loaded: Invalid argument: at least one version must be available under the version policy "
                    "of model 'nover'"
                ),
            ),
        ]


def wait_for_state(house: House, entry: tuple[str, str, str, str]) -> None:
    until(lambda: entry in house.index())


def test_a_gate_that_breaks_leaves_what_serves() -> None:
    """Whatever it raises, the new versions are closed, the old ones serve, and the error says why."""

    def gate(new: object, old: object) -> None:
        raise ZeroDivisionError("no median")

    with House() as house:
        house.registry._loading._gate = gate
        house.store.put("m", 1)
        house.load("m")
        house.store.put("m", 1, v1="changed")
        assert "ZeroDivisionError: no median" in error_of(house.registry.load("m", {})).message
        assert house.registry.find("m", "") is house.loader.made[0]
        assert house.loader.made[1].loaded.closed.wait(30)  # type: ignore[attr-defined]
        assert house.loader.times_closed() == [0, 1]


def test_files_are_kept_until_a_load_without_versions_is_told() -> None:
    """A load that finds nothing to make tells that it serves before it gives its files back."""
    told: list[str] = []
    with House() as house:
        house.store.put("m", 1)
        house.load("m")
        model = house.store.models["m"]
        house.store.models["m"] = replace(
            model, release=lambda: told.append("released"), served=lambda: told.append("served")
        )
        house.load("m")
        house.registry.load_group({"m": {}}).result(30)
    assert told == ["served", "released"] * 2
    assert len(house.loader.made) == 1


def test_models_that_load_models_cannot_lock_the_server_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """More loads that wait for other loads than there are threads, one within the other, all come to their end."""
    depth = 20
    with House(load_threads=2) as house:
        models = Models()
        models.join(None, house.registry, house.registry.lend)  # type: ignore[arg-type]
        plain = house.loader.load

        def nested(*arguments: Any) -> ServedVersion:
            number = int(arguments[1].name.removeprefix("m"))
            if number % depth:
                models.load(f"m{number - 1}", {}).result(30)
                models.unload("nothing", False).result(30)
            return plain(*arguments)

        monkeypatch.setattr(house.registry._loading._loader, "load", nested)
        for number in range(3 * depth):
            house.store.put(f"m{number}", 1)
        futures = [house.registry.load(f"m{depth * each + depth - 1}", {}) for each in range(3)]
        for future in futures:
            future.result(30)
        assert len(house.loader.made) == 3 * depth


def test_threads_are_bounded_but_for_what_is_lent() -> None:
    """So many at a time, one more while a loan lasts, and the old number when it has ended."""
    threads, gate, entered = Threads(2, "test"), threading.Event(), threading.Semaphore(0)

    def work() -> None:
        entered.release()
        assert gate.wait(30)

    def begun(count: int) -> bool:
        """So many, and no more."""
        return all(entered.acquire(timeout=30) for _ in range(count)) and not entered.acquire(timeout=0.05)

    futures = [threads.submit(work) for _ in range(4)]
    loan: Future[None] = Future()
    assert begun(2)
    threads.lend(loan)
    assert begun(1)
    loan.set_result(None)
    threads.end(cancel=True)
    gate.set()
    assert [each.cancelled() for each in futures] == [False, False, False, True]
    with pytest.raises(RuntimeError):
        threads.submit(work)
