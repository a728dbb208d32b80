"""What the server needs to know of a function to serve it, as plain values that cross a process boundary as JSON."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from conch.functions.declare import Batch, Declaration, Rows
from conch.functions.docs import about, input_docs
from conch.functions.signature import Signature
from conch.functions.values import Field


class TensorOutline(TypedDict):
    name: str
    datatype: str
    #: Without the batch dimension.
    dims: list[int]
    optional: bool


class Outline(TypedDict):
    """`mode`: the function is called per "request", per "row" or per "batch"."""

    name: str
    function: str
    line: int
    about: str
    #: Input -> what is said of it.
    docs: NotRequired[dict[str, str]]
    mode: str
    max_batch_size: int
    wait_us: int
    instances: int
    #: 1 for functions that are no coroutine functions.
    concurrency: int
    decoupled: bool
    inputs: list[TensorOutline]
    outputs: list[TensorOutline]


def outline(declaration: Declaration, signature: Signature) -> Outline:
    batch = declaration.batch
    overlaps = signature.asynchronous and not signature.decoupled
    return {
        "name": declaration.name,
        "function": declaration.function.__name__,
        "line": declaration.line,
        "about": about(declaration.function),
        "docs": input_docs(declaration.function, signature),
        "mode": "batch" if isinstance(batch, Batch) else "row" if isinstance(batch, Rows) else "request",
        "max_batch_size": 0 if batch is None else batch.size,
        "wait_us": 0 if batch is None else batch.wait_us,
        "instances": declaration.instances,
        "concurrency": declaration.concurrency if overlaps else 1,
        "decoupled": signature.decoupled,
        "inputs": [_tensor(field, isinstance(batch, Batch)) for field in signature.inputs],
        "outputs": [_tensor(field, isinstance(batch, Batch)) for field in signature.outputs],
    }


def _tensor(field: Field, batch: bool) -> TensorOutline:
    return {
        "name": field.name,
        "datatype": field.datatype,
        "dims": list(field.wire_dims(batch=batch)),
        "optional": field.optional,
    }
