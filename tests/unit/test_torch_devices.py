"""PyTorch instances on a device, as on a GPU, with the CPU in its place: what stays there, and what is copied."""

from __future__ import annotations

import contextlib
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'conch[torch]'")

from conch.backend.api import ModelFiles, Placement, Staying  # noqa: E402
from conch.backend.torch.backend import TorchBackend  # noqa: E402
from conch.backend.torch.carrier import Carrier  # noqa: E402
from conch.config.spec import model_spec  # noqa: E402
from conch.memory.pinned import PinnedPool, pageable  # noqa: E402
from conch.observe.stats import ModelStats  # noqa: E402
from conch.schedule.ensemble import EnsembleScheduler  # noqa: E402
from conch.schedule.ensemble_devices import residence, staying  # noqa: E402
from conch.schedule.ensemble_forms import Cast  # noqa: E402
from conch.schedule.ensemble_graph import graph_of  # noqa: E402
from conch.types.device import OnDevice, gpu, on_device  # noqa: E402
from conch.types.dtype import FP32  # noqa: E402
from conch.types.error import InferError  # noqa: E402
from conch.types.model import ModelSpec, TensorSpec  # noqa: E402
from conch.types.request import InferRequest  # noqa: E402
from support.configs import ensemble, step  # noqa: E402
from support.devices import HERE, FakeCuda, lying  # noqa: E402
from support.ensembles import prepare  # noqa: E402
from support.onnx_models import Served, make_host  # noqa: E402
from support.requests import Recorder, make_form  # noqa: E402
from support.schedulers import HoldingScheduler  # noqa: E402
from support.torch_models import config, script, serve  # noqa: E402

ONE = """
  max_batch_size: 8
  input { name: "x" data_type: TYPE_FP32 dims: 2 }
  output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: 2 }
  output { name: "OUTPUT__1" data_type: TYPE_FP32 dims: 2 }"""
STAYS = frozenset({"OUTPUT__0", "OUTPUT__1"})


class Both(torch.nn.Module):
    """The transpose of what a transposed copy holds is not contiguous."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, (x * 2).t().contiguous().t()


class Greedy(torch.nn.Module):
    """Changes its input in place."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.add_(1), x


class Counter(torch.nn.Module):
    """Gives its own memory away, and changes it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1, 2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.total.add_(x)
        return self.total, x


class Failing(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert bool(x.sum() < 100)
        return x, x


class Device:
    """Stands in for `backend.torch.device.Gpu`: `finished` counts how often its stream was waited for."""

    def __init__(self, cuda: FakeCuda, pool: PinnedPool | None = None) -> None:
        self.finished = 0
        take = pageable if pool is None else pool.take
        self.carrier = Carrier(
            torch, torch.device("cpu"), HERE, take, take, lambda address, size: cuda.read(0, address, size)
        )

    def fetch(self, tensor: Any) -> Any:
        return self.carrier.fetch(tensor)

    def work(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def finish(self) -> None:
        self.finished += 1
        self.carrier.release()


def placed(
    directory: Path, module: Any, monkeypatch: pytest.MonkeyPatch, pool: PinnedPool | None = None
) -> tuple[Served, FakeCuda]:
    """One instance as on a GPU."""
    cuda = FakeCuda()
    monkeypatch.setattr("conch.backend.torch.backend.Cpu", lambda: Device(cuda, pool))
    return serve(directory, script(module.eval()), ONE), cuda


def numbers(rows: int, first: int = 0) -> np.ndarray[Any, Any]:
    return np.arange(2 * first, 2 * (first + rows), dtype=np.float32).reshape(rows, 2)


def asking(
    served: Served, array: np.ndarray[Any, Any], data: Any = None, stays: frozenset[str] = STAYS
) -> InferRequest:
    request = served.request({"x": array})
    request.form.stays = stays
    if data is not None:
        request.data = (data,)
    return request


def array(data: Any, rows: int) -> np.ndarray[Any, Any]:
    return np.frombuffer(bytes(data), np.float32).reshape(rows, 2)


def outputs(served: Served, *requests: InferRequest) -> list[Any]:
    """Of each request the data of its outputs; errors are raised."""
    found = []
    for answer in served.run(*requests):
        if isinstance(answer, InferError):
            raise answer
        found.append([answer[name].data for name in sorted(answer)])
    return found


def test_outputs_stay_where_all_requests_let_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request has its own rows of them, those of tensors that are not contiguous too; nothing is copied."""
    served, cuda = placed(tmp_path, Both(), monkeypatch)
    first, second = outputs(served, asking(served, numbers(1)), asking(served, numbers(2, 1)))
    assert all(isinstance(each, OnDevice) for each in (*first, *second))
    assert cuda.calls == []
    np.testing.assert_array_equal(array(second[0], 2), numbers(2, 1) + 1)
    np.testing.assert_array_equal(array(second[1], 2), numbers(2, 1) * 2)
    np.testing.assert_array_equal(array(first[1], 1), numbers(1) * 2)


