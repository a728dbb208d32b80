"""Python models that call other models: real workers, and other models that are made up."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conch.backend.python.channel import WINDOW
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import Code, InferError, invalid
from conch.types.request import InferRequest
from conch.types.response import FINAL, FailedResponse, InferResponse
from support.fake_calls import FakeModels, number, tensors_of
from support.python_models import Served, array_of, make_spec, model_source, served
from support.requests import Recorder
from support.until import until

pytestmark = pytest.mark.slow

SPEC = make_spec("FP64")
#: `call` makes a request to another model.
CALL = """
def call(self, name="other", inputs=None, outputs=(), **more):
    inputs = [pb_utils.Tensor("X", np.arange(3.0))] if inputs is None else inputs
    return pb_utils.InferenceRequest(model_name=name, requested_output_names=list(outputs), inputs=inputs, **more)

def number(self, response):
    if response.has_error():
        raise ValueError(f"{response.error().code().name} {response.error().message()}")
    return response.output_tensors()[0].as_numpy().ravel()[0]
"""


@contextmanager
def calling(tmp_path: Path, execute: str, models: FakeModels, more: str = "", **options: Any) -> Iterator[Served]:
    source = model_source(execute, CALL + more)
    if "await " in execute:
        source = source.replace("import os,", "import asyncio\nimport os,").replace("def execute", "async def execute")
    with served(tmp_path, source, options.pop("spec", SPEC), models=models, **options) as model:
        yield model


def one(model: Served, value: float = 0.0, **changes: Any) -> InferRequest:
    return model.request(np.array([[value]]), **changes)


def result(outcome: Any) -> Any:
    """The numbers of a response's first output, or an error's text."""
    return outcome.message if isinstance(outcome, InferError) else array_of(outcome.outputs[0]).tolist()


@pytest.mark.parametrize("size", [0, 1, 5000, 300_000])
def test_tensors_of_all_kinds_go_there_and_back(tmp_path: Path, size: int) -> None:
    """Small ones in packets, large ones through shared memory; the model may write into what it gets."""
    execute = f"""
        numbers = np.arange({size}, dtype=np.int64)
        texts = np.array([b"x" * (n % 7) for n in range({size % 9000})], dtype=object)
        given = [pb_utils.Tensor("N", numbers), pb_utils.Tensor("T", texts), pb_utils.Tensor("B", numbers > 3)]
        response = self.call(inputs=given).exec()
        n, t, b = [pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in "NTB"]
        assert (n == numbers).all() and (t == texts).all() and (b == (numbers > 3)).all() and b.dtype == bool
        n += 1
        return [answer(n[-1:].astype(float)) for _ in requests]
    """
    models = FakeModels()
    with calling(tmp_path, execute, models) as model:
        for _ in range(2):
            assert result(model.ask(one(model))[0]) == ([float(size)] if size else [])
        assert len(models.prepared) == 1, "equal calls have one form"
        models.generation += 1
        model.ask(one(model))
        assert len(models.prepared) == 2, "forms are made again when models have come or gone"


def test_what_a_call_says_arrives(tmp_path: Path) -> None:
    """Name, version, id, outputs, correlation id, flags, timeout and parameters."""
    execute = """
        self.call("other", outputs=["B", "A"], request_id="i", correlation_id="c", model_version=1, flags=3, timeout=9,
                  parameters={"p": True, "q": "\\u00e4"}).exec()
        self.call().exec()
        return [answer(np.ones(1)) for _ in requests]
    """
    models = FakeModels()
    with calling(tmp_path, execute, models) as model:
        model.ask(one(model))
    first, second = models.requests
    head = first.form.head
    assert (head.model_name, head.model_version, list(head.outputs), first.id) == ("other", "1", ["A", "B"], "i")
    assert head.parameters == {
        "p": True, "q": "\u00e4", "sequence_id": "c", "sequence_start": True, "sequence_end": True, "timeout": 9,
    }  # fmt: skip
    assert first.expires_ns == first.received_ns + 9000
    assert (second.id, second.form.head.parameters, second.expires_ns) == ("", {}, 0)


def test_errors_come_back_with_their_codes(tmp_path: Path) -> None:
    """Those of the other model, and those of calls that could not be made."""
    execute = """
        texts = []
        for name in ("other", "nobody", "stream"):
            error = self.call(name).exec().error()
            texts.append(f"{error.code().name}: {error.message()}")
        return [pb_utils.InferenceResponse([], pb_utils.TritonError("|".join(texts))) for _ in requests]
    """
    models = FakeModels(lambda request: request.sink.fail(request, invalid("no good")))
    with calling(tmp_path, execute, models) as model:
        other, nobody, stream = result(model.ask(one(model))[0]).split("|")
    assert other == "INVALID_ARG: no good"
    prefix = "Error when running inference: "
    assert nobody == (
        f"INTERNAL: Model nobody - {prefix}Failed for execute the inference request. Model 'nobody' is not ready."
    )
    assert stream.startswith(f"INTERNAL: Model stream - {prefix}Model stream is using the decoupled. The current BLS")


def test_many_calls_of_one_coroutine_are_under_way_at_once(tmp_path: Path) -> None:
    """All calls of a gather are made before any is answered, and answered in any order."""
    held: list[InferRequest] = []

    def hold(request: InferRequest) -> None:
        held.append(request)
        if len(held) == 100:
            for each in reversed(held):
                each.sink.reply(each, InferResponse(tensors_of(each)), True)
            held.clear()

    execute = """
        calls = [self.call(inputs=[pb_utils.Tensor("X", np.full(n * 20, n))]) for n in range(1, 101)]
        responses = await asyncio.gather(*[call.async_exec() for call in calls])
        assert [self.number(r) for r in responses] == list(range(1, 101))
        return [answer(np.ones(1)) for _ in requests]
    """
    with calling(tmp_path, execute, FakeModels(hold)) as model:
        assert result(model.ask(one(model))[0]) == [1.0]


def test_threads_of_a_model_call_side_by_side(tmp_path: Path) -> None:
    """Whoever reads gives the others theirs."""
    execute = """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as pool:
            calls = [self.call(inputs=[pb_utils.Tensor("X", np.array([n]))]) for n in range(200)]
            found = list(pool.map(lambda call: self.number(call.exec()), calls))
        assert found == list(range(200))
        return [answer(np.ones(1)) for _ in requests]
    """
    with calling(tmp_path, execute, FakeModels()) as model:
        assert result(model.ask(one(model))[0]) == [1.0]


def streaming(count: int) -> Any:
    def answer(request: InferRequest) -> None:
        for n in range(count):
            request.sink.reply(request, number(n), False)
        request.sink.reply(request, FailedResponse(invalid("once")), False)
        request.sink.reply(request, FINAL, True)

    return answer


@pytest.mark.parametrize(
    "responses",
    [
        "list(self.call('stream').exec(decoupled=True))",
        "list(await self.call('stream').async_exec(decoupled=True))",
        "[r async for r in await self.call('stream').async_exec(decoupled=True)]",
        "[r async for r in self.call('stream').exec(decoupled=True)]",
    ],
)
def test_streams_of_responses(tmp_path: Path, responses: str) -> None:
    """By iteration in both worlds: responses, an error among them, and an empty one at the end."""
    execute = f"""
        await asyncio.sleep(0)
        found = {responses}
        assert [self.number(r) for r in found[:3]] == [0, 1, 2]
        assert found[3].error().message() == "once" and not found[4].output_tensors() and len(found) == 5
        return [answer(np.ones(1)) for _ in requests]
    """
    with calling(tmp_path, execute, FakeModels(streaming(3))) as model:
        assert result(model.ask(one(model))[0]) == [1.0]


def test_a_stream_that_is_not_read_holds_its_sender_up(tmp_path: Path) -> None:
    """The other model is told to wait when much is under way, and to go on when the caller has taken it."""
    execute = """
        it = self.call("stream").exec(decoupled=True)
        next(it)
        self.call("full?").exec()
        for _ in range(9):
            next(it)
        self.call("free?").exec()
        return [answer(np.ones(1)) for _ in requests]
    """
    seen: list[bool] = []
    streams: list[InferRequest] = []
    large = InferResponse([tensors_of_size(WINDOW // 8)])

    def answer(request: InferRequest) -> None:
        if request.form.head.model_name == "stream":
            streams.append(request)
            for _ in range(10):
                request.sink.reply(request, large, False)
            return
        flow = streams[0].flow
        assert flow is not None
        seen.append(flow.full)
        request.sink.reply(request, InferResponse([]), True)

    with calling(tmp_path, execute, FakeModels(answer)) as model:
        assert result(model.ask(one(model))[0]) == [1.0]
        assert seen == [True, False]


def tensors_of_size(size: int) -> Any:
    return number(0).outputs[0].__class__("Y", number(0).outputs[0].datatype, (size // 8,), bytes(size))


@pytest.mark.parametrize(
    "leave",
    [
        "it = self.call('stream').exec(decoupled=True); next(it); it.cancel()",
        "it = await self.call('stream').async_exec(decoupled=True); it.cancel()",
        "f = self.call('stream').async_exec(); await asyncio.sleep(0.01); f.cancel()",
    ],
)
def test_a_call_can_be_cancelled(tmp_path: Path, leave: str) -> None:
    """The other model's request is withdrawn."""
    execute = f"""
        await asyncio.sleep(0)
        {leave}
        return [answer(np.ones(1)) for _ in requests]
    """
    models = FakeModels(lambda request: request.sink.reply(request, number(1), False))
    if "async_exec()" in leave:
        models = FakeModels(lambda _: None)
        execute = execute.replace("'stream'", "'other'")
    with calling(tmp_path, execute, models) as model:
        assert result(model.ask(one(model))[0]) == [1.0]
        models.wait(lambda: len(models.withdrawn) == 1)


