"""ModelStreamInfer on the wire: order, in-band errors, ends, cancelling, back-pressure, and hostile clients."""

from __future__ import annotations

import struct
import zlib
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.pb import grpc_service_pb2 as pb
from conch.transport import grpc_model_stream, grpc_stream
from conch.transport import http2_frames as h2
from conch.transport.http2_frames import ErrorCode as E
from conch.types.dtype import UINT8
from conch.types.error import Code, InferError
from conch.types.response import FINAL, InferResponse
from conch.types.tensor import Tensor
from support.h2client import Served, block, data, framed, headers, infer, infer_message

STREAM = b"/inference.GRPCInferenceService/ModelStreamInfer"
EMPTY_FINAL = "triton_enable_empty_final_response"
STRICT = (b"triton_grpc_error", b"true")


def decoupled(count: int, name: str = "", empty_final: bool = False) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="decoupled", id=name)
    request.inputs.add(name="N", datatype="INT32", shape=[1])
    request.raw_input_contents.append(struct.pack("<i", count))
    if empty_final:
        request.parameters[EMPTY_FINAL].bool_param = True
    return request


def wire(message: pb.ModelInferRequest) -> bytes:
    return framed(message.SerializeToString())


def opened(mode: str = "inline", *extra: tuple[bytes, bytes], greeting: bytes | None = None, **options) -> Served:
    served = Served(mode, greeting, **options)
    served.feed(headers(1, block(STREAM, *extra)))
    return served


def say(served: Served, *messages: pb.ModelInferRequest, end: bool = False) -> None:
    for message in messages:
        served.feed(data(1, wire(message), end=False))
    if end:
        served.feed(data(1))


def answers(served: Served) -> list[pb.ModelStreamInferResponse]:
    """All so far."""
    served.frames()
    raw, found, at = served.messages.get(1, b""), [], 0
    while at < len(raw):
        flag, size = struct.unpack_from(">BI", raw, at)
        assert flag == 0
        found.append(pb.ModelStreamInferResponse.FromString(raw[at + 5 : at + 5 + size]))
        at += 5 + size
    return found


def told(served: Served) -> list[tuple[str, str, bool | None]]:
    """Of each answer: the request's id, the error, and whether it says to be the last."""
    return [
        (
            each.infer_response.id,
            each.error_message,
            each.infer_response.parameters["triton_final_response"].bool_param
            if "triton_final_response" in each.infer_response.parameters
            else None,
        )
        for each in answers(served)
    ]


def test_answers_while_the_client_still_talks() -> None:
    """Each request is answered at once; the status comes when the client has ended."""
    served = opened()
    say(served, infer_message("a"))
    assert told(served) == [("a", "", True)]
    assert "grpc-status" not in served.fields[1]
    say(served, infer_message("b", [3.0]), end=True)
    assert told(served) == [("a", "", True), ("b", "", True)]
    assert answers(served)[1].infer_response.raw_output_contents[0] == struct.pack("<f", 3.0)
    assert served.status(1) == (0, "")
    assert not served.connection.streams
    served.close()


def test_a_long_stream_of_small_answers_may_be_acknowledged_one_by_one() -> None:
    """Windows and pings for each answer are in proportion to the data: the client is never sent away."""
    served = opened()
    for _ in range(1500):
        say(served, infer_message("a"))
        served.feed(h2.window_update(0, 50), h2.window_update(1, 50), h2.frame(h2.PING, 0, 0, b"12345678"))
    assert not served.wire.closed
    served.close()


def test_an_empty_stream_is_ok() -> None:
    """A client that says nothing gets nothing, and OK."""
    served = opened()
    served.feed(data(1))
    served.frames()
    assert served.fields[1][":status"] == "200"
    assert (answers(served), served.status(1)) == ([], (0, ""))
    served.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["identity", "decoupled", "nope"]), max_size=8), st.data())
def test_order_on_a_stream(models: list[str], draw: st.DataObject) -> None:
    """Models that answer once are answered in the order of their requests; each decoupled request in its own."""
    with closing(opened("hold")) as served:
        for number, model in enumerate(models):
            request = decoupled(0) if model == "decoupled" else infer_message()
            request.model_name, request.id = model, str(number)
            say(served, request)
        served.feed(data(1))
        schedulers = [served.registry.versions[name].scheduler for name in ("identity", "decoupled")]
        open_requests = [request for scheduler in schedulers for request in scheduler.held]
        expected = {request.id: 0 for request in open_requests if request.form.decoupled}
        while open_requests:
            request = draw.draw(st.sampled_from(open_requests))
            if not request.form.decoupled:
                served.registry.versions["identity"].scheduler.answer(request)
            elif draw.draw(st.booleans()):
                request.sink.reply(request, InferResponse(()), False)
                expected[request.id] += 1
                continue
            else:
                request.sink.reply(request, FINAL, True)
            open_requests.remove(request)
        served.turn()
        found = told(served)
        ordered = [each for each, _, _ in found if models[int(each)] != "decoupled"]
        assert ordered == [str(number) for number, model in enumerate(models) if model != "decoupled"]
        for asked, count in expected.items():
            assert [final for each, _, final in found if each == asked] == [False] * count
        assert served.status(1) == (0, "")


