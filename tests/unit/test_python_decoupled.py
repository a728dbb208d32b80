"""Decoupled Python models answer as under Triton: any number of responses, in execute and after, from any thread."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conch.backend.api import StreamingInstance
from conch.backend.python.channel import WINDOW
from conch.backend.python.outbox import BURST
from conch.observe.stats import Reason
from conch.types.dtype import INT32, UINT32
from conch.types.error import Code, InferError
from conch.types.flow import Flow
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest
from conch.types.response import FINAL, FailedResponse, InferResponse
from conch.types.tensor import from_numpy
from support.python_models import Served, array_of, form_for, make_spec, model_source, served
from support.requests import Recorder
from support.until import until

SPEC = make_spec(decoupled=True)
END = "pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL"


def settle(model: Served, *requests: InferRequest) -> list[Recorder]:
    """Run the requests as one batch and wait until each has its final answer."""
    idle = model.start(requests)
    assert idle.wait(60)
    sinks = [sink_of(request) for request in requests]
    for sink in sinks:
        sink.wait(1)
    return sinks


def sink_of(request: InferRequest) -> Recorder:
    assert isinstance(request.sink, Recorder)
    return request.sink


def values(sink: Recorder) -> list[Any]:
    """The first element of each response's first output, an error's text, or FINAL where the last brought none."""
    return [value(response) for _, response, _ in sink.replies]


def value(response: InferResponse) -> Any:
    if response is FINAL:
        return "FINAL"
    if isinstance(response, FailedResponse):
        return response.error.message
    return array_of(response.outputs[0]).ravel()[0].item()


def finals(sink: Recorder) -> list[bool]:
    return [final for _, _, final in sink.replies]


def small(model: Served, value: float = 1.0, **changes: Any) -> InferRequest:
    return model.request(np.full((1, 2), value, np.float32), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 3, 5 * BURST])
@pytest.mark.parametrize("bare", [True, False])
def test_any_number_of_responses_and_one_final(tmp_path: Path, count: int, bare: bool) -> None:
    """Responses arrive in order; the final one brings a response or is empty, as the model says."""
    last = f"sender.send(flags={END})" if bare or not count else f"sender.send(answer(np.array([{count}.0])), {END})"
    execute = f"""
        for request in requests:
            sender = request.get_response_sender()
            for number in range({count} - {int(not bare and count > 0)}):
                sender.send(answer(np.array([number + 1.0])))
            {last}
    """
    expected: list[Any] = [float(number + 1) for number in range(count)]
    if bare or not count:
        expected.append("FINAL")
    with served(tmp_path, model_source(execute), SPEC) as model:
        for sink in settle(model, small(model), small(model)):
            assert values(sink) == expected
            assert finals(sink) == [False] * (len(expected) - 1) + [True]
        assert model.stats.success.count == model.stats.queue.count == model.stats.compute_infer.count == 2
        assert model.stats.executions == 1
        assert model.stats.batches[2].compute_infer.count == 1


@pytest.mark.slow
def test_responses_after_execute_and_a_free_instance_meanwhile(tmp_path: Path) -> None:
    """The model's own threads answer after execute has returned None; until they have, the requests are open."""
    execute = """
        senders = self.__dict__.setdefault("senders", [])
        senders += [request.get_response_sender() for request in requests]
        if requests[0].inputs()[0].as_numpy()[0, 0] == 2:
            def work():
                for number, sender in enumerate(senders):
                    sender.send(answer(np.array([number * 1.0])), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            threading.Thread(target=work).start()
    """
    with served(tmp_path, model_source(execute), SPEC) as model:
        first = small(model)
        assert model.start([first]).wait(60)
        assert isinstance(model.instance, StreamingInstance), "the scheduler counts what is open"
        assert model.instance.open() == 1
        assert sink_of(first).finals() == []
        second = small(model, 2)
        settle(model, second)
        sink_of(first).wait(1)
        assert (values(sink_of(first)), values(sink_of(second))) == ([0.0], [1.0])
        assert model.instance.open() == 0


