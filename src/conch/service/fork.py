"""Requests for a routed name on their way to one of its arms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Any

from conch.observe.traffic import ArmCounts
from conch.schedule.api import Version
from conch.service.routed import Pin, Routed
from conch.service.shadow import LiveShadow, Pair
from conch.service.succession import reordered
from conch.types.error import InferError, unavailable
from conch.types.request import InferRequest, RequestForm, RequestHead, ResponseSink
from conch.types.response import InferResponse
from conch.types.tensor import Buffer

#: Makes the form of a head for a version.
Prepare = Callable[[Version, RequestHead], RequestForm]


def routed_form(routed: Routed, head: RequestHead, generation: int, prepare: Prepare) -> RequestForm:
    """The form of a head that names no version: each of its requests goes to the arm that is chosen for it.

    It has the default arm's checks and order of inputs. `generation` was read before `routed` was looked up.
    """
    routed.settle(generation)
    default = routed.default()
    form = prepare(default, _arm_head(head, default, head.id))
    form.head = head
    form.submit = Fork(routed, form, prepare)
    return form


def _arm_head(head: RequestHead, version: Version, id: str) -> RequestHead:
    """What the client would have asked of the version itself."""
    return RequestHead(
        version.spec.name, str(version.spec.version), id, head.inputs, head.outputs, head.parameters, head.steers
    )


class _Way:
    """From one routed form to one version."""

    __slots__ = ("counts", "form", "pin", "straight", "submit")

    def __init__(self, form: RequestForm, label: str, counts: ArmCounts, order: Sequence[int]) -> None:
        self.form = form
        self.submit = form.submit
        self.counts = counts
        #: Whether the version's inputs stand in the order of the routed form's.
        self.straight = form.order == order
        self.pin: Pin = (label, form.head.model_name, form.version)


class Fork:
    """The `submit` of one routed form, and at first of those that are copied from it."""

    __slots__ = ("_arm", "_by_id", "_epoch", "_form", "_key", "_prepare", "_routed", "_shadow_forms", "_ways")

    def __init__(self, routed: Routed, form: RequestForm, prepare: Prepare) -> None:
        self._routed = routed
        self._form = form
        self._prepare = prepare
        self._ways: dict[int | Pin, _Way] = {}
        self._shadow_forms: dict[LiveShadow, RequestForm] = {}
        self._key, self._by_id = _key_of(routed, form)
        #: The arm of `_key`, which is right while the choice's epoch is `_epoch`.
        self._arm = self._epoch = -1

    def __call__(self, request: InferRequest, /) -> None:
        """Submit to an arm. Raises InferError, and the request is as it was."""
        if request.form is not self._form:
            self._part(request.form)(request)
            return
        routed = self._routed
        if request.received_ns >= routed.look_at:
            routed.look(request.received_ns)
        form, data, sink = request.form, request.data, request.sink
        sequence = form.correlation_id
        way = self._follow(sequence, form.flags, request.id) if sequence else self._choose(request.id)
        pairs = self._begin_pairs(form) if routed.shadows else ()
        request.form = way.form
        if not way.straight:
            request.data = reordered(data, form.order, way.form.order)
        request.sink = _ArmSink(sink, way.counts, pairs)
        if request.trace is not None:
            _note(request.trace, way.form)
        try:
            way.submit(request)
        except BaseException as error:
            request.form, request.data, request.sink = form, data, sink
            if isinstance(error, InferError):
                way.counts.failed(error)
            for pair in pairs:
                pair.skip()
            raise
        if sequence:
            with routed.lock:
                routed.pins.note(sequence, form.flags, way.pin)
        for pair in pairs:
            self._send(pair, request.id, data)

    def _part(self, form: RequestForm) -> Fork:
        """A codec has made `form` of this one's, for another sequence: it needs ways of its own."""
        fork = form.submit = Fork(self._routed, form, self._prepare)
        return fork

    def _choose(self, id: str) -> _Way:
        routed = self._routed
        choice = routed.choice
        if self._key is not None:
            if self._epoch != choice.epoch:
                self._epoch, self._arm = choice.epoch, choice.of(self._key)
            arm = self._arm
        elif self._by_id and id:
            arm = choice.of(id)
        else:
            arm = routed.next()
        way = self._ways.get(arm)
        return way if way is not None else self._open(arm, id)

    def _open(self, number: int, id: str) -> _Way:
        arm = self._routed.arms[number] if number >= 0 else None
        if arm is None or arm.version is None:
            raise self._routed.gone()
        way = self._ways[number] = self._way(arm.version, arm.label, arm.counts, id)
        return way

    def _way(self, version: Version, label: str, counts: ArmCounts, id: str) -> _Way:
        form = self._form
        try:
            prepared = self._prepare(version, _arm_head(form.head, version, id))
        except InferError as error:
            # The arm cannot answer, as if it had been asked.
            counts.failed(error)
            raise
        return _Way(prepared, label, counts, form.order)

    def _follow(self, sequence: int | str, flags: int, id: str) -> _Way:
        """The way to where the sequence is; one that begins may go anywhere."""
        routed = self._routed
        with routed.lock:
            pin = routed.pins.find(sequence, flags)
        if pin is None:
            return self._choose(id)
        way = self._ways.get(pin)
        if way is not None:
            return way
        label, model, number = pin
        version = routed.find_pinned(model, number)
        if version is not None:
            way = self._ways[pin] = self._way(version, label, routed.counts.arm(label), id)
            return way
        # The version is gone. What follows it in the same arm may know the sequence.
        for place, arm in enumerate(routed.arms):
            if arm.label == label and arm.version is not None:
                return self._ways.get(place) or self._open(place, id)
        return self._choose(id)

    def _begin_pairs(self, form: RequestForm) -> Sequence[Pair]:
        if form.decoupled:
            return ()
        return [pair for shadow in self._routed.shadows if (pair := shadow.begin(form)) is not None]

    def _send(self, pair: Pair, id: str, data: tuple[Buffer, ...]) -> None:
        """Nothing that goes wrong here is the client's."""
        live = pair.live
        form = self._shadow_forms.get(live)
        if form is None:
            version = live.version
            try:
                if version is None:
                    raise unavailable(live.reason)
                form = self._shadow_forms[live] = self._prepare(version, _arm_head(self._form.head, version, id))
            except InferError as error:
                pair.spoil(error)
                return
        pair.send(form, id, reordered(data, self._form.order, form.order))