def test_decoupled_responses_and_their_end() -> None:
    """Every response says whether it is the last; an end without one is told only to who asked."""
    served = opened()
    say(served, decoupled(2, "a"), decoupled(1, "b", empty_final=True), decoupled(0, "c"), end=True)
    assert told(served) == [("a", "", False), ("a", "", False), ("b", "", False), ("b", "", True)]
    last = answers(served)[-1].infer_response
    assert (last.model_name, last.model_version, len(last.outputs)) == ("decoupled", "", 0)
    assert served.status(1) == (0, "")
    served.close()


def test_one_write_for_a_tick() -> None:
    """A hundred responses that are made in one tick leave with one write."""
    served = opened()
    say(served, decoupled(1))
    before = served.wire.writes
    say(served, decoupled(100))
    assert served.wire.writes == before + 1
    assert len(told(served)) == 101
    served.close()


def test_errors_are_in_the_stream() -> None:
    """An error before the model carries the id alone, one of the model also what was asked; the stream goes on."""
    served = opened("hold")
    early = infer_message("a")
    early.model_name = "nope"
    say(served, early, infer_message("b"), infer_message("c"))
    scheduler = served.scheduler
    scheduler.held[0].sink.fail(scheduler.held[0], InferError(Code.INTERNAL, "it broke"))
    scheduler.answer(scheduler.held[1])
    served.turn()
    text = "Request for unknown model: 'nope' is not found"
    assert told(served) == [("a", text, None), ("b", "it broke", True), ("c", "", True)]
    assert [each.infer_response.model_name for each in answers(served)] == ["", "identity", "identity"]
    served.feed(data(1))
    assert served.status(1) == (0, "")
    served.close()


def test_a_client_may_ask_that_errors_end_the_stream() -> None:
    """With triton_grpc_error the first error of a model is the status, in its turn, and cancels what is left."""
    served = opened("hold", STRICT)
    early = infer_message("x")
    early.model_name = "nope"
    say(served, early, infer_message("a"), infer_message("b"), infer_message("c"))
    held = list(served.scheduler.held)
    held[1].sink.fail(held[1], InferError(Code.UNAVAILABLE, "it broke"))
    served.turn()
    served.frames()
    assert "grpc-status" not in served.fields[1]
    served.scheduler.answer(held[0])
    served.turn()
    assert [each for each, _, _ in told(served)] == ["x", "a"]
    assert served.status(1) == (14, "it broke")
    assert held[2].cancelled
    assert not served.connection.streams
    served.close()


@pytest.mark.parametrize("how", ["reset", "disconnect", "garbage", "deadline"])
def test_who_leaves_cancels_everything(how: str) -> None:
    """Requests of a stream that ends early are cancelled, whatever ended it."""
    extra = ((b"grpc-timeout", b"1H"),) if how == "deadline" else ()
    served = opened("hold", *extra)
    say(served, infer_message("a"), infer_message("b"))
    held = list(served.scheduler.held)
    assert [request.expires_ns > 0 for request in held] == [how == "deadline"] * 2
    if how == "reset":
        served.feed(h2.rst_stream(1, E.CANCEL))
    elif how == "disconnect":
        served.connection.connection_lost(None)
    elif how == "garbage":
        served.feed(data(1, b"\7\0\0\0\0", end=False))
        assert served.status(1)[0] == 13
    else:
        served.skip(3601)
        assert served.status(1) == (4, "Deadline Exceeded")
    assert all(request.cancelled for request in held)
    served.scheduler.release()
    served.turn()
    assert told(served) == []
    assert not served.connection.draining
    served.close()


@pytest.mark.parametrize("replies", [0, 2, 3])
def test_a_model_that_must_answer_once(replies: int) -> None:
    """Not exactly one response is an error that says how many there were."""
    served = opened("hold")
    say(served, infer_message("a"))
    request = served.scheduler.held[0]
    for number in range(replies):
        request.sink.reply(request, InferResponse(()), final=number == replies - 1)
    if not replies:
        request.sink.reply(request, FINAL, final=True)
    served.turn()
    assert told(served) == [("a", f"expected a single response, got {replies}", True)]
    served.close()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