@pytest.mark.slow
def test_responses_of_all_sizes_and_kinds_keep_their_order(tmp_path: Path) -> None:
    """Small ones, large ones, those of several outputs, strings, parameters: each request gets its own in order."""
    execute = """
        for request in requests:
            sender = request.get_response_sender()
            for number, size in enumerate([1, 100_000, 3, 40_000, 0, 70_000_0, 1]):
                parameters = {"n": number, "\\u00e4": "x" * (50_000 if number == 4 else 1)} if number % 2 == 0 else None
                sender.send(pb_utils.InferenceResponse([
                    pb_utils.Tensor("Y", np.full((1, size), number, np.float32)),
                    pb_utils.Tensor("W", np.array(["t" * number], dtype=object)),
                    pb_utils.Tensor("dropped", np.ones(9)),
                ], parameters=parameters))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    """
    with served(tmp_path, model_source(execute), SPEC) as model:
        for sink in settle(model, small(model), small(model)):
            responses = [response for _, response, _ in sink.replies[:-1]]
            assert [response.outputs[0].shape[1] for response in responses] == [1, 100_000, 3, 40_000, 0, 700_000, 1]
            for number, response in enumerate(responses):
                assert [output.name for output in response.outputs] == ["Y", "W"]
                assert set(array_of(response.outputs[0]).ravel().tolist()) <= {float(number)}
                assert array_of(response.outputs[1]).tolist() == [b"t" * number]
                assert (response.parameters or {}).get("n") == (number if number % 2 == 0 else None)


@pytest.mark.slow
def test_only_outputs_asked_for_are_sent(tmp_path: Path) -> None:
    """What the request does not want stays in the worker."""
    execute = f"""
        tensors = [pb_utils.Tensor(name, np.ones(2, np.float32)) for name in ("Y", "Z", "W")]
        requests[0].get_response_sender().send(pb_utils.InferenceResponse(tensors), {END})
    """
    with served(tmp_path, model_source(execute), SPEC) as model:
        (sink,) = settle(model, small(model, outputs=("W", "Y")))
        assert [output.name for output in sink.replies[0][1].outputs] == ["Y", "W"]


def test_misuse_of_the_sender_has_tritons_words(tmp_path: Path) -> None:
    """Wrong flags, nothing to send, sending after the final response; the request is not harmed."""
    execute = """
        texts = []
        sender = requests[0].get_response_sender()
        def attempt(*arguments, **keywords):
            try:
                sender.send(*arguments, **keywords)
            except pb_utils.TritonModelException as error:
                texts.append(str(error))
        attempt(flags=7)
        attempt()
        sender.send(flags=1)
        attempt(flags=1)
        attempt(answer(np.zeros(1)))
        error = pb_utils.TritonError("|".join(texts))
        requests[1].get_response_sender().send(pb_utils.InferenceResponse(error=error), flags=1)
    """
    with served(tmp_path, model_source(execute), SPEC) as model:
        one, two = settle(model, small(model), small(model))
        assert values(one) == ["FINAL"]
        assert two.errors[0][1].message.split("|") == [
            "Unable to send response. Unsupported flag provided.",
            "Inference Response object must be provided when the response flags is set to zero.",
            "Unable to send response. Response sender has been closed.",
            "Unable to send response. Response sender has been closed.",
        ]


NAME = "Failed to process the request(s) for model"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            "return [answer(np.ones(1)) for r in requests]",
            (
                f"{NAME} 'm_0_0', message: Python model 'm_0_0' is using the "
                "decoupled mode and the execute function must return None."
            ),
        ),
        ("raise ValueError('boom')", f"{NAME} 'm_0_0', message: ValueError: boom"),
    ],
)
def test_an_execute_that_fails_ends_what_is_open(tmp_path: Path, code: str, text: str) -> None:
    """Responses sent before count; requests already answered stay so, the others get the error."""
    execute = f"""
        self.__dict__.setdefault("kept", []).append(requests[0].get_response_sender())
        sender = requests[0].get_response_sender()
        sender.send(answer(np.zeros(1)))
        requests[1].get_response_sender().send(flags=1)
        {code}
    """
    with served(tmp_path, model_source(execute), SPEC) as model:
        one, two = settle(model, small(model), small(model))
        assert values(one) == [0.0]
        assert one.errors[0][1].message.startswith(text)
        assert values(two) == ["FINAL"]
        assert (model.stats.success.count, model.stats.failures[Reason.BACKEND]) == (1, 1)
        assert model.instance.open() == 0


