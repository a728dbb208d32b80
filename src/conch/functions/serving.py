"""Runs a declared function as a Python model, in the worker process: from requests to calls and to responses."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conch.functions.call import Arrays, Call, Outputs, stream
from conch.functions.loading import load_declarations
from conch.functions.signature import read_signature


def serve(file: str | Path, function: str) -> type:
    """The `TritonPythonModel` for the model of that name declared in the file. Raises DeclarationError."""
    path = Path(file).resolve()
    found = load_declarations(path)
    declaration = next((each for each in found if each.name == function), None)
    if declaration is None:
        names = ", ".join(each.name for each in found)
        raise LookupError(f"{path}: there is no model '{function}' any more, it declares {names}")
    signature = read_signature(declaration)
    call = Call(declaration, signature, path)
    if signature.decoupled:
        return _model(_StreamModel, call)
    if signature.asynchronous:
        return _model(_CoroutineModel, call)
    return _model(_PlainModel, call)


def _model(kind: type, call: Call) -> type:
    return type("TritonPythonModel", (kind,), {"call": call})


def _read(requests: Sequence[Any]) -> list[Arrays]:
    return [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]


def _sizes(requests: Sequence[Any]) -> list[int]:
    """The rows of each request; without batching nobody asks."""
    first = [next(iter(request.inputs()), None) for request in requests]
    return [1 if tensor is None else int(tensor.shape()[0]) for tensor in first]


def _response(pb: Any, outputs: Outputs) -> Any:
    return pb.InferenceResponse([pb.Tensor(name, array) for name, array in outputs])


def _failure(pb: Any, call: Call, error: BaseException) -> Any:
    invalid, text = call.failure(error)
    code = pb.TritonError.INVALID_ARG if invalid else pb.TritonError.INTERNAL
    return pb.InferenceResponse(error=pb.TritonError(text, code))


class _PlainModel:
    """Of a plain function."""

    call: Call

    def execute(self, requests: list[Any]) -> list[Any]:
        call, pb = self.call, sys.modules["triton_python_backend_utils"]
        responses: list[Any] = [None] * len(requests)
        read = _read(requests)
        for group in call.plan(read):
            try:
                sizes = _sizes([requests[index] for index in group])
                outputs = call.together([read[index] for index in group], sizes)
                made = [_response(pb, each) for each in outputs]
            except Exception as error:  # noqa: BLE001  the user's code
                made = [_failure(pb, call, error)] * len(group)
            for index, response in zip(group, made, strict=True):
                responses[index] = response
        return responses


class _CoroutineModel:
    """Of a coroutine function: calls overlap, within a batch and between batches."""

    call: Call

    async def execute(self, requests: list[Any]) -> list[Any]:
        call = self.call
        responses: list[Any] = [None] * len(requests)
        read = _read(requests)

        async def answer(group: list[int]) -> None:
            pb = sys.modules["triton_python_backend_utils"]
            try:
                sizes = _sizes([requests[index] for index in group])
                outputs = await call.together_async([read[index] for index in group], sizes)
                made = [_response(pb, each) for each in outputs]
            except Exception as error:  # noqa: BLE001  the user's code
                made = [_failure(pb, call, error)] * len(group)
            for index, response in zip(group, made, strict=True):
                responses[index] = response

        await asyncio.gather(*[answer(group) for group in call.plan(read)])
        return responses


class _StreamModel:
    """Of a generator function: a response for each value, until the generator ends or nobody listens any more."""

    call: Call

    async def execute(self, requests: list[Any]) -> None:
        await asyncio.gather(*[self._answer(request) for request in requests])

    async def _answer(self, request: Any) -> None:
        call, pb = self.call, sys.modules["triton_python_backend_utils"]
        sender = request.get_response_sender()
        try:
            positional, named = call.arguments(call.join(_read([request]))[0])
            async with contextlib.aclosing(stream(call.function(*positional, **named))) as values:
                async for value in values:
                    if sender.is_cancelled():
                        break
                    sender.send(_response(pb, call.outputs(value)))
        except Exception as error:  # noqa: BLE001  the user's code
            sender.send(_failure(pb, call, error), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return
        sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