@settings(max_examples=40, deadline=None)
def test_messages_may_be_cut_anywhere(cuts: list[int]) -> None:
    """Pieces of messages, and many messages in one frame, are put together."""
    served = opened()
    raw = b"".join([wire(infer_message(str(n))) for n in range(6)])
    for size in cuts:
        served.feed(data(1, raw[:size], end=False))
        raw = raw[size:]
    served.feed(data(1, raw))
    assert [each for each, _, _ in told(served)] == [str(n) for n in range(6)]
    assert served.status(1) == (0, "")
    served.close()


@pytest.mark.parametrize(
    ("raw", "status", "text"),
    [
        (wire(infer_message())[:-1], 13, "the call has ended with only a part of its message"),
        (b"\0\0", 13, "the call has ended with only a part of its message"),
        (struct.pack(">BI", 0, 2001), 8, "Received message larger than max (2001 vs. 2000)"),
        (struct.pack(">BI", 1, 1), 13, "the message is marked as compressed, but grpc-encoding names no compression"),
        (framed(b"\x0a\xff"), 13, "Unable to parse request"),
    ],
)
def test_broken_streams(raw: bytes, status: int, text: str) -> None:
    """What is no message ends the stream with the reason; what came before has been answered."""
    served = opened(max_message_size=2000)
    say(served, infer_message("a"))
    served.feed(data(1, raw))
    assert [each for each, _, _ in told(served)] == ["a"]
    assert served.status(1) == (status, text)
    assert not served.connection.streams
    served.close()