def test_a_stream_that_is_dropped_goes_on_unheard(tmp_path: Path) -> None:
    """Its request is not withdrawn, and what else comes does not fill the worker's memory."""
    execute = """
        it = self.call("stream").exec(decoupled=True)
        next(it)
        del it
        self.call("more").exec()
        return [answer(np.ones(1)) for _ in requests]
    """
    streams: list[InferRequest] = []

    def answer(request: InferRequest) -> None:
        if request.form.head.model_name == "stream":
            streams.append(request)
            request.sink.reply(request, number(1), False)
            return
        for _ in range(100):
            streams[0].sink.reply(streams[0], tensor_response(WINDOW // 4), False)
        assert not streams[0].cancelled
        streams[0].sink.reply(streams[0], FINAL, True)
        request.sink.reply(request, number(1), True)

    with calling(tmp_path, execute, FakeModels(answer)) as model:
        assert result(model.ask(one(model))[0]) == [1.0]


def tensor_response(size: int) -> InferResponse:
    return InferResponse([tensors_of_size(size)])


def test_calls_of_a_cancelled_request_are_withdrawn(tmp_path: Path) -> None:
    """When nobody waits for any request of the batch, its calls are not needed either."""
    models = FakeModels(lambda _: None)
    with calling(tmp_path, "return [answer(np.ones(1)) for r in requests if self.call().exec()]", models) as model:
        requests = [one(model), one(model)]
        idle = model.start(requests)
        models.wait(lambda: len(models.requests) == 1)
        requests[0].cancelled = True
        assert not models.withdrawn
        requests[1].cancelled = True
        models.wait(lambda: len(models.withdrawn) == 1)
        models.answer = lambda request: request.sink.fail(request, InferError(Code.CANCELLED, ""))
        models.answer(models.requests[0])
        assert idle.wait(60)


def test_a_worker_that_dies_leaves_no_call_behind(tmp_path: Path) -> None:
    """Its calls are withdrawn, late answers go nowhere, and the next worker calls anew."""
    models = FakeModels(lambda _: None)
    with calling(tmp_path, "return [answer(np.ones(1)) for r in requests if self.call().exec()]", models) as model:
        idle = model.start([one(model)])
        models.wait(lambda: len(models.requests) == 1)
        os.kill(model.pid, signal.SIGKILL)
        assert idle.wait(60)
        models.wait(lambda: len(models.withdrawn) == 1)
        models.requests[0].sink.reply(models.requests[0], number(1), True)
        models.answer = lambda request: request.sink.reply(request, number(1), True)
        assert result(model.ask(one(model))[0]) == [1.0]


def test_calls_outside_of_execute_are_refused(tmp_path: Path) -> None:
    """In initialize they raise in Triton's words; requests that the model was given cannot be executed."""
    more = """
def initialize(self, args):
    try:
        self.call().exec()
    except pb_utils.TritonModelException as error:
        self.text = str(error)
"""
    execute = """
        try:
            requests[0].exec()
        except pb_utils.TritonModelException as error:
            self.text += "|" + str(error)
        return [pb_utils.InferenceResponse([], pb_utils.TritonError(self.text)) for _ in requests]
    """
    with calling(tmp_path, execute, FakeModels(), more) as model:
        early, given = result(model.ask(one(model))[0]).split("|")
    assert early == "BLS is only supported during the 'execute' function."
    assert given.startswith("Only requests that the model has made")


def test_models_are_loaded_and_looked_at(tmp_path: Path) -> None:
    """From initialize too; contents of files arrive whole; failures are Triton's words around the server's."""
    more = """
def initialize(self, args):
    if not pb_utils.is_model_ready("other", "7"):
        pb_utils.load_model("other", config="{}", files={"file:1/a": b"\\0" * 100_000, "file:1/b": b"b"})
    assert pb_utils.is_model_ready("other") and not pb_utils.is_model_ready("nobody")
"""
    execute = """
        texts = []
        for attempt in (lambda: pb_utils.unload_model("other", unload_dependents=True),
                        lambda: pb_utils.load_model("other"), lambda: pb_utils.load_model("other", files=[1]),
                        lambda: pb_utils.is_model_ready("other", "new")):
            try:
                attempt()
            except pb_utils.TritonModelException as error:
                texts.append(str(error))
        return [pb_utils.InferenceResponse([], pb_utils.TritonError("|".join(texts))) for _ in requests]
    """
    models = FakeModels()
    with calling(tmp_path, execute, models, more) as model:
        models.failure = invalid("not today")
        texts = result(model.ask(one(model))[0]).split("|")
    wrapped = "Failed to process the request for model 'm_0_0', message: "
    assert texts == [
        f"Failed to unload model: {wrapped}not today",
        f"Failed to load model: {wrapped}not today",
        "failed to load model 'other', files should be a dictionary of file paths and file contents",
        (
            f"Failed to check model readiness: {wrapped}failed to get model version from specified version string "
            "'new' (details: stol), version should be an integral value > 0"
        ),
    ]
    assert models.loads == [
        ("load", "other", {"config": "{}", "file:1/a": bytes(100_000), "file:1/b": b"b"}),
        ("unload", "other", True),
        ("load", "other", {}),
    ]


class FakeTrace:
    context = "00-1"
    state = "vendor=1"


def test_the_trace_goes_along(tmp_path: Path) -> None:
    """A model sees the context of its request's trace, and a call can join it."""
    execute = """
        traces = [request.trace() for request in requests]
        contexts = [trace.get_context() for trace in traces]
        assert contexts == [None, '{"traceparent":"00-1","tracestate":"vendor=1"}'], contexts
        for trace in traces:
            self.call(trace=trace).exec()
        return [answer(np.ones(1)) for _ in requests]
    """
    models = FakeModels()
    with calling(tmp_path, execute, models) as model:
        requests = [one(model), one(model)]
        requests[1].trace = FakeTrace()
        assert [result(each) for each in model.ask(*requests)] == [[1.0], [1.0]]
    joined = [(request.sink.trace_context, request.sink.trace_state) for request in models.requests]  # type: ignore[attr-defined]
    assert joined == [("", ""), (FakeTrace.context, FakeTrace.state)]


LIMIT = ModelConfig(name="m", max_batch_size=8)
LIMIT.parameters["MAX_CONCURRENT_EXECUTIONS"].string_value = "3"


def test_coroutines_overlap_up_to_a_limit(tmp_path: Path) -> None:
    """So many batches run side by side, no more; each request gets its own response."""
    held: list[InferRequest] = []
    models = FakeModels(held.append)
    execute = """
        value = requests[0].inputs()[0].as_numpy()
        await self.call(inputs=[pb_utils.Tensor("X", value)]).async_exec()
        return [answer(request.inputs()[0].as_numpy()) for request in requests]
    """
    with calling(tmp_path, execute, models, config=LIMIT) as model:
        batches = [[one(model, n), one(model, n + 0.5)] for n in range(4)]
        for batch in batches[:2]:
            assert model.start(batch).wait(60), "free for the next batch while the first waits"
        last = model.start(batches[2])
        models.wait(lambda: len(held) == 3)
        assert not last.wait(0.05), "the limit is reached"
        assert model.instance.open() == 4
        release(model, held.pop(0))
        assert last.wait(60)
        end = model.start(batches[3])
        models.wait(lambda: len(models.requests) == 4)
        while held:
            release(model, held.pop())
        for n, batch in enumerate(batches):
            for request, value in zip(batch, (n, n + 0.5), strict=True):
                assert isinstance(request.sink, Recorder)
                request.sink.wait(1)
                assert result(request.sink.replies[0][1]) == [[value]]
                assert [final for *_, final in request.sink.replies] == [True]
        assert end.wait(60)
        # The loop's thread counts when it has answered.
        until(lambda: (model.stats.success.count, model.stats.executions) == (8, 4))
        assert not model.stats.responses


def release(model: Served, request: InferRequest) -> None:
    model.loop.call_soon_threadsafe(request.sink.reply, request, number(1), True)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("raise ValueError('boom')", "ValueError: boom"),
        ("return []", "Number of InferenceResponse objects do not match the number of InferenceRequest objects."),
        ("return 1", "Expected a list in the execute return, found type '<class 'int'>'."),
    ],
)
def test_overlapping_coroutines_fail_as_others_do(tmp_path: Path, code: str, text: str) -> None:
    """Triton's words, both of its prefixes before them; the next batch is fine."""
    execute = f"""
        await asyncio.sleep(0)
        if requests[0].inputs()[0].as_numpy()[0, 0]:
            {code}
        return [answer(np.ones(1)) for _ in requests]
    """
    with calling(tmp_path, execute, FakeModels(), config=LIMIT) as model:
        bad = one(model, 1.0)
        model.start([bad])
        assert isinstance(bad.sink, Recorder)
        bad.sink.wait(1)
        message = bad.sink.errors[0][1].message
        assert message.startswith(
            "Failed to process the request(s) for model instance 'm_0_0', message: Failed to process the request(s) "
            "for model 'm_0_0', message: "
        )
        assert text in message
        good = one(model)
        model.start([good])
        assert isinstance(good.sink, Recorder)
        good.sink.wait(1)
        assert result(good.sink.replies[0][1]) == [1.0]


