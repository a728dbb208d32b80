"""Warm-up: which requests the samples become, and how instances execute them."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from conch.observe.stats import WARMUP, ModelStats, Reason
from conch.registry.samples import Sample, samples
from conch.registry.warmup import Warmup
from conch.service.checks import check_inputs
from conch.types.dtype import BOOL, BYTES, FP32, INT32
from conch.types.error import Code, InferError, internal
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest
from conch.types.response import FINAL, FailedResponse, InferResponse
from support.configs import model
from support.python_models import running_loop

X = TensorSpec("X", FP32, (-1,))
SPEC = ModelSpec("m", 1, 8, (X,), ())
ZERO = "data_type: TYPE_FP32 dims: [ 2 ] zero_data: true"


def made(body: str, spec: ModelSpec = SPEC, seen: ModelSpec | None = None, folder: Path = Path("/nowhere"),
         *, name: str = "X", more: str = "batch_size: 1") -> Sample:  # fmt: skip
    """The one sample whose input has this body."""
    config = model(f'model_warmup {{ name: "s" {more} inputs {{ key: "{name}" value {{ {body} }} }} }}')
    (sample,) = samples(config, spec, seen or spec, folder, check_inputs, WARMUP)
    return sample


def refusal(body: str, spec: ModelSpec = SPEC, folder: Path = Path("/nowhere"), name: str = "X") -> InferError:
    with pytest.raises(InferError) as caught:
        made(body, spec, folder=folder, name=name)
    return caught.value


def test_synthetic_data() -> None:
    """Zeros are zeros, random bytes are as many as the shape takes, and strings are empty."""
    assert made(ZERO).data == (bytes(8),)
    assert made(ZERO).form.shapes == ((1, 2),)
    assert len(made("data_type: TYPE_FP32 dims: [ 3 ] random_data: true").data[0]) == 12
    strings = ModelSpec("m", 1, 0, (TensorSpec("X", BYTES, (-1,)),), ())
    for kind in ("zero_data", "random_data"):
        sample = made(f"data_type: TYPE_STRING dims: [ 3 ] {kind}: true", strings)
        assert (sample.data, sample.form.sizes, sample.form.counts) == ((bytes(12),), (-1,), (3,))
    truths = ModelSpec("m", 1, 0, (TensorSpec("X", BOOL, (64,)),), ())
    assert set(made("data_type: TYPE_BOOL dims: [ 64 ] random_data: true", truths).data[0]) == {0, 1}


def test_reshape_is_for_the_backend() -> None:
    """The shape of a sample is the client's; the backend sees that of the config's reshape."""
    spec = ModelSpec("m", 1, 4, (TensorSpec("X", FP32, (2, 3), reshape=(6,)),), ())
    form = made("data_type: TYPE_FP32 dims: [ 2, 3 ] zero_data: true", spec).form
    assert (form.shapes, form.backend_shapes) == (((1, 2, 3),), ((1, 6),))


def test_count_and_size() -> None:
    """`batch_size` requests at once, `count` times; a count of 0 is once, a size of 0 is no sample."""
    sample = made(ZERO, more="batch_size: 3 count: 5")
    assert (sample.size, sample.times) == (3, 5)
    assert made(ZERO).times == 1
    config = model(f'model_warmup {{ inputs {{ key: "X" value {{ {ZERO} }} }} }}')
    assert samples(config, SPEC, SPEC, Path(), check_inputs, WARMUP) == []


def test_control_inputs_are_given_explicitly() -> None:
    """Inputs that clients do not see (controls of sequences) stand behind theirs, with a batch dimension."""
    seen = ModelSpec("m", 1, 8, (X, TensorSpec("START", INT32, (1,))), ())
    config = model(
        f'model_warmup {{ batch_size: 1 inputs {{ key: "X" value {{ {ZERO} }} }} '
        'inputs { key: "START" value { data_type: TYPE_INT32 dims: [ 1 ] zero_data: true } } }'
    )
    (sample,) = samples(config, SPEC, seen, Path(), check_inputs, WARMUP)
    assert (sample.form.inputs, sample.form.shapes) == ((0, 1), ((1, 2), (1, 1)))
    assert sample.data == (bytes(8), bytes(4))
    with pytest.raises(InferError, match="has FP32 for the control input 'START', expected INT32"):
        samples(model(config_text("START")), SPEC, seen, Path(), check_inputs, WARMUP)


def config_text(name: str) -> str:
    """A sample with X and `name`, both FP32."""
    other = "data_type: TYPE_FP32 dims: [ 1 ] zero_data: true"
    inputs = f'inputs {{ key: "X" value {{ {ZERO} }} }} inputs {{ key: "{name}" value {{ {other} }} }}'
    return f"model_warmup {{ batch_size: 1 {inputs} }}"


def test_files(tmp_path: Path) -> None:
    """A file of `warmup/` gives the bytes; one that is longer is cut, strings must be as many as the shape says."""
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "f").write_bytes(struct.pack("<3f", 1, 2, 3))
    strings = struct.pack("<I", 2) + b"ab" + struct.pack("<I", 0)
    (tmp_path / "warmup" / "s").write_bytes(strings)
    floats = 'data_type: TYPE_FP32 dims: [ %d ] input_data_file: "f"'
    assert made(floats % 2, folder=tmp_path).data == (struct.pack("<2f", 1, 2),)
    assert refusal(floats % 4, folder=tmp_path).message == (
        "[request id: <id_unknown>] warmup setting expects 16 bytes, but the data provided from fonly has 12 bytes"
    )
    text = ModelSpec("m", 1, 0, (TensorSpec("X", BYTES, (-1,)),), ())
    body = 'data_type: TYPE_STRING dims: [ %d ] input_data_file: "%s"'
    assert made(body % (2, "s"), text, folder=tmp_path).data == (strings,)
    assert "holds 2 strings for input 'X', expected 3" in refusal(body % (3, "s"), text, tmp_path).message
    assert "does not hold strings" in refusal(body % (3, "f"), text, tmp_path).message


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "", "a\\0b"])
def test_files_stay_inside(tmp_path: Path, name: str) -> None:
    """A sample reads no file that lies outside the model's warmup folder."""
    (tmp_path / "m" / "warmup").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(100))
    body = f'data_type: TYPE_FP32 dims: [ 2 ] input_data_file: "{name}"'
    assert "must lie in the model's folder 'warmup'" in refusal(body, folder=tmp_path / "m").message