def test_an_error_response_is_one_of_many(tmp_path: Path) -> None:
    """It arrives with its own code, more may follow, and only a final one ends the request."""
    execute = """
        for number, request in enumerate(requests):
            sender = request.get_response_sender()
            sender.send(answer(np.zeros(1)))
            error = pb_utils.TritonError("custom", pb_utils.TritonError.NOT_FOUND)
            sender.send(pb_utils.InferenceResponse(error=error))
            if number:
                sender.send(answer(np.ones(1)))
            sender.send(flags=1)
    """
    with served(tmp_path, model_source(execute), SPEC) as model:
        for count in (1, 2):
            for sink in settle(model, *[small(model) for _ in range(count)]):
                failed = sink.replies[1][1]
                assert isinstance(failed, FailedResponse)
                assert failed.error.code is Code.NOT_FOUND
                assert values(sink) in ([0.0, "custom", "FINAL"], [0.0, "custom", 1.0, "FINAL"])
                assert not sink.errors
        assert model.stats.failures[Reason.BACKEND] == 3


def test_a_sender_dropped_without_a_final_response_ends_the_request(tmp_path: Path) -> None:
    """A model that forgets the final flag, or the request, leaves no client waiting."""
    execute = """
        requests[0].get_response_sender().send(answer(np.zeros(1)))
    """
    with served(tmp_path, model_source(execute), SPEC) as model:
        one, two = settle(model, small(model), small(model))
        text = "The model discarded the request's response sender without sending a final response."
        assert values(one) == [0.0]
        assert [error.message for sink in (one, two) for _, error in sink.errors] == [text, text]


@pytest.mark.slow
def test_parameters_that_cannot_travel_spoil_one_response(tmp_path: Path) -> None:
    """Its request fails with a text, its neighbours in the same packet are unharmed."""
    execute = """
        for request, value in zip(requests, (1.5, float("nan"), 10**30, 2.5)):
            request.get_response_sender().send(answer(np.ones(1), parameters={"a": value}), flags=1)
    """
    with served(tmp_path, model_source(execute), SPEC) as model:
        sinks = settle(model, *[small(model) for _ in range(4)])
        assert sinks[0].replies[0][1].parameters == {"a": 1.5}
        assert sinks[3].replies[0][1].parameters == {"a": 2.5}
        assert "cannot be read" in sinks[1].errors[0][1].message
        assert len(sinks[2].finals()) == 1


def test_async_execute_runs_beside_later_batches(tmp_path: Path) -> None:
    """A coroutine goes on after the instance is free; what it raises ends the requests that are still open."""
    source = model_source("""
        import asyncio
        value = requests[0].inputs()[0].as_numpy()[0, 0]
        self.go = getattr(self, "go", None) or asyncio.Event()
        sender = requests[0].get_response_sender()
        if value == 1:
            await self.go.wait()
        elif value == 2:
            self.go.set()
        else:
            raise ValueError("boom")
        sender.send(answer(np.array([value])), flags=1)
    """).replace("def execute", "async def execute")
    with served(tmp_path, source, SPEC) as model:
        waiting = small(model, 1)
        assert model.start([waiting]).wait(60)
        (two,) = settle(model, small(model, 2))
        sink_of(waiting).wait(1)
        assert (values(sink_of(waiting)), values(two)) == ([1.0], [2.0])
        (three,) = settle(model, small(model, 3))
        assert f"{NAME} 'm_0_0', message: ValueError: boom" in three.errors[0][1].message


