"""Python models answer as under Triton: real workers, one instance."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conch.observe.stats import Reason
from conch.types.dtype import BY_NAME, BYTES, FP32, INT32, DataType
from conch.types.error import Code, InferError
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest
from conch.types.response import InferResponse
from conch.types.tensor import from_numpy
from support.python_models import ECHO, array_of, form_for, make_spec, model_source, served
from support.requests import Recorder


def values(datatype: DataType, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    count = int(np.prod(shape))
    if datatype is BYTES:
        array = np.empty(count, dtype=object)
        array[:] = [b"", b"a\0b", "\u00e9".encode(), b"x" * 300][:count] + [b"y"] * max(0, count - 4)
        return array.reshape(shape)
    return (np.arange(count) % 2 if datatype.name == "BOOL" else np.arange(count)).astype(datatype.numpy).reshape(shape)


def test_every_type_survives_the_round_trip(tmp_path: Path) -> None:
    """An echo model gives back the type, the shape and the elements of each, alone and in a batch."""
    names = sorted(set(BY_NAME) - {"BF16"})
    tensors = tuple(TensorSpec(name, BY_NAME[name], (-1,)) for name in names)
    execute = """
        return [pb_utils.InferenceResponse([pb_utils.Tensor(t.name(), t.as_numpy()) for t in r.inputs()])
                for r in requests]
    """
    arrays = {name: values(BY_NAME[name], (1, 5)) for name in names}
    with served(tmp_path, model_source(execute), ModelSpec("m", 1, 8, tensors, tensors)) as model:
        form = form_for(model.spec, (1, 5))
        data = tuple(bytes(from_numpy(BY_NAME[name], arrays[name])) for name in names)
        for count in (1, 3, 3):
            batch = [InferRequest(form, "", data, Recorder(), 0) for _ in range(count)]
            for response in model.ask(*batch):
                assert [each.name for each in response.outputs] == names
                for output in response.outputs:
                    assert output.datatype is BY_NAME[output.name]
                    assert output.shape == (1, 5)
                    assert array_of(output).tolist() == arrays[output.name].tolist()


def test_bf16_travels_by_dlpack_only(tmp_path: Path) -> None:
    """A BF16 input has no numpy form, and the error says what to use."""
    execute = """
        try:
            requests[0].inputs()[0].as_numpy()
        except pb_utils.TritonModelException as error:
            assert requests[0].inputs()[0].triton_dtype() == 14
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))]
    """
    with served(tmp_path, model_source(execute), make_spec("BF16")) as model:
        (error,) = model.ask(model.request(np.zeros((1, 2), np.uint16)))
        assert error.message == (
            "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
        )


def test_requests_of_different_forms_share_a_batch(tmp_path: Path) -> None:
    """Each request of a batch keeps its own shape, id, parameters and outputs."""
    execute = """
        return [pb_utils.InferenceResponse([
            pb_utils.Tensor("Y", r.inputs()[0].as_numpy() * 2),
            pb_utils.Tensor("Z", r.inputs()[0].as_numpy()),
            pb_utils.Tensor("W", np.array([len(r.request_id()), len(r.parameters())], np.float32)),
        ]) for r in requests]
    """
    with served(tmp_path, model_source(execute)) as model:
        one = model.request(np.ones((1, 3), np.float32), id="abc")
        two = model.request(np.full((2, 1), 3, np.float32), outputs=("W", "Y"), parameters={"a": 1})
        three = model.request(np.zeros((1, 0), np.float32))
        for _ in range(2):
            for request in (one, two, three):
                request.sink = Recorder()
            first, second, third = model.ask(one, two, three)
            assert [each.name for each in first.outputs] == ["Y", "Z", "W"]
            assert [each.name for each in second.outputs] == ["Y", "W"]
            assert array_of(first.outputs[0]).tolist() == [[2, 2, 2]]
            assert array_of(first.outputs[2]).tolist() == [3, 2]
            assert array_of(second.outputs[0]).tolist() == [[6], [6]]
            assert array_of(second.outputs[1]).tolist() == [0, 7]
            assert third.outputs[0].shape == (1, 0)


@pytest.mark.slow
def test_a_request_tells_everything(tmp_path: Path) -> None:
    """The accessors of InferenceRequest give what the client said, in Triton's types."""
    execute = """
        import json
        r = requests[0]
        text = json.dumps([r.request_id(), r.correlation_id(), r.flags(), r.timeout(), r.parameters(),
                           sorted(r.requested_output_names()), r.is_cancelled(), r.trace().get_context(),
                           r.inputs()[0].name(), r.inputs()[0].shape(), int(r.inputs()[0].triton_dtype()),
                           r.inputs()[0].is_cpu(), type(r.requested_output_names()).__name__])
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError(text))]
    """
    with served(tmp_path, model_source(execute)) as model:
        request = model.request(
            np.zeros((1, 2), np.float32), id="r1", correlation_id=7, flags=1, timeout_us=1000, outputs=("Y",),
            parameters={"foo": "b\u00e4r", "n": 3, "f": 1.5, "b": True},
        )  # fmt: skip
        (error,) = model.ask(request)
        parameters = '{"foo":"b\u00e4r","n":3,"f":1.5,"b":true}'
        assert json.loads(error.message) == [
            "r1", 7, 1, 1000, parameters, ["Y"], False, None, "X", [1, 2], 11, True, "set",
        ]  # fmt: skip
        (error,) = model.ask(model.request(np.zeros((1, 2), np.float32)))
        assert json.loads(error.message)[:6] == ["", 0, 0, 0, "{}", ["W", "Y", "Z"]]