def test_a_missing_file_is_triton_s_error(tmp_path: Path) -> None:
    """INTERNAL, with the path."""
    error = refusal('data_type: TYPE_FP32 dims: [ 2 ] input_data_file: "f"', folder=tmp_path)
    assert str(error) == (f"Internal: failed to open text file for read {tmp_path}/warmup/f: No such file or directory")


@pytest.mark.parametrize(
    ("body", "name", "text"),
    [
        ("data_type: TYPE_FP32 dims: [ -1 ] zero_data: true", "X",
         "warmup setting expects all variable-size dimensions are specified for input 'X'"),
        ("data_type: TYPE_FP32 dims: [ 2 ]", "X",
         "[request id: <id_unknown>] warmup setting expects input 'X' to have input_data_type set"),
        ("data_type: TYPE_INT32 dims: [ 2 ] zero_data: true", "X",
         "[request id: <id_unknown>] inference input 'X' data-type is 'INT32', but model 'm' expects 'FP32'"),
        ("dims: [ 2 ] zero_data: true", "X",
         "[request id: <id_unknown>] inference input 'X' data-type is '<invalid>', but model 'm' expects 'FP32'"),
        ("data_type: TYPE_FP32 dims: [ 4294967296 ] zero_data: true", "X",
         "warmup data of input 'X' would have 17179869184 bytes, more than 2147483648"),
    ],
)  # fmt: skip
def test_refusals(body: str, name: str, text: str) -> None:
    """Samples that cannot be made are refused as requests are."""
    assert (refusal(body, name=name).code, refusal(body, name=name).message) == (Code.INVALID_ARG, text)


def test_unknown_inputs_are_refused() -> None:
    """An input that neither the client nor the backend knows."""
    with pytest.raises(InferError, match="has an input 'Z', which model 'm' has not"):
        samples(model(config_text("Z")), SPEC, SPEC, Path(), check_inputs, WARMUP)