def test_a_client_in_the_batch_has_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so have all others of that batch."""
    served, _ = placed(tmp_path, Both(), monkeypatch)
    found = outputs(served, asking(served, numbers(1)), asking(served, numbers(1), stays=frozenset({"OUTPUT__1"})))
    assert [[on_device(each) is not None for each in answer] for answer in found] == [[False, True]] * 2
    assert array(found[0][0], 1).tolist() == (numbers(1) + 1).tolist()


def test_a_batch_joins_what_lies_on_the_device_and_what_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows keep their requests' order; only what lies on another device is copied over the host."""
    served, cuda = placed(tmp_path, Both(), monkeypatch)
    far = FakeCuda()
    data: list[Any] = [lying(numbers(1), cuda=cuda), None, lying(numbers(2, 2), gpu(1), far), lying(numbers(1, 4))]
    arrays = [numbers(1), numbers(1, 1), numbers(2, 2), numbers(1, 4)]
    found = outputs(served, *[asking(served, a, d) for a, d in zip(arrays, data, strict=True)])
    for answer, given in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(array(answer[0], len(given)), given + 1)
    assert far.calls == ["read"]
    assert served.instance._device.finished == 1


def test_a_model_that_writes_its_inputs_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other steps read the same tensor."""
    served, _ = placed(tmp_path, Greedy(), monkeypatch)
    given = numbers(2)
    ((answer, _),) = outputs(served, asking(served, given, lying(given)))
    assert array(answer, 2).tolist() == (numbers(2) + 1).tolist()
    assert given.tolist() == numbers(2).tolist()


def test_a_model_that_writes_its_outputs_later_gives_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step has been given does not change under its hands."""
    served, _ = placed(tmp_path, Counter(), monkeypatch)
    ((first, _),) = outputs(served, asking(served, numbers(1, 1)))
    outputs(served, asking(served, numbers(1, 1)))
    assert array(first, 1).tolist() == [[2, 3]]


@pytest.mark.slow
def test_copies_go_through_pinned_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs until the batch is computed, outputs until their bytes have gone; a full pool is no error."""
    cuda = FakeCuda()
    pool = PinnedPool(512, lambda: cuda)
    pool.open(0)
    served, _ = placed(tmp_path, Both(), monkeypatch, pool)
    for _ in range(3):
        ((first, second),) = outputs(served, asking(served, numbers(3), stays=frozenset()))
        assert array(first, 3).tolist() == (numbers(3) + 1).tolist()
        assert array(second, 3).tolist() == (numbers(3) * 2).tolist()
        del first, second
        # A test's sink refers to its request.
        gc.collect()
    lent = pool.take(512)
    (memory,) = cuda.allocated
    assert lent.ctypes.data == memory


def test_memory_of_answers_is_not_lent_again_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a later output fails, what an earlier one is copied to stays referred to until the stream is done."""
    served, _ = placed(tmp_path, Both(), monkeypatch)
    carrier = served.instance._device.carrier
    lent: list[Any] = []
    written = carrier._receive

    def receive(size: int) -> Any:
        if lent:
            raise MemoryError("no room for the second")
        found = written(size)
        lent.append(weakref.ref(found))
        return found

    monkeypatch.setattr(carrier, "_receive", receive)
    (error,) = served.run(asking(served, numbers(1), stays=frozenset()))
    assert isinstance(error, InferError)
    assert lent[0]() is not None
    carrier.release()
    assert lent[0]() is None


