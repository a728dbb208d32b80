"""Requests for routed names, without sockets: the real data plane over models that give their inputs back."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conch.config.traffic import PARAMETER, read_route
from conch.observe import traffic as page
from conch.pb.model_config_pb2 import ModelConfig
from conch.service.data import Data
from conch.service.fork import routed_form
from conch.service.shadow import own
from conch.service.traffic import Traffic
from conch.types.dtype import BYTES, FP32, INT32
from conch.types.error import Code, InferError, internal, not_found, unavailable
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest, InputHead, RequestHead
from conch.types.tensor import join_bytes
from support.plane import EchoScheduler, EchoVersion
from support.requests import Recorder

ONE = (TensorSpec("X", FP32, (-1,)),)


class Picky(EchoScheduler):
    """Refuses what `refusal` says, and knows who came."""

    def __init__(self, spec: ModelSpec, mode: str = "inline") -> None:
        super().__init__(spec, mode)
        self.refusal: InferError | None = None
        self.came: list[InferRequest] = []

    def submit(self, request: InferRequest, /) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.came.append(request)
        super().submit(request)


class Changeable(EchoVersion):
    config_text = ""
    answers = True

    @property
    def config(self) -> ModelConfig:
        config = super().config
        config.model_transaction_policy.decoupled = self.spec.decoupled
        if self.config_text:
            config.parameters[PARAMETER].string_value = self.config_text
        return config

    def ready(self) -> bool:
        return self.answers


class Models:
    """A registry whose versions come and go."""

    def __init__(self) -> None:
        self.generation = 1
        self.versions: dict[tuple[str, int], Changeable] = {}

    def add(self, name: str, version: int, mode: str = "inline", route: str = "", **spec: Any) -> Changeable:
        made = ModelSpec(name, version, 8, spec.pop("inputs", ONE), spec.pop("outputs", ONE), **spec)
        served = self.versions[name, version] = Changeable(made, Picky(made, mode))
        served.config_text = route
        self.generation += 1
        return served

    def remove(self, name: str, version: int) -> None:
        del self.versions[name, version]
        self.generation += 1

    def renew(self) -> None:
        self.generation += 1

    def find(self, name: str, version: str) -> Changeable:
        numbers = [number for known, number in self.versions if known == name]
        if not numbers or (version and int(version) not in numbers):
            raise not_found(f"Request for unknown model: '{name}' is not found")
        return self.versions[name, int(version) if version else max(numbers)]

    def ready_versions(self, name: str = "") -> list[Changeable]:
        return [each for (known, _), each in self.versions.items() if name in ("", known)]

    def ready(self) -> bool:
        return True


class Noting:
    """Traces every request."""

    armed = True

    def __init__(self) -> None:
        self.traces: list[SimpleNamespace] = []

    def begin(self, request: InferRequest) -> None:
        request.trace = SimpleNamespace(model=request.form.head.model_name, version=request.form.version)
        self.traces.append(request.trace)


class Desk:
    """A data plane with routes over two versions of `m`, unless told otherwise."""

    def __init__(
        self, route: str = "", files: dict[str, str] | None = None, forwarded: Sequence[str] = ("x-",)
    ) -> None:
        self.models = Models()
        for version in (1, 2):
            self.models.add("m", version, route=route)
        routes = {name: read_route(text, name, "here") for name, text in (files or {}).items()}
        self.traffic = Traffic(self.models, routes, forwarded)
        self.data = Data(self.models, "desk", lambda: False, traffic=self.traffic)
        self.sink = Recorder()
        self.now = 1

    def put(self, text: str, name: str = "m") -> dict[str, Any]:
        return self.traffic.put(name, text.encode())

    def scheduler(self, version: int, name: str = "m") -> Picky:
        scheduler = self.models.versions[name, version].scheduler
        assert isinstance(scheduler, Picky)
        return scheduler

    def ask(self, model: str = "m", version: str = "", id: str = "", **parameters: Any) -> InferRequest:
        head = RequestHead(model, version, id, [InputHead("X", "FP32", (1, 2))], (), parameters)
        form = self.data.prepare(head)
        request = InferRequest(form, id, (struct.pack("<2f", 1, 2),), self.sink, self.now)
        self.data.infer(request)
        return request

    def versions(self, count: int, **asked: Any) -> list[int]:
        """The versions that answer so many requests."""
        return [self.ask(**asked).form.version for _ in range(count)]


SPLIT = '{"arms": [{"version": 1, "weight": 3}, {"version": 2, "weight": 1}]}'


def test_requests_are_shared_by_weight() -> None:
    """Three of four to the one, one of four to the other, in this order again and again."""
    desk = Desk(SPLIT)
    assert desk.versions(8) == [1, 1, 1, 2] * 2
    assert len(desk.sink.finals()) == 8


def test_requests_that_name_a_version_get_it() -> None:
    """A route is for those who do not care."""
    desk = Desk(SPLIT)
    assert set(desk.versions(5, version="2")) == {2}
    assert desk.ask(version="1").form.head.model_version == "1"


def test_a_name_without_a_route_has_the_form_of_its_model() -> None:
    """Nothing stands between its requests and its scheduler."""
    desk = Desk()
    request = desk.ask()
    assert (request.form.version, request.form.submit) == (2, desk.scheduler(2).submit)
    assert request.sink is desk.sink


def test_the_arm_that_answers_is_the_one_that_is_named() -> None:
    """The request's form, by which answers are written, is the arm's own."""
    desk = Desk()
    desk.models.add("other", 7)
    desk.put('{"arms": {"model": "other"}}')
    form = desk.ask().form
    assert (form.head.model_name, form.version) == ("other", 7)


def test_requests_stick_by_header() -> None:
    """The same user, the same arm, whatever the spelling of the header; others are elsewhere."""
    desk = Desk('{"arms": [{"version": 1}, {"version": 2}], "sticky": "header:X-User"}')
    seen = {}
    for user in map(str, range(20)):
        found = {*desk.versions(3, **{"x-user": user}), *desk.versions(3, **{"X-USER": user})}
        assert len(found) == 1
        seen[user] = found.pop()
    assert set(seen.values()) == {1, 2}
    assert Counter(desk.versions(10)) == {1: 5, 2: 5}, "who has no such header takes turns"


def test_requests_stick_by_their_ids() -> None:
    """A client that asks again with the same id is answered by the same arm."""
    desk = Desk('{"arms": [{"version": 1}, {"version": 2}], "sticky": "request_id"}')
    first = {key: desk.ask(id=key).form.version for key in map(str, range(20))}
    assert set(first.values()) == {1, 2}
    assert {key: desk.ask(id=key).form.version for key in first} == first


def test_sequences_stay_until_they_end() -> None:
    """Also when the route changes meanwhile; who begins after the change goes where the new one says."""
    desk = Desk(SPLIT)
    begun = {key: desk.ask(sequence_id=key, sequence_start=True).form.version for key in range(1, 9)}
    assert Counter(begun.values()) == {1: 6, 2: 2}
    desk.put('{"arms": {"version": 2}}')
    for _ in range(2):
        assert {key: desk.ask(sequence_id=key).form.version for key in begun} == begun
    assert {key: desk.ask(sequence_id=key, sequence_end=True).form.version for key in begun} == begun
    assert {desk.ask(sequence_id=key, sequence_start=True).form.version for key in begun} == {2}
    assert desk.traffic.route("m")["sequences"] == 8


def test_a_sequence_whose_version_has_gone_follows_its_arm() -> None:
    """What came after it in the same arm may know it; where nothing did, any arm may."""
    desk = Desk()
    desk.models.add("b", 1)
    desk.put('{"arms": [{}, {"model": "b"}]}')
    latest = [key for key in range(1, 9) if desk.ask(sequence_id=key, sequence_start=True).form.version == 2]
    desk.models.add("m", 3)
    assert {desk.ask(sequence_id=key).form.version for key in latest} == {2}
    desk.models.remove("m", 2)
    assert {desk.ask(sequence_id=key).form.version for key in latest} == {3}
    desk.models.remove("m", 3)
    desk.models.remove("m", 1)
    assert {desk.ask(sequence_id=key).form.head.model_name for key in latest} == {"b"}


def test_an_end_that_is_refused_can_be_sent_again() -> None:
    """The sequence has not ended, so it is where it was."""
    desk = Desk('{"arms": [{"version": 1}, {"version": 2}]}')
    version = desk.ask(sequence_id=5, sequence_start=True).form.version
    desk.scheduler(version).refusal = unavailable("full")
    with pytest.raises(InferError):
        desk.ask(sequence_id=5, sequence_end=True)
    desk.scheduler(version).refusal = None
    assert desk.ask(sequence_id=5, sequence_end=True).form.version == version


def test_forms_that_codecs_copy_are_routed_by_their_own_head() -> None:
    """The gRPC codec makes the form of a sequence from that of another one."""
    desk = Desk('{"arms": [{"version": 1}, {"version": 2}]}')
    first = desk.ask(sequence_id=1, sequence_start=True)
    form = desk.data.prepare(RequestHead("m", "", "", first.form.head.inputs, (), {"sequence_id": 1}))
    other = replace(form, correlation_id=2, head=replace(form.head, parameters={"sequence_id": 2}), memo={})
    for _ in range(2):
        request = InferRequest(other, "", (bytes(8),), desk.sink, desk.now)
        desk.data.infer(request)
        assert request.form.correlation_id == 2
        assert request.form.version != first.form.version


def test_an_arm_that_goes_gets_nothing() -> None:
    """Its share is the others', until it is back."""
    desk = Desk(SPLIT)
    desk.versions(3)
    desk.put(json.dumps(desk.traffic.route("m")["route"]))
    desk.models.remove("m", 1)
    assert desk.versions(4) == [2] * 4
    assert desk.traffic.route("m")["arms"][0]["reason"] == "Request for unknown model: 'm' is not found"
    desk.models.add("m", 1)
    assert Counter(desk.versions(8)) == {1: 6, 2: 2}


