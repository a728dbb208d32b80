"""Any history of a decoupled model: each request gets its responses in order, and exactly one final answer."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.backend.python import pb_utils
from conch.backend.python.calls import Calls
from conch.backend.python.channel import Area
from conch.backend.python.outbox import Outbox
from conch.backend.python.process import WorkerProcess
from conch.backend.python.reply import Replies
from conch.backend.python.responders import Responders
from conch.backend.python.stream import Stream
from conch.observe.stats import ModelStats
from conch.types.error import InferError, internal
from conch.types.flow import Flow
from conch.types.request import InferRequest
from conch.types.response import FINAL, FailedResponse
from support.python_models import make_spec
from support.requests import Recorder, make_request

SPEC = make_spec(decoupled=True)
WANTED = frozenset({"Y", "W"})


class Link:
    """A worker's outbox and a server's responders with a real socket between them, and everything that was sent."""

    def __init__(self) -> None:
        self.server, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.server.setblocking(False)
        self.worker = worker
        self.calls = Calls(worker)
        self.calls.stream()
        self.stats = ModelStats()
        self.area = Area.make(4096, 4096)
        self.replies = Replies(SPEC, [self.area])
        self.responders = Responders("m", self.stats, self._tell)
        self.requests: list[InferRequest] = []
        self.streams: list[Stream | None] = []
        self.sent: list[list[Any]] = []
        #: Ended by the server: what was under way then may be lost.
        self.cut: set[int] = set()

    def _tell(self, packet: bytes) -> bool:
        self.server.send(packet)
        return True

    @property
    def outbox(self) -> Outbox:
        assert self.calls.outbox is not None
        return self.calls.outbox

    def begin(self, sequence: int, count: int) -> None:
        batch = [make_request() for _ in range(count)]
        for request in batch:
            request.flow = Flow()
        self.responders.begin(batch, sequence, 0)
        self.requests += batch
        self.streams += [Stream(self.calls, self.outbox, sequence, index, WANTED) for index in range(count)]
        self.sent += [[] for _ in batch]

    def send(self, number: int, kind: str, size: int) -> None:
        stream = self.streams[number]
        if stream is None or stream.closed:
            return
        sent = self.sent[number]
        if kind in {"one", "last"}:
            sent.append(len(sent))
            value = pb_utils.Tensor("Y", np.full(size, sent[-1], np.float32))
            text = pb_utils.Tensor("W", np.array(["x" * size], dtype=object))
            stream.send(pb_utils.InferenceResponse([value, text]), kind == "last")
        elif kind == "final":
            sent.append(FINAL)
            stream.send(None, True)
        elif kind in {"error", "fault"}:
            sent.append(InferError)
            stream.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("no")), kind == "error")
        else:
            sent.append(InferError)
            self.streams[number] = None

    def read(self, seconds: float = 0.0) -> bool:
        """What a wake-up of the server's loop does. Whether there was anything."""
        if not select.select([self.server], [], [], seconds)[0]:
            return False
        for call in WorkerProcess.read_calls(SimpleNamespace(calls=self.server), 64):  # type: ignore[arg-type]
            self.responders.deliver(self.replies.lines(call.meta, call.data))
        self.responders.acknowledge()
        return True

    def seen(self, number: int) -> list[Any]:
        sink = self.requests[number].sink
        assert isinstance(sink, Recorder)
        found: list[Any] = []
        for _, response, _ in sink.replies:
            if response is FINAL:
                found.append(FINAL)
            elif isinstance(response, FailedResponse):
                found.append(InferError)
            else:
                value, text = response.outputs
                numbers = set(np.frombuffer(value.data, np.float32).astype(int).tolist())
                assert len(numbers) <= 1
                assert len(text.data) == 4 + value.shape[0]
                found.append(numbers.pop() if numbers else len(found))
        return found + [InferError for _ in sink.errors]


@contextmanager
def link() -> Iterator[Link]:
    made = Link()
    try:
        yield made
    finally:
        made.server.close()
        made.worker.close()
        made.area.close()


STEPS = st.one_of(
    st.tuples(st.just("begin"), st.integers(1, 4)),
    st.tuples(st.just("read"), st.none()),
    st.tuples(st.just("fail"), st.integers(0, 9)),
    st.tuples(st.just("slow"), st.integers(0, 9)),
    st.tuples(st.just("quick"), st.integers(0, 9)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(
        st.sampled_from(["one", "one", "one", "last", "final", "error", "fault", "drop"]),
        st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 1, 100, 500, 12_000])),
    ),
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEPS, max_size=60))
def test_every_request_gets_its_responses_and_one_end(steps: list[tuple[str, Any]]) -> None:
    """Whatever is sent, dropped, failed by the server, cancelled, or held up by a slow reader, in whatever order."""
    with link() as pair:
        batches = 0
        members: list[range] = []
        for kind, detail in steps:
            if kind == "begin":
                members.append(range(len(pair.requests), len(pair.requests) + detail))
                pair.begin(batches, detail)
                batches += 1
            elif not batches:
                continue
            elif kind == "read":
                pair.read()
            elif kind == "fail":
                pair.responders.fail(internal("boom"), detail % batches)
                pair.cut |= set(members[detail % batches])
            elif kind in {"slow", "quick", "cancel"}:
                request = pair.requests[detail % len(pair.requests)]
                assert request.flow is not None
                if kind == "slow":
                    request.flow.full = True
                elif kind == "quick":
                    request.flow.release()
                else:
                    request.cancelled = True
            else:
                pair.send(detail[0] % len(pair.requests), kind, detail[1])
        for number in range(len(pair.requests)):
            pair.send(number, "drop", 0)
        pair.outbox.flush()
        while len(pair.responders) and pair.read(5.0):
            pass
        assert len(pair.responders) == 0
        for number, request in enumerate(pair.requests):
            sink = request.sink
            assert isinstance(sink, Recorder)
            assert len(sink.finals()) == 1
            seen, sent = pair.seen(number), pair.sent[number]
            if number in pair.cut and seen != sent:
                assert seen[-1] is InferError
                assert seen[:-1] == sent[: len(seen) - 1]
            else:
                assert seen == sent
        assert pair.stats.success.count + pair.stats.fail.count == len(pair.requests)
        assert not pair.responders._taken
