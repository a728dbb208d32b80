"""One version's load, with a backend that counts its steps and fails at any of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from conch.backend.api import Backend, Host, Instance, LoadedModel, ModelFiles, Placement
from conch.backend.find import BACKENDS, find_backend
from conch.memory.thrift import TRIM_THRESHOLD, Thrift
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig, ModelInstanceGroup
from conch.registry.lifecycle import Key
from conch.registry.loader import Loader
from conch.registry.prepare import prepare
from conch.registry.served import ServedVersion
from conch.repository.local import LocalStore
from conch.types.error import Code, InferError
from conch.types.model import ModelSpec
from support.fake_models import FakeScheduler

CONFIG = """
backend: "fake"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""


class Steps:
    """Counts the steps of a load; the step `fail_at` raises `error`. Keeps what is open."""

    def __init__(self, fail_at: int = 0, error: BaseException | None = None) -> None:
        self.count = 0
        self.fail_at = fail_at
        self.error = error or RuntimeError("boom")
        self.opened: list[str] = []
        self.closed: list[str] = []

    def step(self) -> None:
        self.count += 1
        if self.count == self.fail_at:
            raise self.error

    def open(self, what: str) -> str:
        self.opened.append(what)
        return what


class Part:
    """Something open: an instance, a loaded model."""

    def __init__(self, steps: Steps, name: str) -> None:
        steps.step()
        self.name = steps.open(name)
        self.steps = steps

    def run(self, batch: Sequence[object]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.steps.closed.append(self.name)
        if self.steps.fail_at:
            raise OSError("closing fails too")


class Model(Part):
    def __init__(self, steps: Steps) -> None:
        super().__init__(steps, "model")
        self.placements: list[Placement] = []

    def instance(self, placement: Placement) -> Instance:
        self.placements.append(placement)
        return Part(self.steps, placement.name)

    def ready(self) -> bool:
        return True


class FakeBackend:
    name = "fake"

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.completed = 0
        self.config: ModelConfig | None = None

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        self.steps.step()
        self.completed += 1
        if not config.output:
            config.output.add(name="y", data_type=11, dims=[2])

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> LoadedModel:
        self.config = config
        return Model(self.steps)


class Scheduler(FakeScheduler):
    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part

    def close(self) -> None:
        super().close()
        self.part.close()


class Bench:
    """A repository with one model, and a loader over the fake backend."""

    def __init__(self, root: Path, steps: Steps, config: str = CONFIG, **options: bool | int) -> None:
        (root / "m" / "1").mkdir(parents=True, exist_ok=True)
        (root / "m" / "config.pbtxt").write_text(config)
        self.steps = steps
        self.backend = FakeBackend(steps)
        self.released = 0
        self.auto_complete = bool(options.get("auto_complete", True))
        self.stored = LocalStore([root]).fetch("m")
        loop = asyncio.new_event_loop()
        loop.close()
        self.loader = Loader(self.find, self.build, lambda _: Host(loop), **options)  # type: ignore[arg-type]

    def find(self, name: str) -> Backend:
        self.steps.step()
        return self.backend

    def build(
        self, config: ModelConfig, instances: Sequence[Instance], stats: ModelStats, sequences: object = None
    ) -> Scheduler:
        return Scheduler(Part(self.steps, "scheduler"))

    def release(self) -> None:
        self.released += 1

    def load(self) -> ServedVersion:
        config = prepare(self.stored, auto_complete=self.auto_complete)
        return self.loader.load(config, self.stored, 1, Key("", b"", "", ""), self.release)


def test_version_is_made_and_closed_in_order(tmp_path: Path) -> None:
    """What a load opens is closed in reverse, once: scheduler, instances, model, files."""
    steps = Steps()
    bench = Bench(tmp_path, steps, CONFIG + "instance_group [ { count: 2 kind: KIND_CPU } ]")
    served = bench.load()
    assert (served.name, served.version, served.ready()) == ("m", 1, True)
    assert served.spec.max_batch_size == 4
    assert served.stats.load_seconds > 0
    assert steps.opened == ["model", "m_0_0", "m_0_1", "scheduler"]
    served.close()
    served.close()
    assert steps.closed == ["scheduler", "m_0_1", "m_0_0", "model"]
    assert bench.released == 1
    assert not served.ready()


@pytest.mark.parametrize("error", [RuntimeError("boom"), MemoryError(), SystemExit(1), InferError(Code.UNKNOWN, "x")])
def test_failure_of_any_step_leaves_nothing_open(tmp_path: Path, error: BaseException) -> None:
    """Whatever step fails, and however, what was opened before is closed once and the error is an InferError."""
    fine = Steps()
    config = CONFIG + "instance_group [ { count: 3 kind: KIND_CPU } ]"
    Bench(tmp_path, fine, config).load()
    assert fine.count == 7
    for fail_at in range(1, fine.count + 1):
        steps = Steps(fail_at, error)
        bench = Bench(tmp_path, steps, config)
        with pytest.raises(InferError) as caught:
            bench.load()
        if not isinstance(error, InferError):
            assert caught.value.code is Code.INTERNAL
            assert type(error).__name__ in caught.value.message
        assert Counter(steps.opened) == Counter(steps.closed)
        assert bench.released == 0


def test_retries(tmp_path: Path) -> None:
    """A load that fails is tried again as often as the operator said."""
    steps = Steps(fail_at=3)
    bench = Bench(tmp_path, steps, retries=1)
    assert bench.load().ready()
    assert Bench(tmp_path, Steps(fail_at=3), retries=0).backend.completed == 0
    with pytest.raises(InferError):
        Bench(tmp_path, Steps(fail_at=3), retries=0).load()


def test_backend_completes_a_copy_of_the_config(tmp_path: Path) -> None:
    """What the backend fills in belongs to the version; the model's config stays as it was read."""
    bench = Bench(tmp_path, Steps(), CONFIG[: CONFIG.index("output")])
    config = prepare(bench.stored, auto_complete=True)
    served = bench.loader.load(config, bench.stored, 1, Key("", b"", "", ""), bench.release)
    assert [output.name for output in served.config.output] == ["y"]
    assert not config.output


def test_without_auto_completion_the_config_must_be_whole(tmp_path: Path) -> None:
    """The backend is not asked, and a config whose outputs lack something is refused."""
    bench = Bench(tmp_path, Steps(), auto_complete=False)
    bench.load()
    assert bench.backend.completed == 0
    with pytest.raises(InferError):
        Bench(tmp_path, Steps(), CONFIG + "output [ { name: 'z' } ]", auto_complete=False).load()


def test_config_shows_the_instance_groups(tmp_path: Path) -> None:
    """The config of a loaded version tells where its instances are."""
    (group,) = Bench(tmp_path, Steps()).load().config.instance_group
    assert (group.name, group.count, group.kind) == ("m", 1, ModelInstanceGroup.KIND_CPU)


def test_model_that_nothing_can_execute_is_refused(tmp_path: Path) -> None:
    """Passive instances execute nothing; a model needs another one."""
    groups = "instance_group [ { name: 'a' kind: KIND_CPU passive: true }%s ]"
    assert len(Bench(tmp_path, Steps(), CONFIG + groups % ", { name: 'b' kind: KIND_CPU }").load().instances) == 1
    with pytest.raises(InferError, match="no instance that is not passive"):
        Bench(tmp_path, Steps(), CONFIG + groups % "").load()


def test_fields_without_effect_are_named_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the config asks for in vain is told at load, model and field."""
    Bench(tmp_path, Steps(), CONFIG + "optimization { eager_batching: true }").load()
    assert [record.getMessage() for record in caplog.records] == [
        "model 'm': 'optimization.eager_batching' in its config is accepted but has no effect yet"
    ]


def test_a_batching_library_is_named_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Triton would load native code that lies beside the model: here it does nothing, and the log says so."""
    bench = Bench(tmp_path, Steps())
    library = tmp_path / "m" / "1" / "batchstrategy.so"
    library.write_bytes(b"")
    bench.load()
    assert [record.getMessage() for record in caplog.records] == [
        f"model 'm': custom batching libraries are not supported, {library} has no effect"
    ]


def test_what_the_backend_fills_in_has_defaults(tmp_path: Path) -> None:
    """A scheduler that auto-completion asks for prefers full batches, as one that the user wrote does."""
    bench = Bench(tmp_path, Steps())
    complete = bench.backend.complete

    def batches(config: ModelConfig, files: ModelFiles, host: Host) -> None:
        complete(config, files, host)
        config.dynamic_batching.SetInParent()

    bench.backend.complete = batches  # type: ignore[method-assign]
    assert list(bench.load().config.dynamic_batching.preferred_batch_size) == [4]


def test_unknown_backend_text() -> None:
    """A backend that does not exist is told of in Triton's words, with those that do."""
    with pytest.raises(InferError) as caught:
        find_backend("nosuch")
    assert str(caught.value) == (
        "Invalid argument: unable to find backend library for backend 'nosuch', "
        "try specifying runtime on the model configuration."
    )
    assert "onnxruntime" in caught.value.hint


def test_backend_without_its_packages_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a framework is not installed, the hint says what to install."""
    monkeypatch.setitem(BACKENDS, "onnxruntime", ("conch.backend.not_there", "Backend"))
    with pytest.raises(InferError) as caught:
        find_backend("onnxruntime")
    assert "pip install 'conch[onnx]'" in caught.value.hint


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_every_backend_in_the_table_can_be_found(name: str) -> None:
    """Each name leads to a backend of that name."""
    find: Callable[[str], Backend] = find_backend
    assert find(name).name == name


def test_models_are_loaded_and_closed_in_thrift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What any step of a load frees goes back to the system, also when it fails; and requests never meet that."""
    thresholds: dict[int, int] = {}
    lowered: list[bool] = []

    class Watched(Steps):
        def step(self) -> None:
            lowered.append(thresholds[TRIM_THRESHOLD] == low)
            super().step()

    thrift = Thrift(thresholds.__setitem__)
    with thrift:
        low = thresholds[TRIM_THRESHOLD]
    monkeypatch.setattr("conch.registry.loader.THRIFT", thrift)
    Bench(tmp_path, Watched()).load()
    with pytest.raises(InferError):
        Bench(tmp_path, Watched(fail_at=3)).load()
    assert set(lowered) == {True}
    assert thresholds[TRIM_THRESHOLD] > low