@pytest.mark.slow
def test_cancellation_is_seen_after_execute(tmp_path: Path) -> None:
    """A thread of the model learns that its client has left, by the sender and by the request; others go on."""
    execute = """
        def work(request, sender):
            while not sender.is_cancelled():
                time.sleep(0.002)
            assert request.is_cancelled()
            sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("", pb_utils.TritonError.CANCELLED)), 1)
        for request in requests:
            threading.Thread(target=work, args=(request, request.get_response_sender()), daemon=True).start()
    """
    with served(tmp_path, model_source(execute), SPEC) as model:
        requests = [small(model), small(model)]
        assert model.start(requests).wait(60)
        requests[0].cancelled = True
        sink_of(requests[0]).wait(1)
        assert sink_of(requests[0]).errors[0][1].code is Code.CANCELLED
        assert sink_of(requests[1]).finals() == []
        requests[1].cancelled = True
        sink_of(requests[1]).wait(1)
        # The loop's thread counts when it has answered.
        until(lambda: model.stats.failures[Reason.CANCELED] == 2 and model.stats.responses[0].cancel.count == 2)


def test_what_has_been_answered_was_not_cancelled(tmp_path: Path) -> None:
    """However long after the final response a model asks, by the sender or by the request; the next one tells."""
    more = """
    seen = False
    """
    execute = """
        for request in requests:
            sender = request.get_response_sender()
            sender.send(answer(np.full((1, 1), self.seen, np.float32)), 1)
            time.sleep(0.05)
            self.seen = self.seen or sender.is_cancelled() or request.is_cancelled()
    """
    with served(tmp_path, model_source(execute, more), SPEC) as model:
        settle(model, small(model))
        (after,) = settle(model, small(model))
        assert values(after) == [0.0]


@pytest.mark.slow
def test_a_client_that_does_not_read_holds_its_own_sender_up(tmp_path: Path) -> None:
    """The responses under way are bounded; another request of the same model is answered meanwhile."""
    execute = """
        def work(sender, many):
            for number in range(many):
                sender.send(answer(np.full((1, 250_000), number, np.float32)))
            sender.send(flags=1)
        for request in requests:
            many = int(request.inputs()[0].as_numpy()[0, 0])
            threading.Thread(target=work, args=(request.get_response_sender(), many), daemon=True).start()
    """
    many = 40
    with served(tmp_path, model_source(execute), SPEC) as model:
        slow, quick = small(model, many), small(model, 2)
        slow.flow = flow = Flow()
        flow.full = True
        settle_quick = model.start([slow])
        assert settle_quick.wait(60)
        settle(model, quick)
        assert values(sink_of(quick)) == [0.0, 1.0, "FINAL"]
        assert len(sink_of(slow).replies) <= WINDOW // 1_000_000 + 1
        model.loop.call_soon_threadsafe(flow.release)
        sink_of(slow).wait(1)
        assert values(sink_of(slow)) == [*map(float, range(many)), "FINAL"]


def test_a_client_that_leaves_frees_its_sender(tmp_path: Path) -> None:
    """A sender that waits for a reader goes on when the stream ends: the model is never stuck."""
    execute = """
        sender = requests[0].get_response_sender()
        for number in range(20):
            sender.send(answer(np.zeros((1, 250_000), np.float32)))
        sender.send(flags=1)
    """
    with served(tmp_path, model_source(execute), SPEC) as model:
        request = small(model)
        request.flow = flow = Flow()
        flow.full = True
        idle = model.start([request])
        request.cancelled = True
        model.loop.call_soon_threadsafe(flow.release)
        assert idle.wait(60)
        sink_of(request).wait(1)


