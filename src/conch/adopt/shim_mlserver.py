"""What custom runtimes import from `mlserver`, where it is not installed: the model's base class, messages, codecs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from conch.adopt.shim import offer

NUMPY: Final = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("u2"), "UINT32": np.dtype("u4"),
    "UINT64": np.dtype("u8"), "INT8": np.dtype("i1"), "INT16": np.dtype("i2"), "INT32": np.dtype("i4"),
    "INT64": np.dtype("i8"), "FP16": np.dtype("f2"), "FP32": np.dtype("f4"), "FP64": np.dtype("f8"),
}  # fmt: skip
NAMES: Final = {kind: name for name, kind in NUMPY.items()}


@dataclass
class Parameters:
    content_type: str | None = None
    headers: dict[str, str] | None = None


@dataclass
class RequestInput:
    name: str
    shape: list[int]
    datatype: str
    data: Any
    parameters: Parameters | None = None


@dataclass
class RequestOutput:
    name: str
    parameters: Parameters | None = None


@dataclass
class ResponseOutput:
    name: str
    shape: list[int]
    datatype: str
    data: Any
    parameters: Parameters | None = None


@dataclass
class InferenceRequest:
    inputs: list[RequestInput]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[RequestOutput] | None = None


@dataclass
class InferenceResponse:
    model_name: str = ""
    outputs: list[ResponseOutput] = field(default_factory=list)
    model_version: str | None = None
    id: str | None = None
    parameters: Parameters | None = None


class _Values:
    """A dictionary's entries as attributes; what is not there is None."""

    def __init__(self, values: dict[str, Any]) -> None:
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)


class ModelSettings(_Values):
    """model-settings.json as an object."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__({**values, "parameters": _Values(values.get("parameters") or {})})


class NumpyCodec:
    ContentType = "np"

    @staticmethod
    def decode_input(request_input: RequestInput) -> np.ndarray[Any, Any]:
        if request_input.datatype == "BYTES":
            flat = np.empty(len(request_input.data), dtype=object)
            flat[:] = request_input.data
            return flat.reshape(request_input.shape)
        return np.asarray(request_input.data, NUMPY[request_input.datatype]).reshape(request_input.shape)

    @staticmethod
    def encode_output(name: str, payload: np.ndarray[Any, Any], **_: Any) -> ResponseOutput:
        if payload.dtype.kind in "OUS":
            return ResponseOutput(name, list(payload.shape), "BYTES", payload.reshape(-1).tolist())
        return ResponseOutput(name, list(payload.shape), NAMES[payload.dtype], payload.reshape(-1).tolist())

    decode = decode_input
    encode = encode_output


class StringCodec:
    ContentType = "str"

    @staticmethod
    def decode_input(request_input: RequestInput) -> list[str]:
        return [each.decode() if isinstance(each, bytes) else str(each) for each in request_input.data]

    @staticmethod
    def encode_output(name: str, payload: list[str], **_: Any) -> ResponseOutput:
        return ResponseOutput(name, [len(payload), 1], "BYTES", [each.encode() for each in payload])

    decode = decode_input
    encode = encode_output


class NumpyRequestCodec:
    ContentType = "np"

    @staticmethod
    def decode_request(request: InferenceRequest) -> np.ndarray[Any, Any]:
        return NumpyCodec.decode_input(request.inputs[0])

    @staticmethod
    def encode_response(model_name: str, payload: np.ndarray[Any, Any], **_: Any) -> InferenceResponse:
        return InferenceResponse(model_name, [NumpyCodec.encode_output("output-0", payload)])


class MLModel:
    """The base class of runtimes."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self.ready = False

    @property
    def settings(self) -> Any:
        return self._settings

    @property
    def name(self) -> str:
        return str(self._settings.name)

    @property
    def version(self) -> str | None:
        version: str | None = self._settings.parameters.version
        return version

    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        raise NotImplementedError("predict() is the runtime's to write")

    async def unload(self) -> bool:
        return True

    def decode(self, request_input: RequestInput, default_codec: Any = NumpyCodec) -> Any:
        return default_codec.decode_input(request_input)

    def decode_request(self, request: InferenceRequest, default_codec: Any = NumpyRequestCodec) -> Any:
        return default_codec.decode_request(request)

    def encode(self, payload: Any, request_output: Any, default_codec: Any = NumpyCodec) -> ResponseOutput:
        made: ResponseOutput = default_codec.encode_output(request_output.name, payload)
        return made

    def encode_response(self, payload: Any, default_codec: Any = NumpyRequestCodec) -> InferenceResponse:
        made: InferenceResponse = default_codec.encode_response(self.name, payload)
        return made


def get_model_uri(settings: Any, **_: Any) -> Any:
    """A coroutine function in MLServer, so the result is to be awaited."""

    async def found() -> str:
        return str(settings.parameters.uri)

    return found()


def install() -> None:
    """Make `import mlserver...` work, unless MLServer is there."""
    messages = {
        each.__name__: each
        for each in (Parameters, RequestInput, RequestOutput, ResponseOutput, InferenceRequest, InferenceResponse)
    }
    codecs = {each.__name__: each for each in (NumpyCodec, StringCodec, NumpyRequestCodec)}
    modules: dict[str, dict[str, Any]] = {
        "mlserver": {"MLModel": MLModel, "ModelSettings": ModelSettings},
        "mlserver.model": {"MLModel": MLModel},
        "mlserver.settings": {"ModelSettings": ModelSettings},
        "mlserver.types": messages,
        "mlserver.codecs": codecs,
        "mlserver.utils": {"get_model_uri": get_model_uri},
        "mlserver.errors": {"MLServerError": RuntimeError, "InferenceError": RuntimeError},
    }
    offer(modules)