def test_outputs_in_odd_forms(tmp_path: Path) -> None:
    """0-d, empty, transposed, big-endian and string arrays arrive as what they mean."""
    execute = """
        return [pb_utils.InferenceResponse([
            pb_utils.Tensor("scalar", np.array(3, np.float32)),
            pb_utils.Tensor("empty", np.zeros((0, 2), np.int64)),
            pb_utils.Tensor("turned", np.arange(6, dtype=np.int32).reshape(2, 3).T),
            pb_utils.Tensor("swapped", np.arange(2, dtype=">i4")),
            pb_utils.Tensor("fixed", np.array([b"ab", b"c"])),
            pb_utils.Tensor("text", np.array(["\u00fc", "b"])),
            pb_utils.Tensor("mixed", np.array([b"a", "b", 3, None], dtype=object)),
            pb_utils.Tensor("none", np.array([], dtype=object)),
            pb_utils.Tensor("dropped", np.zeros(3)),
        ]) for r in requests]
    """
    names = ("scalar", "empty", "turned", "swapped", "fixed", "text", "mixed", "none")
    spec = ModelSpec(
        "m", 1, 0, (TensorSpec("X", FP32, (-1,)),), tuple(TensorSpec(name, INT32, (-1,)) for name in names)
    )
    with served(tmp_path, model_source(execute), spec) as model:
        form = form_for(spec, (1,))
        for count in (1, 2):
            for response in model.ask(*[model.request(np.zeros(1, np.float32), form=form) for _ in range(count)]):
                found = {each.name: array_of(each).tolist() for each in response.outputs}
                assert found == {
                    "scalar": 3.0, "empty": [], "turned": [[0, 3], [1, 4], [2, 5]], "swapped": [0, 1],
                    "fixed": [b"ab", b"c"], "text": ["\u00fc".encode(), b"b"], "mixed": [b"a", b"b", b"3", b"None"],
                    "none": [],
                }  # fmt: skip


def test_duplicate_and_missing_outputs(tmp_path: Path) -> None:
    """A requested output that the model does not give is left out, one given twice comes twice."""
    execute = (
        "return [pb_utils.InferenceResponse([pb_utils.Tensor('Y', np.zeros(1)), pb_utils.Tensor('Y', np.ones(1))])]"
    )
    with served(tmp_path, model_source(execute)) as model:
        (response,) = model.ask(model.request(np.zeros((1, 1), np.float32), outputs=("Z", "Y")))
        assert [(each.name, array_of(each).tolist()) for each in response.outputs] == [("Y", [0]), ("Y", [1])]


