"""What loads and unloads do to ensembles and the models of their steps, with models that are fakes."""

from __future__ import annotations

import pytest

from conch.pb.model_config_pb2 import TYPE_FP32, ModelConfig
from conch.registry.ensembles import EnsembleLoader
from conch.registry.served import ServedVersion
from conch.registry.stopping import stop_next
from conch.repository.api import StoredModel
from conch.schedule.api import Version
from conch.schedule.ensemble import EnsembleScheduler
from conch.types.error import InferError
from conch.types.request import RequestForm, RequestHead
from support.fake_models import FakeLoaded, House, fake_prepare, loaded_of, scheduler_of

pytestmark = pytest.mark.slow


def prepare(stored: StoredModel) -> ModelConfig:
    """`steps a b:2` makes an ensemble that runs a and then version 2 of b; other configs are `fake_prepare`'s. All have
    an input x and an output y, which for the word `wide` has two elements; for `gpu` they run on GPU 0."""
    config = fake_prepare(stored)
    text = stored.config_text or ""
    config.input.add(name="x", data_type=TYPE_FP32, dims=[1])
    config.output.add(name="y", data_type=TYPE_FP32, dims=[2 if "wide" in text else 1])
    if "gpu" in text:
        config.instance_group.add(name="g", count=1, kind="KIND_GPU", gpus=[0])
    if text.startswith("steps "):
        config.platform, config.backend = "ensemble", ""
        models = text.split()[1:]
        for number, model in enumerate(models):
            name, _, version = model.partition(":")
            step = config.ensemble_scheduling.step.add(model_name=name, model_version=int(version or -1))
            step.input_map["x"] = f"t{number}" if number else "x"
            step.output_map["y"] = f"t{number + 1}" if number + 1 < len(models) else "y"
    return config


def no_form(member: Version, head: RequestHead) -> RequestForm:
    raise NotImplementedError


class Pipelines(House):
    """A registry with ensembles over fakes."""

    def __init__(self, **options: object) -> None:
        super().__init__(prepare, EnsembleLoader(no_form, lambda call: call()), **options)

    def put(self, **models: str) -> Pipelines:
        for name, config in models.items():
            self.store.put(name, 1, config=config)
        return self

    def refusal(self, name: str) -> str:
        error = self.registry.load(name, {}).exception(30)
        assert isinstance(error, InferError), error
        return error.message

    def drop(self, name: str, *, cascade: bool = False) -> None:
        self.registry.unload(name, cascade).result(30)

    def ready(self) -> list[str]:
        return sorted({served.name for served in self.registry.ready_versions()})

    def serving(self, name: str) -> ServedVersion:
        return self.registry.find(name, "")


def test_members_are_loaded_before_their_ensemble() -> None:
    """Loading an ensemble loads what it needs, whatever that needs included, and nothing else."""
    with Pipelines().put(top="steps e b", e="steps a b", a="", b="", other="") as house:
        house.load("top")
        assert house.ready() == ["a", "b", "e", "top"]


@pytest.mark.parametrize("names", [("e", "a", "b"), ("a", "b", "e"), ("b", "e", "a")])
def test_order_does_not_matter_at_start_up(names: tuple[str, ...]) -> None:
    """All models are loaded once, members first."""
    with Pipelines(load_models=names).put(e="steps a b", a="", b="") as house:
        house.registry.start()
        assert house.ready() == ["a", "b", "e"]
        assert sorted(served.name for served in house.loader.made) == ["a", "b"]
        assert house.registry.ready()


def test_hundred_ensembles_at_once_do_not_wait_for_each_other_for_ever() -> None:
    """More ensembles than threads, each waiting for members, all come up."""
    with Pipelines(control_mode="none") as house:
        house.put(base="")
        for number in range(100):
            house.store.put(f"e{number:03}", 1, config=f"steps {f'e{number - 1:03}' if number else 'base'}")
        house.registry.start()
        assert len(house.ready()) == 101


