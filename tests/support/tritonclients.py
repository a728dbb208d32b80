"""NVIDIA's four Python clients, unmodified, behind one blocking face, so that one test can ask all of them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

KINDS = ("http", "http.aio", "grpc", "grpc.aio")
_MODULES: Mapping[str, Any] = {
    "http": tritonclient.http,
    "http.aio": tritonclient.http.aio,
    "grpc": tritonclient.grpc,
    "grpc.aio": tritonclient.grpc.aio,
}
#: What each of Triton's codes is called by the HTTP and by the gRPC clients.
STATUS = {
    "NOT_FOUND": ("404", "StatusCode.NOT_FOUND"),
    "INVALID_ARG": ("400", "StatusCode.INVALID_ARGUMENT"),
    "INTERNAL": ("500", "StatusCode.INTERNAL"),
    "UNAVAILABLE": ("503", "StatusCode.UNAVAILABLE"),
    "UNSUPPORTED": ("501", "StatusCode.UNIMPLEMENTED"),
}


class Client:
    """Calls of the aio clients are run to their end on a private event loop; protobuf answers become dicts."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.is_grpc = kind.startswith("grpc")
        self._module = _MODULES[kind]
        self._loop = asyncio.new_event_loop() if kind.endswith("aio") else None
        self._client = self._run(self._make(url)) if self._loop else self._module.InferenceServerClient(url)

    async def _make(self, url: str) -> Any:
        return self._module.InferenceServerClient(url)

    def _run(self, awaitable: Any) -> Any:
        assert self._loop is not None
        return self._loop.run_until_complete(awaitable)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if self.is_grpc and "as_json" in inspect.signature(getattr(self._client, name)).parameters:
            kwargs["as_json"] = True
        answer = getattr(self._client, name)(*args, **kwargs)
        return self._run(answer) if self._loop else answer

    def infer(
        self,
        model: str,
        inputs: Mapping[str, tuple[str, np.ndarray[Any, Any]]],
        outputs: Sequence[str] = (),
        binary: bool = True,
        **options: Any,
    ) -> Any:
        """`inputs` are name -> (datatype, array). Returns the client's InferResult."""
        sent = []
        for name, (datatype, array) in inputs.items():
            tensor = self._module.InferInput(name, list(array.shape), datatype)
            if self.is_grpc:
                tensor.set_data_from_numpy(array)
            else:
                tensor.set_data_from_numpy(array, binary_data=binary)
            sent.append(tensor)
        asked: Any = None
        if outputs or not binary:
            asked = [
                self._module.InferRequestedOutput(name)
                if self.is_grpc
                else self._module.InferRequestedOutput(name, binary_data=binary)
                for name in outputs
            ]
        answer = self._client.infer(model, sent, outputs=asked, **options)
        return self._run(answer) if self._loop else answer

    def refusal(self, name: str, *args: Any, **kwargs: Any) -> tuple[str, str]:
        """The name of Triton's code and the text of the error that this call must end in."""
        try:
            answer = self.infer(*args, **kwargs) if name == "infer" else self.call(name, *args, **kwargs)
        except InferenceServerException as error:
            status = str(error.status())
            codes = [code for code, both in STATUS.items() if status in both]
            return (codes or [status])[0], error.message()
        raise AssertionError(f"{name} was answered: {answer}")

    def close(self) -> None:
        closing = self._client.close()
        if self._loop:
            self._run(closing)
            self._run(asyncio.sleep(0))
            self._loop.close()