@pytest.mark.slow
def test_response_statistics_count_by_index(tmp_path: Path) -> None:
    """Successes, errors and empty finals are counted under the number of the response."""
    execute = """
        for request in requests:
            sender = request.get_response_sender()
            kind = request.inputs()[0].as_numpy()[0, 0]
            if kind == 1:
                sender.send(answer(np.zeros(1)))
                sender.send(answer(np.zeros(1)))
                sender.send(flags=1)
            elif kind == 2:
                sender.send(answer(np.zeros(1)))
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("no")), flags=1)
            else:
                sender.send(flags=1)
    """
    with served(tmp_path, model_source(execute), SPEC) as model:
        settle(model, small(model, 1), small(model, 2), small(model, 3))
        found = {
            index: (
                each.compute_infer.count, each.compute_output.count, each.success.count, each.fail.count,
                each.empty_response.count, each.cancel.count,
            )
            for index, each in model.stats.responses.items()
        }  # fmt: skip
        assert found == {0: (3, 2, 2, 0, 1, 0), 1: (2, 2, 1, 1, 0, 0), 2: (1, 0, 0, 0, 1, 0)}
        second = model.stats.responses[1]
        assert second.success.ns + second.fail.ns == second.compute_infer.ns + second.compute_output.ns
        assert (model.stats.success.count, model.stats.fail.count) == (2, 1)


def test_many_threads_share_the_way_out(tmp_path: Path) -> None:
    """Each of many requests, answered by a thread of its own at once, gets all its responses in order."""
    execute = """
        start = threading.Event()
        def work(sender, mine):
            start.wait()
            for number in range(50):
                sender.send(answer(np.array([mine * 1000.0 + number])))
            sender.send(flags=1)
        for mine, request in enumerate(requests):
            threading.Thread(target=work, args=(request.get_response_sender(), mine)).start()
        start.set()
    """
    with served(tmp_path, model_source(execute), SPEC) as model:
        for mine, sink in enumerate(settle(model, *[small(model) for _ in range(16)])):
            assert values(sink) == [*[mine * 1000.0 + number for number in range(50)], "FINAL"]


def test_inputs_that_a_thread_still_reads_stay_valid(tmp_path: Path) -> None:
    """The next batch comes while a thread looks at the arrays of an earlier one."""
    execute = """
        def work(sender, array):
            self.go.wait()
            sender.send(answer(array[:, :1]), flags=1)
        self.go = getattr(self, "go", None) or threading.Event()
        array = requests[0].inputs()[0].as_numpy()
        threading.Thread(target=work, args=(requests[0].get_response_sender(), array)).start()
        if array[0, 0] == 3:
            self.go.set()
    """
    with served(tmp_path, model_source(execute), SPEC) as model:
        requests = [model.request(np.full((1, 100_000), value, np.float32)) for value in (1, 2, 3)]
        for request in requests:
            assert model.start([request]).wait(60)
        for value, request in enumerate(requests, 1):
            sink_of(request).wait(1)
            assert values(sink_of(request)) == [float(value)]


REPEAT = """
import json
import threading
import time

import numpy
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.model_config = model_config = json.loads(args["model_config"])
        if not pb_utils.using_decoupled_model_transaction_policy(model_config):
            raise pb_utils.TritonModelException("enable decoupled transaction policy")
        self.idx_dtype = pb_utils.triton_string_to_numpy(
            pb_utils.get_output_config_by_name(model_config, "IDX")["data_type"])
        self.count = 0
        self.lock = threading.Lock()

    def execute(self, requests):
        for request in requests:
            thread = threading.Thread(target=self.respond, args=(
                request.get_response_sender(),
                pb_utils.get_input_tensor_by_name(request, "IN").as_numpy(),
                pb_utils.get_input_tensor_by_name(request, "DELAY").as_numpy()))
            thread.daemon = True
            with self.lock:
                self.count += 1
            thread.start()
        wait = pb_utils.get_input_tensor_by_name(requests[0], "WAIT").as_numpy()
        time.sleep(wait[0] / 1000)
        return None

    def respond(self, sender, values, delays):
        for index in range(values.size):
            time.sleep(delays[index] / 1000)
            sender.send(pb_utils.InferenceResponse(output_tensors=[
                pb_utils.Tensor("IDX", numpy.array([index], self.idx_dtype)),
                pb_utils.Tensor("OUT", numpy.array([values[index]], numpy.int32))]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        with self.lock:
            self.count -= 1

    def finalize(self):
        while True:
            with self.lock:
                if not self.count:
                    return
            time.sleep(0.01)
"""