def test_reshape_is_undone_on_the_way_out(tmp_path: Path) -> None:
    """The model sees the config's `reshape`, the client its `dims`."""
    spec = ModelSpec(
        "m", 1, 4,
        (TensorSpec("X", FP32, (1,), reshape=()),),
        (TensorSpec("Y", FP32, (1,), reshape=()),),
    )  # fmt: skip
    execute = "assert requests[0].inputs()[0].shape() == [1]\n" + ECHO
    with served(tmp_path, model_source(execute), spec) as model:
        form = form_for(spec, (1, 1), backend_shapes=((1,),))
        for response in model.ask(*[model.request(np.ones((1, 1), np.float32), form=form) for _ in range(2)]):
            assert response.outputs[0].shape == (1, 1)


FAULTS = [
    ("raise ValueError('boom')", "ValueError: boom\n\nAt:\n  {file}(14): case0\n{rest}"),
    ("raise pb_utils.TritonModelException('boom')", "TritonModelException: boom\n\nAt:\n  {file}(15): case1\n{rest}"),
    ("return {}['k']", "KeyError: 'k'\n\nAt:\n  {file}(16): case2\n{rest}"),
    ("return []", "Number of InferenceResponse objects do not match the number of InferenceRequest objects. {sizes}\n"),
    ("return None", "Expected a list in the execute return, found type '<class 'NoneType'>'."),
    ("return (1,)", "Expected a list in the execute return, found type '<class 'tuple'>'."),
    ("return [1]", "Expected an 'InferenceResponse' object in the execute function return list, found type '{int}'."),
    (
        "return [answer(np.zeros(1, np.complex64))]",
        "TritonModelException: NumPy dtype is not supported.\n\nAt:\n  {file}(7): answer\n  {file}(21): case7\n{rest}",
    ),
    ("raise SystemExit(1)", "SystemExit: 1\n\nAt:\n  {file}(22): case8\n{rest}"),
]


def test_what_goes_wrong_in_execute_fails_the_batch(tmp_path: Path) -> None:
    """Every request gets INTERNAL with the instance, the stub's own words and the innermost frame first."""
    cases = "\n".join([f"def case{number}(self): {code}" for number, (code, _) in enumerate(FAULTS)])
    execute = "return getattr(self, 'case%d' % requests[0].inputs()[0].as_numpy()[0, 0])()"
    name = "Failed to process the request(s) for model"
    file = tmp_path / "m" / "1" / "model.py"
    fills = {
        "file": file,
        "rest": f"  {file}(12): execute\n",
        "sizes": "InferenceRequest(s) size is:1, and InferenceResponse(s) size is:0",
        "int": "<class 'int'>",
    }
    with served(tmp_path, model_source(execute, "\n" + cases)) as model:
        for number, (_, text) in enumerate(FAULTS):
            error = model.echo(number)
            start = f"{name} instance 'm_0_0', message: {name} 'm_0_0', message: "
            assert error.code is Code.INTERNAL
            assert error.message == start + text.format_map(fills)
        assert model.stats.failures[Reason.BACKEND] == len(FAULTS)


def test_one_response_may_be_an_error(tmp_path: Path) -> None:
    """A TritonError reaches its own request with its own code; the others are answered."""
    execute = """
        E = pb_utils.TritonError
        error = pb_utils.InferenceResponse(output_tensors=[], error=E("custom", E.NOT_FOUND))
        assert error.has_error() and error.error().message() == "custom" and error.error().code() == E.NOT_FOUND
        return [error, answer(requests[1].inputs()[0].as_numpy(), parameters={"a": 1, "b": "x", "c": True, "d": 0.5})]
    """
    with served(tmp_path, model_source(execute)) as model:
        form = form_for(model.spec, (1, 2))
        failed, fine = model.ask(*[model.request(np.ones((1, 2), np.float32), form=form) for _ in range(2)])
        assert (failed.code, failed.message) == (Code.NOT_FOUND, "custom")
        assert array_of(fine.outputs[0]).tolist() == [[1, 1]]
        assert fine.parameters == {"a": 1, "b": "x", "c": True, "d": 0.5}
        assert (model.stats.success.count, model.stats.fail.count, model.stats.executions) == (1, 1, 1)