def test_an_arm_whose_runtime_is_down_gets_nothing() -> None:
    """It is looked at ten times a second; while none can answer, all have their shares as if all could."""
    desk = Desk(SPLIT)
    assert Counter(desk.versions(4)) == {1: 3, 2: 1}
    first = desk.models.versions["m", 1]
    first.answers = False
    desk.now += 100_000_000
    assert desk.versions(4) == [2] * 4
    desk.models.versions["m", 2].answers = False
    desk.now += 100_000_000
    assert Counter(desk.versions(8)) == {1: 6, 2: 2}
    assert not desk.data.model_ready("m", "")
    first.answers = True
    assert desk.data.model_ready("m", "")
    desk.now += 100_000_000
    assert desk.versions(4) == [1] * 4


def test_without_any_arm_the_error_names_all() -> None:
    """With what is wrong of each."""
    desk = Desk()
    desk.put('{"arms": [{"version": 1}, {"version": 2, "weight": 0}]}')
    desk.models.remove("m", 1)
    with pytest.raises(InferError) as caught:
        desk.ask()
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.message == (
        "no arm of the traffic route of 'm' is ready: m:1 (Request for unknown model: 'm' is not found); "
        "m:2 (it has weight 0)"
    )
    with pytest.raises(InferError, match="no arm of the traffic route"):
        desk.data.model_ready("m", "")


