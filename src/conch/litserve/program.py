"""Runs a `LitAPI` as a model of the server: a body and its type in, a body or a stream of pieces out."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from conch.backend.api import Placement
from conch.backend.program import AsyncCopy, Call, Copy
from conch.functions.call import stream
from conch.litserve.api import LitAPI
from conch.litserve.web import Body, piece, reader, refusal, write
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import foreign, internal

_log = logging.getLogger("conch.litserve")

#: The model's tensors, and what is said of a response besides.
REQUEST, KIND, RESPONSE = "request", "content_type", "response"
STATUS: Final = "status"
#: JSON: a list of names and values.
HEADERS: Final = "headers"
_OVERLAP: Final = 1024


def config(api: LitAPI, name: str, workers: int) -> ModelConfig:
    """The model's. Bodies are BYTES, so that the model can also be asked by the server's own protocols."""
    batches = api.max_batch_size > 1
    made = ModelConfig(name=name, max_batch_size=api.max_batch_size if batches else 0)
    made.input.add(name=REQUEST, data_type="TYPE_STRING", dims=[1])
    made.input.add(name=KIND, data_type="TYPE_STRING", dims=[1], optional=True)
    made.output.add(name=RESPONSE, data_type="TYPE_STRING", dims=[1])
    made.instance_group.add(count=workers, kind="KIND_CPU")
    if batches:
        made.dynamic_batching.max_queue_delay_microseconds = round(api.batch_timeout * 1e6)
    if api.stream:
        made.model_transaction_policy.decoupled = True
    return made


class LitProgram:
    """A `Program`. Each copy has an object of its own, so that `setup` of one does not disturb the others."""

    def __init__(self, api: LitAPI, devices: Sequence[str]) -> None:
        self._api = api
        #: Copies are opened side by side.
        self._devices = itertools.cycle(devices)

    def open(self, placement: Placement) -> Copy | AsyncCopy:
        device = next(self._devices)
        api = copy.copy(self._api)
        api.device = device
        api.setup(device)
        return _Async(api) if api.enable_async else _Plain(api)


@dataclass(slots=True)
class _Item:
    """A request that was decoded; its context is what steps share."""

    call: Call
    context: dict[str, Any]
    decoded: Any


class _Plain:
    def __init__(self, api: LitAPI) -> None:
        self._api = api
        self._read = reader(api.decode_request)

    def run(self, calls: Sequence[Call]) -> None:
        items = self._decoded(calls)
        if not items:
            return
        try:
            if self._api.stream:
                self._stream(items)
            else:
                self._answer(items)
        except Exception as error:  # noqa: BLE001  the user's code
            _fail([each.call for each in items], error)

    def _decoded(self, calls: Sequence[Call]) -> list[_Item]:
        """Those that can be read; the others have their answers."""
        found = []
        for call in calls:
            context: dict[str, Any] = {}
            try:
                found.append(_Item(call, context, _with(context, self._api.decode_request, self._read(*_body(call)))))
            except Exception as error:  # noqa: BLE001  the user's code
                _fail([call], error)
        return found

    def _answer(self, items: Sequence[_Item]) -> None:
        api = self._api
        if api.max_batch_size == 1:
            outputs = [_with(items[0].context, api.predict, items[0].decoded)]
        else:
            predicted = _with(
                [each.context for each in items], api.predict, api.batch([each.decoded for each in items])
            )
            outputs = api.unbatch(predicted)
            _check_count(api, items, outputs)
        for item, output in zip(items, outputs, strict=True):
            _reply(item.call, write(_with(item.context, api.encode_response, output)))

    def _stream(self, items: Sequence[_Item]) -> None:
        api = self._api
        batches: Iterable[Sequence[Any]]
        if api.max_batch_size == 1:
            context = items[0].context
            values = _with(context, api.encode_response, _with(context, api.predict, items[0].decoded))
            batches = ([value] for value in values)
        else:
            contexts = [each.context for each in items]
            predicted = _with(contexts, api.predict, api.batch([each.decoded for each in items]))
            batches = _with(contexts, api.encode_response, api.unbatch(predicted))
        for values in batches:
            _check_count(api, items, values)
            for item, value in zip(items, values, strict=True):
                item.call.wait_for_reader()
                if not item.call.cancelled:
                    _reply(item.call, Body(piece(value)))
            if all(each.call.cancelled for each in items):
                break

    def close(self) -> None:
        """LitServe's APIs have no end."""


class _Async:
    concurrency = _OVERLAP

    def __init__(self, api: LitAPI) -> None:
        self._api = api
        self._read = reader(api.decode_request)

    async def answer(self, calls: Sequence[Call]) -> None:
        for call in calls:
            try:
                await self._one(call)
            except Exception as error:  # noqa: BLE001  the user's code
                _fail([call], error)

    async def _one(self, call: Call) -> None:
        api = self._api
        context: dict[str, Any] = {}
        decoded = await _settled(_with(context, api.decode_request, self._read(*_body(call))))
        predicted = await _settled(_with(context, api.predict, decoded))
        encoded = await _settled(_with(context, api.encode_response, predicted))
        if not api.stream:
            _reply(call, write(encoded))
            return
        async with contextlib.aclosing(stream(encoded)) as values:
            async for value in values:
                await call.reader()
                if call.cancelled:
                    break
                _reply(call, Body(piece(value)))

    def close(self) -> None:
        """LitServe's APIs have no end."""


async def _settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _with(context: Any, step: Callable[..., Any], value: Any) -> Any:
    """Steps that have a parameter `context` get one that lasts for the request."""
    if "context" in inspect.signature(step).parameters:
        return step(value, context=context)
    return step(value)


def _body(call: Call) -> tuple[bytes, str]:
    inputs = call.inputs
    kind = inputs.get(KIND)
    return inputs[REQUEST].item(), "application/json" if kind is None else kind.item().decode("latin-1")


def _reply(call: Call, body: Body) -> None:
    shape = (1, 1) if call.request.form.model.spec.max_batch_size else (1,)
    array = np.empty(shape, dtype=object)
    array.fill(body.data)
    said: dict[str, Any] = {}
    if body.status != 200 or body.content_type != "application/json":
        said = {STATUS: body.status, KIND: body.content_type}
    if body.headers:
        said[HEADERS] = json.dumps(body.headers)
    call.reply({RESPONSE: array}, said or None)


def _fail(calls: Sequence[Call], error: Exception) -> None:
    """Exceptions that say a status are answers; what went out of a stream already cannot be taken back."""
    answer = refusal(error)
    if answer is None:
        _log.error("%s: %s", type(error).__name__, error, exc_info=error)
    for call in calls:
        if call.settled:
            continue
        if answer is None or (call.sent and call.request.form.decoupled):
            call.fail(foreign(error))
            continue
        _reply(call, answer)
        if call.request.form.decoupled:
            call.end()


def _check_count(api: LitAPI, calls: Sequence[Any], outputs: Sequence[Any]) -> None:
    if len(outputs) != len(calls):
        raise internal(
            f"{type(api).__name__}.unbatch gave {len(outputs)} outputs for a batch of {len(calls)}",
            "predict and unbatch must give one for each input of batch",
        )