def test_too_many_requests_wait_in_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """With so many on their way no more are taken, and the window is kept; answers make room."""
    monkeypatch.setattr(grpc_model_stream, "_MAX_REQUESTS", 10)
    served = opened("hold")
    served.feed(h2.window_update(0, 1 << 30), h2.window_update(1, 1 << 30))
    raw = wire(infer_message("x", range(50_000)))
    frames = 9 << 20
    for _ in range(frames // len(raw) + 1):
        served.feed(data(1, raw, end=False))
    stream = served.connection.streams[1]
    assert stream.full
    assert len(served.scheduler.held) == 10
    assert not [1 for kind, _, number, _ in served.frames() if kind == h2.WINDOW_UPDATE and number == 1]
    while served.scheduler.held:
        served.scheduler.release()
        served.turn()
    assert not stream.full
    assert [1 for kind, _, number, _ in served.frames() if kind == h2.WINDOW_UPDATE and number == 1]
    served.close()


def test_a_window_that_never_opens_holds_up_its_own_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that nobody reads are held up to a limit: first no more requests are taken, then the stream ends."""
    monkeypatch.setattr(grpc_stream, "_AHEAD", 100)
    monkeypatch.setattr(grpc_stream, "_FULL", 10_000)
    monkeypatch.setattr(grpc_stream, "_TOO_MUCH", 200_000)
    greeting = h2.PREFACE + h2.settings({h2.SETTINGS_INITIAL_WINDOW_SIZE: 0})
    served = opened(greeting=greeting)
    say(served, *[decoupled(10, str(n)) for n in range(200)])
    stream = served.connection.streams[1]
    assert stream.full
    assert stream.flow.full
    assert len(stream._held) * 40 < 20_000
    served.feed(h2.window_update(0, 1 << 24), h2.window_update(1, 1 << 24))
    while stream.full or stream._held:
        served.turn()
    served.turn()
    assert len(told(served)) == 2000
    assert not stream.flow.full
    served.feed(headers(3, block(STREAM)), data(3, wire(decoupled(5000)), end=False))
    assert served.resets() == {3: E.CANCEL}
    assert (served.connection.sender.pending, served.connection.draining) == (0, {})
    served.close()


def test_the_pool_of_responses_is_bounded() -> None:
    """--grpc-max-response-pool-size: with so many waiting, no further request is begun and makers are told to wait."""
    greeting = h2.PREFACE + h2.settings({h2.SETTINGS_INITIAL_WINDOW_SIZE: 0})
    served = opened("hold", greeting=greeting, max_response_pool=3)
    say(served, decoupled(1))
    request = served.registry.versions["decoupled"].scheduler.held[0]
    waited: list[bool] = []
    big = b"\0" * 300_000
    for number in range(5):
        request.sink.reply(request, InferResponse([Tensor("OUT", UINT8, (len(big),), big)]), False)
        assert request.flow.full is (number >= 3)
    request.flow.wait(lambda: waited.append(True))
    served.feed(h2.window_update(0, 1 << 24), h2.window_update(1, 1 << 24))
    for _ in range(8):
        served.turn()
    assert waited == [True]
    assert len(answers(served)) == 5
    served.close()


def test_what_waits_for_a_slow_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers and refusals behind a request that is not answered yet count: no more of the client is taken."""
    monkeypatch.setattr(grpc_model_stream, "_MAX_BYTES", 1 << 20)
    for name in ("identity", "nope"):
        served = opened("hold")
        say(served, infer_message("slow"))
        (slow,) = served.scheduler.held
        each = infer_message("x", range(20_000) if name == "identity" else [1.0])
        each.model_name = name
        sent = 0
        while not served.connection.streams[1].full and sent < 3000:
            say(served, each)
            sent += 1
            for request in served.scheduler.held[1:]:
                served.scheduler.answer(request)
            del served.scheduler.held[1:]
        assert served.connection.streams[1].full
        served.scheduler.answer(slow)
        served.feed(h2.window_update(0, 1 << 24), h2.window_update(1, 1 << 24))
        for _ in range(10):
            served.turn()
        assert len(told(served)) == 1 + sent
        assert not served.connection.streams[1].full
        assert served.connection.streams[1]._talk._bytes == 0
        served.close()


def test_an_answer_of_many_that_cannot_be_sent_ends_its_request() -> None:
    """The model is told that nobody waits for the rest."""
    served = opened("hold")
    say(served, decoupled(1, "a"))
    (request,) = served.registry.versions["decoupled"].scheduler.held
    request.sink.reply(request, InferResponse((), {"n": 2**64}), final=False)
    assert request.cancelled
    request.sink.reply(request, InferResponse(()), final=False)
    served.turn()
    ((name, text, final),) = told(served)
    assert (name, text[:28], final) == ("a", "the response's parameter 'n'", True)
    served.close()


def test_errors_may_say_what_utf8_cannot() -> None:
    """An error's text with a part of a file's name that is no UTF-8 is told all the same."""
    served = opened("hold")
    say(served, infer_message("a"))
    (request,) = served.scheduler.held
    request.sink.fail(request, InferError(Code.INTERNAL, "no file a\udcff"))
    served.turn()
    assert told(served) == [("a", "no file a?", True)]
    served.close()


def test_compressed_streams() -> None:
    """Messages of a stream are decompressed and, where asked for, compressed one by one."""
    served = opened(
        "inline", (b"grpc-encoding", b"deflate"), (b"grpc-accept-encoding", b"deflate"), compression_level="medium"
    )
    raw = zlib.compress(infer_message("a", [0.0] * 900).SerializeToString())
    for _ in range(2):
        served.feed(data(1, struct.pack(">BI", 1, len(raw)) + raw, end=False))
    served.feed(data(1))
    assert served.status(1) == (0, "")
    assert served.fields[1]["grpc-encoding"] == "deflate"
    body, at = served.messages[1], 0
    for _ in range(2):
        flag, size = struct.unpack_from(">BI", body, at)
        assert flag == 1
        message = pb.ModelStreamInferResponse.FromString(zlib.decompress(body[at + 5 : at + 5 + size]))
        assert message.infer_response.id == "a"
        at += 5 + size
    assert at == len(body)
    served.close()


def test_an_idle_stream_stays() -> None:
    """A stream may be silent for ever, in the middle of a message it may not."""
    served = opened()
    say(served, infer_message("a"))
    for now in range(0, 5000, 100):
        served.connection.check(served.loop.time() + now)
    assert 1 in served.connection.streams
    served.feed(data(1, b"\0\0\0", end=False))
    for now in (5000, 5100):
        served.connection.check(served.loop.time() + now)
    assert served.resets() == {1: E.CANCEL}
    served.close()


def test_draining_ends_streams() -> None:
    """When the server stops, an idle stream ends at once and a busy one with its last answer."""
    served = opened("hold")
    served.feed(headers(3, block(STREAM)))
    say(served, infer_message("a"))
    served.grpc.stop_accepting()
    served.turn()
    text = "GRPC server is shutting down and has stopped accepting new requests."
    assert served.status(3) == (14, text)
    assert "grpc-status" not in served.fields.get(1, {})
    served.scheduler.release()
    served.turn()
    assert [each for each, _, _ in told(served)] == ["a"]
    assert served.status(1) == (14, text)
    served.close()


def test_draining_lets_a_stream_that_has_said_all_end_well() -> None:
    """Who had ended before the server stops gets all answers and OK; who says more then hears that it was refused."""
    for says_more in (False, True):
        served = opened("hold")
        say(served, infer_message("a"), end=not says_more)
        served.grpc.stop_accepting()
        if says_more:
            say(served, infer_message("b"), end=True)
        served.scheduler.release()
        served.turn()
        assert [each for each, _, _ in told(served)] == ["a"]
        assert served.status(1)[0] == (14 if says_more else 0)
        served.close()


def test_a_decoupled_model_needs_a_stream() -> None:
    """ModelInfer refuses decoupled models, also after a stream on the same connection has used one."""
    served = opened()
    say(served, decoupled(1))
    served.feed(infer(3, decoupled(1)))
    assert served.status(3) == (12, "ModelInfer RPC doesn't support models with decoupled transaction policy")
    served.close()
