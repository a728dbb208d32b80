"""The requests that warm a model up: the config's `model_warmup`, read and checked, with their tensors' bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np

from conch.pb.model_config_pb2 import ModelConfig, ModelWarmup
from conch.types.dtype import BOOL, BY_NUMBER, BYTES, DataType
from conch.types.error import internal, invalid
from conch.types.model import ModelSpec
from conch.types.request import InputHead, RequestForm, RequestHead, id_prefix
from conch.types.tensor import Buffer, split_bytes

#: The folder of a model that files of samples lie in.
FOLDER = "warmup"
#: Synthetic data beyond this are a mistake in the dimensions.
_MOST_BYTES = 1 << 31


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample: `size` requests of this form and these bytes, executed together, `times` times."""

    name: str
    form: RequestForm
    data: tuple[Buffer, ...]
    size: int
    times: int


class Checked(Protocol):
    """What is known of a request's inputs once they are checked; see `service.checks.Inputs`."""

    @property
    def positions(self) -> tuple[int, ...]: ...
    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]: ...
    @property
    def backend_shapes(self) -> tuple[tuple[int, ...], ...]: ...


#: Checks the inputs of a client's request, with the texts that clients get. Raises InferError.
Check = Callable[[ModelSpec, RequestHead], Checked]


def samples(
    config: ModelConfig, spec: ModelSpec, seen: ModelSpec, directory: Path, check: Check, tag: object
) -> list[Sample]:
    """The samples of a complete `config`, in its order; those with batch_size 0 are left out, as in Triton.

    `spec` is what clients see and `seen` what the backend does: more inputs may follow, the controls of sequences. The
    forms' `model` is `tag`. Raises InferError for samples that cannot be made.
    """
    return [
        _sample(setting, spec, seen, directory, check, tag) for setting in config.model_warmup if setting.batch_size
    ]


def _sample(
    setting: ModelWarmup, spec: ModelSpec, seen: ModelSpec, directory: Path, check: Check, tag: object
) -> Sample:
    inputs = dict(sorted(setting.inputs.items()))
    for name, wanted in inputs.items():
        if any(dim < 0 for dim in wanted.dims):
            raise invalid(
                f"warmup setting expects all variable-size dimensions are specified for input '{name}'",
                f"replace -1 in the dims of sample '{setting.name}' by a size",
            )
    data = {name: _data(name, wanted, directory) for name, wanted in inputs.items()}
    lead = (1,) if spec.max_batch_size > 0 else ()
    own = {tensor.name for tensor in spec.inputs}
    heads = [InputHead(name, _type_name(each), (*lead, *each.dims)) for name, each in inputs.items() if name in own]
    head = RequestHead(spec.name, inputs=heads)
    found = check(spec, head)
    places = [_Input(*each) for each in zip(found.positions, found.shapes, found.backend_shapes, strict=True)]
    hidden = {tensor.name: position for position, tensor in enumerate(seen.inputs) if tensor.name not in own}
    for name, wanted in inputs.items():
        if name in hidden:
            tensor = seen.inputs[hidden[name]]
            if BY_NUMBER.get(wanted.data_type) is not tensor.datatype:
                raise invalid(
                    f"warmup sample '{setting.name}' has {_type_name(wanted)} for the control input '{name}', "
                    f"expected {tensor.datatype.name}"
                )
            places.append(_Input(hidden[name], (*lead, *wanted.dims), (*lead, *wanted.dims)))
        elif name not in own:
            raise invalid(
                f"warmup sample '{setting.name}' has an input '{name}', which model '{spec.name}' has not",
                f"inputs of the model: {', '.join(tensor.name for tensor in seen.inputs)}",
            )
    places.sort()
    datas = tuple(data[seen.inputs[place.position].name] for place in places)
    return Sample(setting.name, _form(seen, head, places, datas, tag), datas, setting.batch_size, max(1, setting.count))


class _Input(NamedTuple):
    """An input of a sample: its place in the backend's spec, its shape for clients and for the backend."""

    position: int
    shape: tuple[int, ...]
    backend_shape: tuple[int, ...]


def _form(
    spec: ModelSpec, head: RequestHead, places: Sequence[_Input], data: Sequence[Buffer], tag: object
) -> RequestForm:
    strings = [spec.inputs[place.position].datatype is BYTES for place in places]
    return RequestForm(
        head=head,
        model=tag,
        submit=_never,
        version=spec.version,
        generation=0,
        inputs=tuple(place.position for place in places),
        order=tuple(range(len(places))),
        shapes=tuple(place.shape for place in places),
        backend_shapes=tuple(place.backend_shape for place in places),
        sizes=tuple(-1 if string else len(each) for string, each in zip(strings, data, strict=True)),
        counts=tuple(math.prod(place.shape) for place in places),
        rows=1,
        batch_key=None,
        outputs=None,
        has_bytes=any(strings),
        decoupled=spec.decoupled,
    )


def _never(_: object, /) -> None:
    raise AssertionError("a sample goes straight to an instance")


def _type_name(wanted: ModelWarmup.Input) -> str:
    datatype = BY_NUMBER.get(wanted.data_type)
    return datatype.name if datatype is not None else "<invalid>"


def _data(name: str, wanted: ModelWarmup.Input, directory: Path) -> Buffer:
    datatype, count = BY_NUMBER.get(wanted.data_type), math.prod(wanted.dims)
    kind = wanted.WhichOneof("input_data_type")
    if kind is None:
        raise invalid(
            f"{id_prefix('')}warmup setting expects input '{name}' to have input_data_type set",
            "give zero_data: true, random_data: true or input_data_file",
        )
    # The synthetic form of a string is an empty one: four bytes of length.
    size = count * (datatype.size if datatype is not None and datatype is not BYTES else 4)
    if kind == "input_data_file":
        return _file(name, wanted.input_data_file, size, count, datatype is BYTES, directory)
    if size > _MOST_BYTES:
        raise invalid(f"warmup data of input '{name}' would have {size} bytes, more than {_MOST_BYTES}")
    if kind == "zero_data" or datatype is None or datatype is BYTES:
        return bytes(size)
    return _random(datatype, count)


def _random(datatype: DataType, count: int) -> bytes:
    """Any bytes, as in Triton; truth values are 0 and 1. The same at each load, so that a failure happens again."""
    raw = np.random.default_rng(0).integers(0, 256, count * datatype.size, dtype=np.uint8)
    return (raw & 1 if datatype is BOOL else raw).tobytes()


def _file(name: str, file: str, size: int, count: int, strings: bool, directory: Path) -> bytes:
    content = read_inside(directory / FOLDER, file)
    if not strings:
        if len(content) < size:
            raise invalid(
                f"{id_prefix('')}warmup setting expects {size} bytes, but the data provided from "
                f"{file}only has {len(content)} bytes"
            )
        return content[:size]
    try:
        found = len(split_bytes(content))
    except ValueError as error:
        raise invalid(
            f"warmup file '{file}' does not hold strings for input '{name}': {error}",
            "each string is its length as a little-endian 32-bit number, then its bytes",
        ) from error
    if found != count:
        raise invalid(f"warmup file '{file}' holds {found} strings for input '{name}', expected {count}")
    return content


def read_inside(folder: Path, name: str) -> bytes:
    """The file `name` of `folder`. One that lies elsewhere is refused: who may load a model may not read any file."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise invalid(f"warmup file '{name}' must lie in the model's folder '{FOLDER}'")
    try:
        return (folder / path).read_bytes()
    except OSError as error:
        raise internal(f"failed to open text file for read {folder / path}: {error.strerror}") from error