@pytest.mark.slow
def test_cancelled_requests_do_not_run(tmp_path: Path) -> None:
    """A request that nobody waits for is failed before the model sees it."""
    with served(tmp_path, model_source("return [answer(np.array([len(requests)])) for r in requests]")) as model:
        batch = [model.request(np.ones((1, 2), np.float32)) for _ in range(3)]
        batch[1].cancelled = True
        one, gone, other = model.ask(*batch)
        assert (gone.code, gone.message) == (Code.CANCELLED, "")
        assert array_of(one.outputs[0]).tolist() == array_of(other.outputs[0]).tolist() == [2]
        batch[0].cancelled = True
        batch[0].sink = Recorder()
        (gone,) = model.ask(batch[0])
        assert gone.code is Code.CANCELLED


def test_async_execute(tmp_path: Path) -> None:
    """A coroutine runs to its end; all batches of an instance share one event loop."""
    source = (
        model_source()
        .replace("def execute", "async def execute")
        .replace(
            "    return [answer(r",
            "    import asyncio\n        await asyncio.sleep(0)\n"
            "        self.loop = getattr(self, 'loop', None) or asyncio.get_running_loop()\n"
            "        assert self.loop is asyncio.get_running_loop()\n        return [answer(r",
        )
    )
    with served(tmp_path, source) as model:
        for _ in range(2):
            assert array_of(model.echo(3).outputs[0]).tolist() == [[3, 3]]