def test_inputs_reach_each_arm_in_its_own_order() -> None:
    """Two versions may list their inputs differently."""
    desk = Desk()
    pair = (TensorSpec("A", INT32, (1,)), TensorSpec("B", BYTES, (1,)))
    for version, inputs in ((1, pair), (2, pair[::-1])):
        desk.models.add("two", version, inputs=inputs, outputs=inputs)
    desk.put('{"arms": [{"version": 1}, {"version": 2}], "shadow": {"version": 1}}', "two")
    data = {"A": b"\x07\0\0\0", "B": join_bytes([b"seven"])}
    for order in ("AB", "BA"):
        heads = [InputHead(name, {"A": "INT32", "B": "BYTES"}[name], (1, 1)) for name in order]
        form = desk.data.prepare(RequestHead("two", "", "", heads))
        given = [data[name] for name in order]
        for _ in range(4):
            request = InferRequest(form, "", tuple([given[place] for place in form.order]), desk.sink, 1)
            desk.data.infer(request)
            _, response, _ = desk.sink.replies[-1]
            assert {tensor.name: tensor.data for tensor in response.outputs} == data
    desk.traffic.close()
    assert desk.traffic.route("two")["shadow"][0]["requests"]["matched"] == 8


def test_a_refused_request_is_as_it_was() -> None:
    """Whoever sent it may send it again: its form, bytes and sink are his."""
    desk = Desk('{"arms": {"version": 1}, "shadow": {"version": 2}}')
    desk.scheduler(1).refusal = unavailable("full")
    form = desk.data.prepare(RequestHead("m", "", "", [InputHead("X", "FP32", (1, 2))]))
    request = InferRequest(form, "", (bytes(8),), desk.sink, 1)
    with pytest.raises(InferError, match="full"):
        desk.data.infer(request)
    assert (request.form, request.sink, len(request.data)) == (form, desk.sink, 1)
    desk.scheduler(1).refusal = None
    desk.data.infer(request)
    assert request.form.version == 1
    counts = desk.traffic.counts()["m"]
    assert counts.arms["m:1"].results == {"success": 1, "failure": 1, "cancelled": 0}