class _ArmSink:
    """Counts what an arm answers, and shows it to who compares."""

    __slots__ = ("_counts", "_pairs", "_sink")

    def __init__(self, sink: ResponseSink, counts: ArmCounts, pairs: Sequence[Pair]) -> None:
        self._sink = sink
        self._counts = counts
        self._pairs = pairs

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        if final:
            self._counts.succeeded(monotonic_ns() - request.received_ns)
        self._sink.reply(request, response, final)
        if final:
            for pair in self._pairs:
                pair.primary(response)

    def fail(self, request: InferRequest, error: InferError) -> None:
        self._counts.failed(error)
        self._sink.fail(request, error)
        for pair in self._pairs:
            pair.primary(error)


def _key_of(routed: Routed, form: RequestForm) -> tuple[str | None, bool]:
    """What requests of this form stick by, where the form says it, and whether it is their ids that do."""
    sticky = routed.route.sticky
    if sticky is None:
        return None, False
    if sticky.kind == "request_id":
        return None, True
    if sticky.kind == "sequence":
        return (str(form.correlation_id) if form.correlation_id else None), False
    values = [value for name, value in form.head.parameters.items() if name.lower() == sticky.name]
    return (str(values[0]) if values else None), False


def _note(trace: Any, form: RequestForm) -> None:
    """The trace is of the version that answers."""
    trace.model, trace.version = form.head.model_name, form.version
    form.model.stats.traced = True