@pytest.mark.parametrize("rows", [(0,), (0, 1), (0, 0)], ids=str)
def test_requests_without_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: tuple[int, ...]) -> None:
    served, _ = placed(tmp_path, Both(), monkeypatch)
    found = outputs(served, *[asking(served, numbers(each), lying(numbers(each))) for each in rows])
    assert [len(answer[0]) for answer in found] == [8 * each for each in rows]


def test_instances_on_cpus_take_what_lies_elsewhere(tmp_path: Path) -> None:
    """Where a model's instances were on GPUs when an ensemble was made on it, and have moved since."""
    served = serve(tmp_path, script(Both().eval()), ONE)
    served.instance._brings = True
    ((answer, _),) = outputs(served, asking(served, numbers(2), lying(numbers(2), gpu(0))))
    assert array(answer, 2).tolist() == (numbers(2) + 1).tolist()
    assert on_device(answer) is None


class Member:
    """A model of an ensemble, with one instance that its config says is on GPU 0."""

    def __init__(self, served: Served, name: str) -> None:
        self.config, self.stats, self.served = served.config, served.stats, served
        self.config.name = name
        del self.config.instance_group[:]
        self.config.instance_group.add(kind="KIND_GPU", gpus=[0], count=1)
        self.spec = ModelSpec(name, 1, 8, served.spec.inputs, served.spec.outputs)
        self.scheduler = HoldingScheduler()

    def run(self) -> list[InferRequest]:
        """What waits runs as one batch."""
        batch = self.scheduler.go()
        self.served.instance.run(batch)
        return batch

    def device_tensors(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset({"x"}), STAYS

    def ready(self) -> bool:
        return True


class Pair:
    """Ensemble `a` -> first -> `b` -> second -> `c`, both on the device."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: Any = None, limit: int = 0) -> None:
        (tmp_path / "1st").mkdir()
        (tmp_path / "2nd").mkdir()
        self.first_served, self.cuda = placed(tmp_path / "1st", Both(), monkeypatch)
        self.second_served, _ = placed(tmp_path / "2nd", second or Both(), monkeypatch)
        self.first, self.second = Member(self.first_served, "first"), Member(self.second_served, "second")
        tensors = "\n".join(
            [f'{kind} {{ name: "{name}" data_type: TYPE_FP32 dims: [ 2 ] }}' for kind, name in
             (("input", "a"), ("output", "c"))]
        )  # fmt: skip
        steps = [
            step({"x": "a"}, {"OUTPUT__0": "b"}, "first"),
            step({"x": "b"}, {"OUTPUT__0": "c"}, "second"),
        ]
        graph = graph_of(ensemble(", ".join(steps), tensors=tensors), {"a": 0, "b": 0, "c": 0})
        spec = ModelSpec("e", 1, 8, (TensorSpec("a", FP32, (2,)),), (TensorSpec("c", FP32, (2,)),))
        members = [self.first, self.second]
        stays = staying(graph, [residence(each.config, each) for each in members])
        self.stats = ModelStats()
        self.scheduler = EnsembleScheduler(
            Cast(graph, members, spec, prepare, stays), self.stats, lambda call: call(), limit
        )

    def ask(self, first: int) -> InferRequest:
        form = make_form(outputs=("c",), submit=self.scheduler.submit)
        request = InferRequest(form, "", (numbers(1, first).tobytes(),), Recorder(), 0)
        self.scheduler.submit(request)
        return request


def test_a_tensor_stays_between_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of several requests goes from step to step without a copy; the ensemble answers in bytes."""
    pair = Pair(tmp_path, monkeypatch)
    requests = [pair.ask(0), pair.ask(1)]
    pair.first.run()
    assert all(isinstance(each.data[0], OnDevice) for each in pair.second.scheduler.requests)
    pair.second.run()
    for number, request in enumerate(requests):
        ((_, response, final),) = request.sink.replies  # type: ignore[attr-defined]
        (output,) = response.outputs
        assert final
        assert on_device(output.data) is None
        assert array(output.data, 1).tolist() == (numbers(1, number) + 2).tolist()
    assert pair.cuda.calls == []
    assert pair.stats.success.count == 2


def test_a_request_cancelled_between_steps_lets_go_of_its_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is left when it has been answered."""
    pair = Pair(tmp_path, monkeypatch)
    request = pair.ask(0)
    pair.first.run()
    pair.scheduler.withdraw(request)
    (waiting,) = pair.second.run()
    assert isinstance(waiting.data[0], OnDevice)
    assert len(request.sink.errors) == 1  # type: ignore[attr-defined]
    assert pair.scheduler.inflight() == 0


def test_a_step_that_fails_answers_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(tmp_path, monkeypatch, Failing())
    request = pair.ask(1000)
    pair.first.run()
    pair.second.run()
    ((_, error),) = request.sink.errors  # type: ignore[attr-defined]
    assert error.message.startswith("in ensemble 'm', PyTorch execute failure")


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 1], ids=["pipeline", "data flow"])
@pytest.mark.parametrize("second", [None, Failing()], ids=["answered", "failed"])
def test_a_tensor_goes_with_the_step_that_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, second: Any
) -> None:
    """Its memory does not wait for the collector."""
    pair = Pair(tmp_path, monkeypatch, second, limit)
    gc.collect()
    gc.disable()
    try:
        request = pair.ask(1000)
        pair.first.run()
        (value,) = pair.second.scheduler.requests[0].data
        assert isinstance(value, OnDevice)
        gone = weakref.ref(value.owner)
        del value
        assert gone() is not None
        pair.second.run()
        assert len(request.sink.finals()) == 1  # type: ignore[attr-defined]
        assert gone() is None
    finally:
        gc.enable()


WITH_TEXT = ONE.replace("max_batch_size: 8", "") + 'input { name: "words" data_type: TYPE_STRING dims: 1 }'


class Reading(torch.nn.Module):
    def forward(self, x: torch.Tensor, words: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return x + len(words), x


def test_what_a_model_says_and_does_for_each_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but strings may lie on a GPU; instances on CPUs take it too, once the model has had one on a GPU."""
    cuda, opened = FakeCuda(), []
    monkeypatch.setattr("conch.backend.torch.backend.check_device", lambda *_: None)
    monkeypatch.setattr(
        "conch.backend.torch.backend.device_name", lambda place: "cpu" if place.kind == "CPU" else "cpu:0"
    )
    monkeypatch.setattr(
        "conch.backend.torch.backend.Gpu", lambda number, plan, pool: opened.append(number) or Device(cuda)
    )
    (tmp_path / "1").mkdir()
    script(Reading().eval())(tmp_path / "1" / "model.pt")
    parsed = config(WITH_TEXT)
    parsed.name, parsed.backend, parsed.default_model_filename = "m", "pytorch", "model.pt"
    files, host, backend = ModelFiles(tmp_path, 1), make_host({}), TorchBackend()
    backend.complete(parsed, files, host)
    loaded = backend.load(parsed, model_spec(parsed, 1), files, host, ModelStats())
    assert isinstance(loaded, Staying)
    assert loaded.device_tensors() == (frozenset({"x"}), STAYS)
    made: list[Any] = [loaded.instance(Placement("m", kind, 3)) for kind in ("CPU", "GPU", "CPU")]
    assert opened == [3]
    assert [each._brings for each in made] == [False, False, True]