def test_the_repeat_example(tmp_path: Path) -> None:
    """As Triton's repeat_int32: three inputs, a response for each element, none for none, and finalize waits."""
    spec = ModelSpec(
        "m", 1, 0,
        (TensorSpec("IN", INT32, (-1,)), TensorSpec("DELAY", UINT32, (-1,)), TensorSpec("WAIT", UINT32, (1,))),
        (TensorSpec("OUT", INT32, (1,)), TensorSpec("IDX", UINT32, (1,))),
        decoupled=True,
    )  # fmt: skip
    config = config_of(spec)
    with served(tmp_path, REPEAT, spec, config=config) as model:

        def request(*numbers: int) -> InferRequest:
            count = len(numbers)
            shapes = ((count,), (count,), (1,))
            form = form_for(spec, (count,), shapes=shapes, backend_shapes=shapes,
                            sizes=(4 * count, 4 * count, 4), counts=(count, count, 1))  # fmt: skip
            arrays = (np.array(numbers, np.int32), np.ones(count, np.uint32), np.zeros(1, np.uint32))
            kinds = (INT32, UINT32, UINT32)
            data = tuple(bytes(from_numpy(kind, array)) for kind, array in zip(kinds, arrays, strict=True))
            return InferRequest(form, "", data, Recorder(), 0)

        some, none = request(4, 2, 0, 1), request()
        settle(model, some)
        settle(model, none)
        found = [
            {output.name: array_of(output).tolist() for output in response.outputs}
            for _, response, _ in sink_of(some).replies
        ]
        assert found == [*[{"IDX": [i], "OUT": [v]} for i, v in enumerate((4, 2, 0, 1))], {}]
        assert values(sink_of(none)) == ["FINAL"]


SQUARE = """
import threading

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            threading.Thread(target=self.respond, args=(request.get_response_sender(), value), daemon=True).start()
        return None

    def respond(self, sender, value):
        for _ in range(value.ravel()[0]):
            out = pb_utils.Tensor("OUT", np.array([value.ravel()[0]], np.int32))
            sender.send(pb_utils.InferenceResponse(output_tensors=[out]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def test_the_square_example(tmp_path: Path) -> None:
    """As Triton's square_int32: n responses for the number n, several requests in one batch."""
    spec = ModelSpec("m", 1, 8, (TensorSpec("IN", INT32, (1,)),), (TensorSpec("OUT", INT32, (1,)),), decoupled=True)
    with served(tmp_path, SQUARE, spec, config=config_of(spec)) as model:
        counts = [3, 0, 200]
        sinks = settle(model, *[model.request(np.array([[count]], np.int32)) for count in counts])
        assert [values(sink) for sink in sinks] == [[count] * count + ["FINAL"] for count in counts]


def config_of(spec: ModelSpec) -> Any:
    from conch.pb.model_config_pb2 import ModelConfig

    config = ModelConfig(name=spec.name, max_batch_size=spec.max_batch_size)
    for tensors, into in ((spec.inputs, config.input), (spec.outputs, config.output)):
        for tensor in tensors:
            into.add(name=tensor.name, data_type=tensor.datatype.number, dims=tensor.dims)
    return config


def test_closing_ends_what_is_open(tmp_path: Path) -> None:
    """An unload that does not wait leaves nobody without an answer."""
    execute = "self.__dict__.setdefault('kept', []).extend([r.get_response_sender() for r in requests])"
    with served(tmp_path, model_source(execute), SPEC) as model:
        requests = [small(model) for _ in range(3)]
        assert model.start(requests).wait(60)
        closed = threading.Thread(target=model.model.close)
        closed.start()
        for request in requests:
            sink_of(request).wait(1)
            assert isinstance(sink_of(request).errors[0][1], InferError)
            assert len(sink_of(request).finals()) == 1
        closed.join()
