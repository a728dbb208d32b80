"""What a worker says of the calls that it makes: their forms, told once and then known by number."""

from __future__ import annotations

import json

import msgspec

from conch.types.dtype import BY_NUMBER, BYTES
from conch.types.request import InputHead, Parameter, RequestForm, RequestHead


class CallForm(msgspec.Struct):
    """What calls that differ in their id and tensors' bytes only have in common. `version` -1: the latest."""

    model: str
    version: int
    outputs: list[str]
    correlation_id: int | str
    flags: int
    timeout: int
    parameters: str
    decoupled: bool
    inputs: list[tuple[str, int, tuple[int, ...]]]


class CallMeta(msgspec.Struct):
    """What is said of a call besides its numbers: a form that is new, lengths of BYTES inputs, whose trace it joins."""

    form: CallForm | None = None
    id: str = ""
    lengths: list[int] = []
    trace: tuple[int, int] | None = None


decode_meta = msgspec.json.Decoder(CallMeta).decode
NOTHING = CallMeta()


class Known:
    """A form that the worker has told, and the server's form for it, made again when models come and go."""

    __slots__ = ("decoupled", "form", "head", "sizes", "timeout_ns")

    def __init__(self, told: CallForm) -> None:
        parameters: dict[str, Parameter] = json.loads(told.parameters)
        if told.correlation_id not in {0, ""}:
            parameters["sequence_id"] = told.correlation_id
        for flag, name in ((1, "sequence_start"), (2, "sequence_end")):
            if told.flags & flag:
                parameters[name] = True
        if told.timeout:
            parameters["timeout"] = told.timeout
        version = "" if told.version < 0 else str(told.version)
        inputs = []
        #: Bytes of each input in the model's order of making, -1 for BYTES.
        self.sizes = []
        for name, kind, shape in told.inputs:
            datatype = BY_NUMBER[kind]
            inputs.append(InputHead(name, datatype.name, shape))
            size = datatype.size
            for length in shape:
                size *= length
            self.sizes.append(-1 if datatype is BYTES else size)
        self.head = RequestHead(told.model, version, "", inputs, told.outputs, parameters)
        self.decoupled = told.decoupled
        self.timeout_ns = told.timeout * 1000
        self.form: RequestForm | None = None
