"""Tensors that lie on a device: what stands for them, how batches carry them, and who is given bytes instead."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.backend.batch import Batch
from conch.backend.joining import runs, stage
from conch.memory.pinned import pageable
from conch.observe.stats import ModelStats
from conch.schedule.order import Order
from conch.types.device import OnDevice, as_buffer, gpu, on_device, to_host
from conch.types.dtype import FP32
from conch.types.model import ModelSpec, TensorSpec
from conch.types.response import InferResponse
from conch.types.tensor import Buffer, Tensor
from support.devices import HERE, FakeCuda, lying
from support.requests import Recorder, make_form, make_request

X = TensorSpec("x", FP32, (2,))
SPEC = ModelSpec("m", 1, 8, (X,), (TensorSpec("y", FP32, (2,)),))


def numbers(rows: int, first: int = 0) -> np.ndarray[Any, Any]:
    return np.arange(2 * first, 2 * (first + rows), dtype=np.float32).reshape(rows, 2)


def batch(*data: Buffer, **form: Any) -> Batch:
    requests = [make_request(make_form(len(each) // 8, **form), data=(each,)) for each in data]  # type: ignore[arg-type]
    return Batch(SPEC, requests, ModelStats())


def test_bytes_are_copied_to_the_host_once() -> None:
    """When they are first asked for, whoever asks; the length is known without."""
    cuda = FakeCuda()
    value = lying(numbers(2), cuda=cuda)
    assert len(value) == 16
    assert cuda.calls == []
    assert value.host() is value.host()
    assert bytes(value) == numbers(2).tobytes()
    assert cuda.calls == ["read"]


def test_nothing_is_read_of_an_empty_tensor() -> None:
    cuda = FakeCuda()
    assert lying(numbers(0), cuda=cuda).host() == b""
    assert cuda.calls == []


@pytest.mark.slow
def test_a_consumer_keeps_the_memory_until_it_lets_go() -> None:
    """DLPack's tensors refer to what they were made from; a capsule that nobody takes gives it back by itself."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    class Owner:
        array = numbers(4)

    owner = Owner()
    gone = weakref.ref(owner)
    value = OnDevice(HERE, owner.array.ctypes.data, 32, owner, lambda *_: b"")
    value.__dlpack__()
    tensor = torch.from_dlpack(value[8:24]).view(torch.float32).reshape(2, 2)
    assert tensor.tolist() == numbers(2, 1).tolist()
    del owner, value
    gc.collect()
    assert gone() is not None
    del tensor
    gc.collect()
    assert gone() is None


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_each_request_gets_its_own_rows_where_they_are(rows: list[int]) -> None:
    """An output that stays is cut between the requests without a copy."""
    whole = numbers(sum(rows))
    begins = np.cumsum([0, *rows])
    work = batch(*[whole[a:b].tobytes() for a, b in pairwise(begins)])
    cuda = FakeCuda()
    work.settle([(SPEC.outputs[0], whole.shape, as_buffer(lying(whole, cuda=cuda)))])
    sinks = [request.sink for request in work.requests]
    tensors = [sink.replies[0][1].outputs[0] for sink in sinks if isinstance(sink, Recorder)]
    assert cuda.calls == []
    assert [tensor.shape for tensor in tensors] == [(count, 2) for count in rows]
    assert [bytes(tensor.data) for tensor in tensors] == [bytes(request.data[0]) for request in work.requests]


def test_an_output_stays_only_if_nobody_needs_it_on_the_host() -> None:
    """Requests of clients join batches of ensembles' steps."""
    here, there = frozenset({"y", "z"}), frozenset({"y"})
    stays = [Batch(SPEC, [make_request(make_form(stays=each)) for each in forms], ModelStats()).staying()
             for forms in ([here], [here, there], [here, frozenset()], [frozenset(), here])]  # fmt: skip
    assert stays == [here, there, frozenset(), frozenset()]


def test_whoever_takes_bytes_alone_has_them_brought() -> None:
    """`bring` copies what is on a device, empty tensors too, and leaves the rest."""
    data = bytes(16)
    work = batch(as_buffer(lying(numbers(2))), data, as_buffer(lying(numbers(0))))
    work.bring()
    assert [type(request.data[0]) for request in work.requests] == [bytes, bytes, bytes]
    assert work.requests[1].data[0] is data
    assert work.gather(0) == ((4, 2), numbers(2).tobytes() + data)


PLACES = st.lists(st.tuples(st.sampled_from(["host", "here", "elsewhere"]), st.integers(0, 3)), max_size=8)


@given(PLACES)
def test_parts_are_joined_in_order_wherever_they_lie(parts: list[tuple[str, int]]) -> None:
    """Of what lies on another device bytes are brought; nothing that is on the device leaves it."""
    arrays = [numbers(rows, first) for first, (_, rows) in enumerate(parts)]
    cuda, far = FakeCuda(), FakeCuda()
    made: dict[str, Any] = {
        "host": lambda array: array.tobytes(),
        "here": lambda array: lying(array, cuda=cuda),
        "elsewhere": lambda array: lying(array, gpu(1), far),
    }
    found = runs([made[where](array) for (where, _), array in zip(parts, arrays, strict=True)], HERE)
    assert cuda.calls == []
    assert len(far.calls) == sum(where == "elsewhere" and rows > 0 for where, rows in parts)
    assert all(isinstance(one, OnDevice) or isinstance(other, OnDevice) for one, other in pairwise(found))
    joined = b"".join([bytes(e) if isinstance(e, OnDevice) else stage(e, pageable).tobytes() for e in found])
    assert joined == b"".join([array.tobytes() for array in arrays])


def test_answers_that_wait_for_their_turn_are_counted_in_bytes() -> None:
    """`preserve_ordering` bounds what it keeps back, on whatever side of the bus that is."""
    order, sinks = Order(max_bytes=16), [Recorder(), Recorder()]
    requests = [make_request(sink=sink) for sink in sinks]
    order.enter(requests)
    answer = InferResponse([Tensor("y", FP32, (2, 2), as_buffer(lying(numbers(2))))])
    requests[1].sink.reply(requests[1], answer, True)
    assert order.full
    requests[0].sink.reply(requests[0], answer, True)
    assert not order.full
    assert all(sink.replies[0][1] is answer for sink in sinks)


def test_what_is_on_the_host_is_left_alone() -> None:
    data = bytearray(3)
    assert to_host(data) is data
    assert on_device(data) is None
    assert repr(lying(numbers(1))) == "OnDevice((1, 0), 8 bytes)"