def test_a_sender_of_an_overlapping_model_sends_once(tmp_path: Path) -> None:
    """The response sender of a model that is not decoupled has Triton's rules there too."""
    execute = """
        sender = requests[0].get_response_sender()
        texts = []
        for attempt in (lambda: sender.send(flags=1), lambda: sender.send(answer(np.ones(1))),
                        lambda: sender.send(answer(np.ones(1))), lambda: sender.send(flags=1),
                        lambda: sender.send(flags=1)):
            try:
                attempt()
            except pb_utils.TritonModelException as error:
                texts.append(str(error).removeprefix("Unable to send response. "))
        await asyncio.sleep(0)
        self.texts = getattr(self, "texts", "") or "|".join(texts)
        if len(requests) > 1:
            return [None, pb_utils.InferenceResponse([], pb_utils.TritonError(self.texts))]
        return [None]
    """
    with calling(tmp_path, execute, FakeModels(), config=LIMIT) as model:
        first, second = one(model), one(model)
        model.start([first, second])
        assert isinstance(first.sink, Recorder)
        assert isinstance(second.sink, Recorder)
        first.sink.wait(1)
        second.sink.wait(1)
        assert result(first.sink.replies[0][1]) == [1.0]
        assert second.sink.errors[0][1].message.split("|") == [
            "Non-decoupled model cannot send complete final before sending a response.",
            "Non-decoupled model cannot send more than one response.",
            "Response sender has been closed.",
        ]


def test_tasks_that_outlive_execute_go_on(tmp_path: Path) -> None:
    """What a coroutine has left behind runs while no batch does."""
    execute = """
        if not hasattr(self, "count"):
            self.count = 0
            async def tick():
                while True:
                    self.count += 1
                    await asyncio.sleep(0.001)
            self.task = asyncio.create_task(tick())
            self.event = threading.Event()
        before = self.count
        await asyncio.sleep(0.02)
        return [answer(np.array([float(self.count > before), self.count])) for _ in requests]
    """
    with calling(tmp_path, execute, FakeModels()) as model:
        counts = [result(model.ask(one(model))[0]) for _ in range(3)]
        assert all(grew == 1.0 for grew, _ in counts[1:])
        assert counts[0][1] < counts[1][1] < counts[2][1]