@pytest.mark.parametrize(
    ("models", "name", "message"),
    [
        ({"e": "steps e"}, "e", "circular dependency between ensembles: e -> ... -> e -> e"),
        (
            {"e": "steps f", "f": "steps g", "g": "steps e"},
            "e",
            "circular dependency between ensembles: e -> ... -> g -> e",
        ),
        (
            {"e": "steps a", "a": "fails"},
            "e",
            (
                "ensemble 'e' depends on 'a' which has no loaded version. Model 'a' loading failed with error: version "
                "1 is at UNAVAILABLE state: Internal: RuntimeError: boom;"
            ),
        ),
        (
            {"top": "steps e", "e": "steps a", "a": "fails"},
            "top",
            (
                "ensemble 'top' depends on 'e' which is not valid. Model 'e' failed with error: ensemble 'e' depends "
                "on 'a' which has no loaded version. Model 'a' loading failed with error: version 1 is at UNAVAILABLE "
                "state: "
                "Internal: RuntimeError: boom;"
            ),
        ),
        (
            {"e": "steps a ghost wraith", "a": ""},
            "e",
            "ensemble e contains models that are not available or ambiguous: ghost",
        ),
        ({"e": "steps a:7", "a": ""}, "e", "ensemble 'e' depends on 'a' whose required version 7 is not loaded."),
        (
            {"e": "steps a b", "a": "wide", "b": ""},
            "e",
            (
                "in ensemble e, ensemble tensor t1: inconsistent shape: [2] is inferred from model a while [1] is "
                "inferred from model b"
            ),
        ),
    ],
)
def test_refusals(models: dict[str, str], name: str, message: str) -> None:
    """Each way in which an ensemble cannot be has Triton's text, which is the reason in the index."""
    with Pipelines().put(**models) as house:
        house.loader.broken["a", 1] = RuntimeError("boom")
        if models.get("a") != "fails":
            house.loader.broken.clear()
        assert house.refusal(name) == f"load failed for model '{name}': {message}\n"
        assert (name, "", "UNAVAILABLE", f"Invalid argument: {message}") in house.index()


def test_an_ensemble_goes_and_comes_with_its_member() -> None:
    """Unloading a member takes every ensemble above it out of service; loading it brings them back."""
    with Pipelines().put(top="steps a e", e="steps a b", a="", b="") as house:
        house.registry.start()
        house.load("top")
        member = house.serving("a")
        house.drop("a")
        assert house.ready() == ["b"]
        assert house.registry._reaper.wait(10)
        assert loaded_of(member).closed.is_set()
        assert house.state("top") == {"1": "UNAVAILABLE"}
        assert house.registry.ready()
        house.load("a")
        assert house.ready() == ["a", "b", "e", "top"]


def test_an_ensemble_that_was_unloaded_stays_so() -> None:
    """A member's load brings back only ensembles that somebody wants."""
    with Pipelines().put(e="steps a", a="") as house:
        house.load("e")
        house.drop("e")
        house.drop("a")
        house.load("a")
        assert house.ready() == ["a"]


def test_a_reloaded_member_is_taken_over() -> None:
    """The ensemble is made anew on the new member and goes on counting; the old one is closed with the old member."""
    with Pipelines().put(e="steps a", a="") as house:
        house.load("e")
        before, old = house.serving("e"), house.serving("a")
        before.stats.success.count = 5
        house.store.put("a", 1, config="", v1="changed")
        house.load("a")
        assert house.serving("e") is not before
        assert house.serving("e").stats.success.count == 5
        assert house.serving("a") is not old
        assert loaded_of(old).closed.wait(10)


def test_a_member_that_no_longer_fits_takes_the_ensemble_out_of_service() -> None:
    """The ensemble is checked again when a member changes; it comes back when the member fits again."""
    with Pipelines().put(e="steps a b", a="", b="") as house:
        house.load("e")
        house.store.put("a", 1, config="wide")
        house.load("a")
        assert house.ready() == ["a", "b"]
        house.store.put("a", 1, config="")
        house.load("a")
        assert house.ready() == ["a", "b", "e"]