def test_what_arms_cannot_take_is_refused_when_it_comes() -> None:
    """Sizes of dims may differ between versions: the request hears what is wrong with it, and of which version."""
    desk = Desk('{"arms": [{"version": 2}, {"version": 3}]}')
    desk.models.add("m", 3, inputs=(TensorSpec("X", FP32, (5,)),), route='{"arms": [{"version": 2}, {"version": 3}]}')
    outcomes = []
    for key in ("a", "b"):
        try:
            outcomes.append(desk.ask(id=key).form.version)
        except InferError as error:
            outcomes.append(error.message.partition(". ")[0])
    assert sorted(map(str, outcomes)) == ["2", "[request id: b] unexpected shape for input 'X' for model 'm'"]


# ---- who says it


def test_requests_win_over_the_file_and_the_file_over_the_config() -> None:
    """And what is below holds again when what is above is taken back."""
    desk = Desk('{"arms": {"version": 1}}')
    assert (desk.ask().form.version, desk.traffic.route("m")["source"]) == (1, "config")
    desk.put('{"arms": {"version": 2}}')
    assert (desk.ask().form.version, desk.traffic.route("m")["source"]) == (2, "request")
    desk.models.add("m", 3, route='{"arms": {"version": 1}}')
    assert desk.ask().form.version == 2, "a reload of the model changes nothing"
    desk.traffic.delete("m")
    assert desk.ask().form.version == 1
    with pytest.raises(InferError, match="by request; its route is said in the model's config"):
        desk.traffic.delete("m")
    filed = Desk('{"arms": {"version": 1}}', {"m": '{"arms": {"version": 2}}'})
    assert (filed.ask().form.version, filed.traffic.route("m")["source"]) == (2, "file")


def test_an_alias_is_a_name_like_any_other() -> None:
    """Questions about it are answered for its default arm; it has no versions of its own."""
    desk = Desk(files={"alias": '{"arms": [{"model": "m", "version": 1}, {"model": "m", "version": 2}]}'})
    assert Counter(desk.versions(4, model="alias")) == {1: 2, 2: 2}
    assert desk.data.model_ready("alias", "")
    assert (desk.data.metadata("alias", "").name, desk.data.metadata("alias", "").versions) == ("m", ["1"])
    assert desk.data.config("alias", "").name == "m"
    assert [each.version for each in desk.data.statistics("alias", "").model_stats] == ["1", "2"]
    with pytest.raises(InferError, match="unknown model: 'alias'"):
        desk.ask("alias", "2")