class Thread:
    """A thread instance that does with each batch what it is told."""

    def __init__(self, stats: ModelStats, answer: Callable[[InferRequest], None]) -> None:
        self.stats = stats
        self.answer = answer
        self.batches: list[int] = []

    def run(self, batch: Sequence[InferRequest]) -> None:
        self.batches.append(len(batch))
        for request in batch:
            self.answer(request)
        self.stats.executed(batch, 0, 0, 0, 0)
        self.stats.failed(batch, Reason.BACKEND, 0)

    def close(self) -> None: ...


class Loop(Thread):
    """The same, driven by the loop, and answering from another thread after it is idle."""

    def start(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None:
        idle()
        threading.Thread(target=self.run, args=(batch,)).start()


def fine(request: InferRequest) -> None:
    request.sink.reply(request, InferResponse([]), True)


def streams(request: InferRequest) -> None:
    request.sink.reply(request, FailedResponse(internal("halfway")), False)
    request.sink.reply(request, FINAL, True)


@pytest.mark.parametrize("kind", [Thread, Loop])
def test_instances_execute_all_samples(kind: type[Thread]) -> None:
    """Each sample as often as it says, as one batch, and nothing is counted."""
    stats = ModelStats()
    config = model(
        f'model_warmup {{ batch_size: 2 count: 2 inputs {{ key: "X" value {{ {ZERO} }} }} }}'
        f'model_warmup {{ batch_size: 1 inputs {{ key: "X" value {{ {ZERO} }} }} }}'
    )
    made = samples(config, SPEC, SPEC, Path(), check_inputs, WARMUP)
    instance = kind(stats, fine)
    with running_loop() as loop:
        Warmup("m", 8, made, stats, loop).run(instance, "m_0")  # type: ignore[arg-type]
    assert instance.batches == [2, 2, 1]
    assert (stats.success.count, stats.executions, stats.fail.count, stats.batches) == (0, 0, 0, {})


@pytest.mark.parametrize("kind", [Thread, Loop])
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda request: request.sink.fail(request, internal("cold")), "cold; cold; "),
        (streams, "halfway; halfway; "),
    ],
)
def test_failures_fail_the_load(kind: type[Thread], answer: Callable[[InferRequest], None], text: str) -> None:
    """An error, of a response too, ends the warm-up."""
    stats = ModelStats()
    sample = made(ZERO, more="batch_size: 2")
    with running_loop() as loop, pytest.raises(InferError) as caught:
        Warmup("m", 8, [sample], stats, loop).run(kind(stats, answer), "m_0")  # type: ignore[arg-type]
    assert str(caught.value) == f"Invalid argument: failed to run warmup sample 's': {text}"


def test_batches_that_the_model_does_not_take() -> None:
    """More requests than max_batch_size are refused before anything runs."""
    stats = ModelStats()
    with running_loop() as loop, pytest.raises(InferError) as caught:
        Warmup("m", 0, [made(ZERO, more="batch_size: 2")], stats, loop).run(Thread(stats, fine), "m_0_0")
    assert caught.value.message == (
        "failed to run warmup sample 's': batch size 2 for 'm_0_0', max allowed is 0; "
        "batch size 2 for 'm_0_0', max allowed is 0; "
    )


def test_what_runs_beside_a_warm_up_is_counted() -> None:
    """Only the samples are left out of the statistics."""
    from support.requests import make_request

    stats = ModelStats()
    stats.warm()
    stats.executed([make_request()], 0, 0, 0, 0)
    assert stats.success.count == 1


def test_a_sample_that_is_counted_late_is_none_either() -> None:
    """Instances answer first and count then: the warm-up may be over."""
    from support.requests import make_form, make_request

    stats = ModelStats()
    stats.warm()
    stats.executed([make_request(make_form(model=WARMUP))], 0, 0, 0, 0)
    stats.failed([make_request(make_form(model=WARMUP))], Reason.OTHER, 0)
    assert (stats.success.count, stats.fail.count, stats.executions) == (0, 0, 0)