@pytest.mark.slow
def test_a_response_sender_answers_once(tmp_path: Path) -> None:
    """The sender answers during execute; a second answer, and an answer after FINAL, are refused in Triton's words."""
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
        attempt(flags=1)
        sender.send(answer(np.ones(2)))
        attempt(answer(np.zeros(2)))
        attempt(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        attempt(answer(np.zeros(2)))
        error = pb_utils.TritonError("|".join(texts))
        return [None, pb_utils.InferenceResponse(error=error)]
    """
    with served(tmp_path, model_source(execute)) as model:
        one, two = model.ask(*[model.request(np.ones((1, 2), np.float32)) for _ in range(2)])
        assert array_of(one.outputs[0]).tolist() == [1, 1]
        assert two.message.split("|") == [
            "Unable to send response. Unsupported flag provided.",
            "Inference Response object must be provided when the response flags is set to zero.",
            "Unable to send response. Non-decoupled model cannot send complete final before sending a response.",
            "Unable to send response. Non-decoupled model cannot send more than one response.",
            "Unable to send response. Response sender has been closed.",
        ]


@pytest.mark.slow
def test_a_response_sender_may_answer_later(tmp_path: Path) -> None:
    """After None in the returned list the sender answers from any thread, large tensors too."""
    execute = """
        senders = [r.get_response_sender() for r in requests]
        def work():
            for sender in senders:
                sender.send(answer(np.arange(100_000, dtype=np.float32)), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        threading.Thread(target=work).start()
        return [None for _ in requests]
    """
    with served(tmp_path, model_source(execute)) as model:
        for response in model.ask(*[model.request(np.ones((1, 2), np.float32)) for _ in range(2)]):
            assert array_of(response.outputs[0])[-1] == 99_999
        assert model.stats.success.count == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("execute", "text"),
    [
        ("return [None]", "The model returned None for this request and never asked for its response sender: "),
        ("requests[0].get_response_sender()\nreturn [None]", "The model discarded the request's response sender"),
    ],
)
def test_nobody_left_to_answer(tmp_path: Path, execute: str, text: str) -> None:
    """Where Triton would let the client wait for ever, the client is told."""
    with served(tmp_path, model_source(execute)) as model:
        error = model.echo()
        assert error.code is Code.INTERNAL
        assert error.message.startswith(text)


def test_inputs_can_be_changed_and_kept(tmp_path: Path) -> None:
    """What a model keeps of an earlier batch does not change under it, whatever the size."""
    execute = """
        kept = self.__dict__.setdefault("kept", [])
        array = requests[0].inputs()[0].as_numpy()
        array += 1
        kept.append(array)
        return [answer(np.array([each[0, -1] for each in kept]))]
    """
    with served(tmp_path, model_source(execute)) as model:
        for size in (4, 100_000):
            expected = []
            for value in (10, 20, 30):
                (response,) = model.ask(model.request(np.full((1, size), value, np.float32)))
                expected.append(value + 1)
                assert array_of(response.outputs[0]).tolist()[-len(expected) :] == expected


def test_is_cancelled_asks_the_server(tmp_path: Path) -> None:
    """A model that works long learns that its client has left."""
    execute = """
        pb_utils.Logger.log_info("working")
        while not requests[0].is_cancelled():
            time.sleep(0.01)
        assert requests[0].get_response_sender().is_cancelled()
        return [answer(np.ones(1))]
    """
    with served(tmp_path, model_source(execute)) as model:
        request = model.request(np.ones((1, 2), np.float32))
        idle = model.start([request])
        request.cancelled = True
        assert idle.wait(20)


def test_log_lines_reach_the_servers_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Logger writes under the model's file and line, at the level asked for."""
    more = """
    def initialize(self, args):
        pb_utils.Logger.log_warn("early")
    """
    execute = """
        pb_utils.Logger.log_info("one")
        pb_utils.Logger.log("two", pb_utils.Logger.ERROR)
        pb_utils.Logger.log_verbose("three")
        return [answer(np.ones(1))]
    """
    with caplog.at_level(logging.DEBUG, "conch.model"), served(tmp_path, model_source(execute, more)) as model:
        model.echo()
        model.echo()
    found = [(record.levelname, record.filename, record.lineno, record.getMessage()) for record in caplog.records]
    assert found[:4] == [
        ("WARNING", "model.py", 20, "early"),
        ("INFO", "model.py", 13, "one"),
        ("ERROR", "model.py", 14, "two"),
        ("DEBUG", "model.py", 15, "three"),
    ]


def test_several_inputs_of_different_sizes(tmp_path: Path) -> None:
    """Inputs of all types beside each other reach the model whole, in packets and in shared memory."""
    kinds = ("UINT8", "BYTES", "FP64", "INT16")
    inputs = tuple(TensorSpec(f"I{number}", BY_NAME[name], (-1,)) for number, name in enumerate(kinds))
    outputs = tuple(TensorSpec(f"O{number}", BY_NAME[name], (-1,)) for number, name in enumerate(kinds))
    spec = ModelSpec("m", 1, 8, inputs, outputs)
    execute = """
        return [pb_utils.InferenceResponse([
            pb_utils.Tensor("O" + t.name()[1:], t.as_numpy()) for t in r.inputs()]) for r in requests]
    """
    with served(tmp_path, model_source(execute), spec) as model:
        for size in (3, 7001):
            form = form_for(spec, (1, size))
            batch = [model.request(np.full((1, size), 65 + number), form=form) for number in range(3)]
            for number, response in enumerate(model.ask(*batch)):
                for output, kind in zip(response.outputs, kinds, strict=True):
                    expected = str(65 + number).encode() if kind == "BYTES" else 65 + number
                    assert output.shape == (1, size)
                    assert set(array_of(output).ravel().tolist()) == {expected}


def test_responses_hold_what_was_asked_for(tmp_path: Path) -> None:
    """The response is an InferResponse, never an error, for the simplest model."""
    with served(tmp_path, model_source()) as model:
        assert isinstance(model.echo(), InferResponse)
        assert not isinstance(model.echo(), InferError)