def test_questions_about_a_routed_model_are_about_its_default_arm() -> None:
    """The first that serves and has a weight; with a version they are about that version."""
    desk = Desk(SPLIT)
    assert desk.data.labels("m", "", "X") == ()
    assert desk.data.metadata("m", "2").versions == ["2"]
    assert desk.data.metadata("m", "").versions == ["1", "2"]
    assert [each.version for each in desk.data.statistics("m", "").model_stats] == ["1", "2"]


def test_a_route_that_nobody_could_follow_is_refused() -> None:
    """And the one before it stays: no arm is there, an arm takes other inputs, a header that is not forwarded."""
    desk = Desk(SPLIT, forwarded=())
    desk.models.add("odd", 1, inputs=(TensorSpec("X", INT32, (-1,)),))
    desk.models.add("stream", 1, decoupled=True)
    for text, said in {
        '{"arms": {"version": 9}}': "no arm of the traffic route of 'm' is ready: m:9 (Request for unknown model",
        '{"arms": [{}, {"model": "odd"}]}': (
            "traffic route of 'm': odd:latest cannot be used: it does not fit m:latest: its input 'X' is INT32, not"
        ),
        '{"arms": [{}, {"model": "stream"}]}': (
            "traffic route of 'm': stream:latest cannot be used: it does not fit m:latest: one of the two is decoupled"
        ),
        '{"shadow": {"model": "stream"}}': (
            "traffic route of 'm': stream:latest cannot be used: it is decoupled: only single answers can be compared"
        ),
        '{"sticky": "header:x-user"}': (
            "traffic route of 'm': sticky is 'header:x-user': the header 'x-user' does not become a parameter of"
        ),
    }.items():
        with pytest.raises(InferError) as caught:
            desk.put(text)
        assert caught.value.message.startswith(said)
    assert desk.traffic.route("m")["source"] == "config"
    assert Counter(desk.versions(4)) == {1: 3, 2: 1}