def test_nothing_is_made_anew_when_nothing_changed() -> None:
    """Loading an unchanged ensemble or member keeps what serves."""
    with Pipelines().put(e="steps a", a="") as house:
        house.load("e")
        before = house.serving("e")
        house.load("a")
        house.load("e")
        assert house.serving("e") is before
        assert len(house.loader.made) == 1


def test_a_bad_new_config_leaves_the_old_ensemble_serving() -> None:
    """All or nothing: an ensemble whose new config is refused goes on as it was while its members do."""
    with Pipelines().put(e="steps a", a="", b="wide") as house:
        house.load("e")
        before = house.serving("e")
        house.store.put("e", 1, config="steps b")
        assert "inconsistent shape" in house.refusal("e")
        assert house.serving("e") is before


def test_unload_dependents() -> None:
    """What only the ensemble needed, and nobody asked for, goes with it."""
    with Pipelines().put(top="steps e b c", e="steps a b", other="steps c", a="", b="", c="") as house:
        house.load("b")
        house.load("other")
        house.load("top")
        house.drop("top", cascade=True)
        assert house.ready() == ["b", "c", "other"]
        house.drop("other")
        assert house.ready() == ["b", "c"]


def test_a_member_is_not_stopped_while_an_ensemble_runs_on_it() -> None:
    """Unloading both lets requests that are half-way through the ensemble go on to the end."""
    with Pipelines().put(e="steps a", a="") as house:
        house.load("e")
        served, member = house.serving("e"), house.serving("a")
        served.scheduler._runs["request"] = None  # type: ignore[attr-defined]
        house.drop("a")
        assert house.ready() == []
        assert not loaded_of(member).closed.wait(0.1)
        assert scheduler_of(member).stopped == 0
        served.scheduler._runs.clear()  # type: ignore[attr-defined]
        assert loaded_of(member).closed.wait(10)


def test_parameters_of_a_members_load_are_kept() -> None:
    """Loading an ensemble does not undo the config that a member was loaded with."""
    with Pipelines().put(e="steps a", a="") as house:
        house.load("a", config="wide")
        assert "inconsistent shape" in house.refusal("e")
        house.load("a", config="other")
        house.load("e")
        assert house.serving("a").config.metric_tags["text"] == "other"


def test_ensembles_are_stopped_before_their_members() -> None:
    """At the end, what has begun in an ensemble still finds the models of its steps at work."""
    with Pipelines().put(top="steps e", e="steps a", a="", b="") as house:
        house.load("top")
        house.load("b")
        versions, stopped = house.registry.ready_versions(), set[int]()
        order = []
        for _ in range(3):
            before = set(stopped)
            done = stop_next(versions, stopped)
            order.append(sorted(each.name for each in versions if each.serial in stopped - before))
        assert order == [["b", "top"], ["e"], ["a"]]
        assert done


def test_a_member_of_a_busy_ensemble_goes_on() -> None:
    """A model is not stopped as long as any request is under way in an ensemble above it."""
    with Pipelines().put(e="steps a", a="") as house:
        house.load("e")
        served, member = house.serving("e"), house.serving("a")
        served.scheduler._runs["request"] = None  # type: ignore[attr-defined]
        stopped: set[int] = set()
        assert [stop_next([served, member], stopped) for _ in range(3)] == [False] * 3
        assert scheduler_of(member).stopped == 0
        served.scheduler._runs.clear()  # type: ignore[attr-defined]
        assert stop_next([served, member], stopped)


def test_tensors_between_models_on_a_gpu_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is decided when the ensemble is made, by what its models say then, and anew when one of them is reloaded."""
    able = property(lambda self: lambda: (frozenset("x"), frozenset("y")))
    monkeypatch.setattr(FakeLoaded, "device_tensors", able, raising=False)
    with Pipelines().put(e="steps a b c", a="gpu", b="gpu", c="") as house:

        def stays() -> list[set[str]]:
            scheduler = house.serving("e").scheduler
            assert isinstance(scheduler, EnsembleScheduler)
            return [set(each) for each in scheduler._cast.stays]

        house.load("e")
        assert stays() == [{"y"}, set(), set()]
        house.put(c="gpu")
        house.load("c")
        assert stays() == [{"y"}, {"y"}, set()]