def test_headers_that_stick_to_nothing_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A route of a config or of the file is followed all the same."""
    desk = Desk('{"sticky": "header:x-user"}', {"alias": '{"arms": {"model": "m"}, "sticky": "header:who"}'}, ["x-us"])
    desk.ask()
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        (
            "traffic route of 'alias': sticky is 'header:who', without effect: the header 'who' does not become a "
            "parameter of requests"
        )
    ]


def test_unknown_names_leave_nothing_behind() -> None:
    """Clients may ask for any number of them."""
    desk = Desk()
    for number in range(50):
        with pytest.raises(InferError):
            desk.ask(f"no-{number}")
    assert len(desk.traffic._known) <= 1
    with pytest.raises(InferError, match="no traffic route for 'm'"):
        desk.traffic.route("m")
    assert desk.traffic.routes() == []


# ---- shadows


def shadowed(more: str = "") -> Desk:
    return Desk(f'{{"arms": {{"version": 1}}, "shadow": {{"version": 2{more}}}}}')


def results(desk: Desk) -> dict[str, int]:
    """What came of all copies, once everything is compared."""
    desk.traffic.close()
    return {name: count for name, count in desk.traffic.counts()["m"].shadows["m:2"].outcomes.items() if count}


def test_a_shadow_gets_copies_and_nobody_its_answers() -> None:
    """The same id and the same bytes, after the request itself; the client has one answer, of its arm."""
    desk = shadowed()
    request = desk.ask(id="7")
    (copy,) = desk.scheduler(2).came
    assert (copy.id, copy.data[0]) == ("7", struct.pack("<2f", 1, 2))
    assert copy.data[0] is request.data[0]
    assert copy.sink is not desk.sink
    assert desk.sink.finals() == [request]
    assert results(desk) == {"matched": 1}


def test_a_shadow_gets_its_fraction() -> None:
    """One of four, exactly; of sequences all requests or none."""
    desk = shadowed(', "fraction": 0.25, "max_in_flight": 1000')
    desk.versions(40)
    assert len(desk.scheduler(2).came) == 10
    for key in range(1, 101):
        for flags in ({"sequence_start": True}, {}, {"sequence_end": True}):
            desk.ask(sequence_id=key, **flags)
    copies = Counter(each.form.correlation_id for each in desk.scheduler(2).came if each.form.correlation_id)
    assert set(copies.values()) == {3}
    assert 10 < len(copies) < 40


def test_a_difference_is_found_and_shown() -> None:
    """Which request, which output, how far; a line of the log for the first, the tenth, the hundredth."""
    desk = shadowed()
    scheduler = desk.scheduler(2)
    scheduler.mode = "hold"
    desk.ask(id="9")
    (copy,) = scheduler.held
    copy.data = (struct.pack("<2f", 1, 2.5),)
    scheduler.release()
    assert results(desk) == {"mismatched": 1}
    told = desk.traffic.route("m")["shadow"][0]
    assert told["largest_difference"] == 0.5
    assert told["example"] == (
        "request '9': output 'X': 1 of 2 elements differ, most of all element 1: 2.5 instead of 2"
    )


def test_a_shadow_that_fails_is_only_counted() -> None:
    """It refuses, it is full, it answers with an error, it does not take the request: the client sees nothing."""
    desk = shadowed()
    scheduler = desk.scheduler(2)
    for error in (unavailable("full"), internal("broken")):
        scheduler.refusal = error
        desk.ask()
    scheduler.refusal, scheduler.error = None, internal("boom")
    desk.ask()
    assert not desk.sink.errors
    assert len(desk.sink.finals()) == 3
    assert results(desk) == {"dropped": 1, "error": 2}
    assert desk.traffic.route("m")["shadow"][0]["example"] == "Internal: boom"


def test_copies_on_their_way_are_bounded() -> None:
    """What would be too many is dropped and counted; nobody waits."""
    desk = shadowed(', "max_in_flight": 3')
    desk.scheduler(2).mode = "hold"
    desk.versions(10)
    assert desk.traffic.counts()["m"].shadows["m:2"].in_flight == 3
    assert len(desk.sink.finals()) == 10
    desk.scheduler(2).release()
    assert results(desk) == {"matched": 3, "dropped": 7}
    assert desk.traffic.counts()["m"].shadows["m:2"].in_flight == 0


def test_without_an_answer_there_is_nothing_to_compare() -> None:
    """A request that fails or is refused is skipped, whatever the shadow says."""
    desk = shadowed()
    desk.scheduler(1).error = internal("boom")
    desk.ask()
    desk.scheduler(1).refusal = unavailable("full")
    with pytest.raises(InferError):
        desk.ask()
    assert results(desk) == {"skipped": 2}


def test_a_shadow_that_is_not_there_is_dropped() -> None:
    """The route is followed without it."""
    desk = shadowed()
    desk.put('{"arms": {"version": 1}, "shadow": {"version": 2}}')
    desk.models.remove("m", 2)
    desk.ask()
    assert results(desk) == {"dropped": 1}


def test_memory_of_others_is_copied() -> None:
    """What a client or a worker may write to while a copy waits; what came over a socket is nobody else's."""
    array = np.zeros(4, np.uint8)
    lent = np.frombuffer(bytes(4), np.uint8)[:2].data
    mine = (b"abc", bytearray(b"abc"), memoryview(b"abc"), array.data)
    assert all(own(each) is each for each in mine)
    copied = own(lent)
    assert isinstance(copied, bytes)
    assert copied == lent


# ---- metrics and traces


def test_traces_are_of_the_version_that_answers() -> None:
    """And that version knows that it is traced; its copies are not."""
    desk = shadowed()
    tracer = Noting()
    data = Data(desk.models, "desk", lambda: False, tracer, traffic=desk.traffic)
    form = data.prepare(RequestHead("m", "", "", [InputHead("X", "FP32", (1, 2))]))
    data.infer(InferRequest(form, "", (bytes(8),), desk.sink, 1))
    assert [(trace.model, trace.version) for trace in tracer.traces] == [("m", 1)]
    assert desk.models.versions["m", 1].stats.traced
    assert desk.scheduler(2).came[0].trace is None


def test_the_page_tells_arms_and_shadows_apart() -> None:
    """Requests by result, a histogram of latencies whose last bucket is all, and what became of copies."""
    desk = Desk('{"arms": [{"version": 1, "weight": 3}, {"version": 2}], "shadow": {"version": 2}}')
    desk.versions(8)
    desk.traffic.close()
    text = page.render(desk.traffic.counts()).decode()
    assert 'conch_traffic_requests_total{arm="m:1",model="m",result="success"} 6\n' in text
    assert 'conch_traffic_requests_total{arm="m:2",model="m",result="failure"} 0\n' in text
    assert 'conch_traffic_latency_us_bucket{arm="m:2",le="+Inf",model="m"} 2\n' in text
    assert 'conch_traffic_latency_us_count{arm="m:1",model="m"} 6\n' in text
    assert 'conch_shadow_requests_total{model="m",result="matched",shadow="m:2"} 8\n' in text
    assert 'conch_shadow_largest_difference{model="m",shadow="m:2"} 0\n' in text
    assert page.render(Desk().traffic.counts()) == b""


def test_decoupled_models_are_routed_and_counted_by_their_end() -> None:
    """However many answers there are, it is one request."""
    desk = Desk()
    spec = ModelSpec("d", 1, 0, (TensorSpec("N", INT32, (1,)),), (TensorSpec("OUT", INT32, (1,)),), decoupled=True)
    for version in (1, 2):
        served = desk.models.add("d", version)
        served.spec = replace(spec, version=version)
    desk.put('{"arms": [{"version": 1}, {"version": 2}]}', "d")
    form = desk.data.prepare(RequestHead("d", "", "", [InputHead("N", "INT32", (1,))]))
    for _ in range(2):
        desk.data.infer(InferRequest(form, "", (struct.pack("<i", 3),), desk.sink, 1))
    assert len(desk.sink.replies) == 8
    counts = desk.traffic.counts()["d"]
    assert {label: arm.results["success"] for label, arm in counts.arms.items()} == {"d:1": 1, "d:2": 1}


def test_an_arm_whose_requests_cannot_be_prepared_fails() -> None:
    """Its share of the requests counts as failed, as if it had been asked."""
    desk = Desk()
    desk.models.add("other", 1)
    desk.put('{"arms": [{"version": 2, "weight": 1}, {"model": "other", "weight": 1}]}')
    prepare = desk.data.prepare_on

    def broken(version: Any, head: RequestHead) -> Any:
        if head.model_name == "other":
            raise internal("cannot be prepared")
        return prepare(version, head)

    desk.data.prepare_on = broken  # type: ignore[method-assign]
    head = RequestHead("m", "", "", [InputHead("X", "FP32", (1, 2))], (), {})
    form = routed_form(desk.traffic.find("m"), head, desk.models.generation, broken)  # type: ignore[arg-type]
    failed = 0
    for _ in range(4):
        try:
            form.submit(InferRequest(form, "", (struct.pack("<2f", 1, 2),), desk.sink, 1))
        except InferError as error:
            failed += error.message == "cannot be prepared"
    assert failed == 2
    assert [arm["requests"]["failure"] for arm in desk.traffic.route("m")["arms"]] == [0, 2]


def test_labels_of_arms_are_forgotten_when_there_are_too_many() -> None:
    """The oldest go; those of the route in force stay."""
    desk = Desk()
    for number in range(page.MOST_LABELS + 20):
        desk.models.add(f"arm{number}", 1)
        desk.put(f'{{"arms": {{"model": "arm{number}"}}}}')
    labels = list(desk.traffic.counts()["m"].arms)
    assert len(labels) == page.MOST_LABELS
    assert labels[-1] == desk.traffic.route("m")["arms"][0]["arm"]


def test_counts_of_unloaded_models_are_forgotten() -> None:
    """A model that its own config routes takes what was counted with it when it goes."""
    desk = Desk(SPLIT)
    desk.ask()
    assert list(desk.traffic.counts()) == ["m"]
    for version in (1, 2):
        desk.models.remove("m", version)
    desk.models.add("other", 1)
    desk.ask("other")
    assert not desk.traffic.counts()
    assert not desk.traffic._pins
    assert not desk.traffic._routed
