"""Checks what an infer request's JSON says besides its data, and gives it the core's form.

Everything here works on plain parsed values and runs once per distinct request head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from conch.protocol.v2.place import BYTE_SIZE, OFFSET, REGION, Place
from conch.types.dtype import BY_NAME
from conch.types.error import InferError, internal, invalid
from conch.types.request import InputHead, Parameter

_MAX_INT64: Final = (1 << 63) - 1
_MAX_UINT64: Final = (1 << 64) - 1
_SOURCES: Final = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'. But "
)

UNSET: Final = msgspec.UNSET
#: Where an input's data is, in place of its size: in the JSON, or in a registered region.
IN_JSON: Final = -1
IN_REGION: Final = -2
RAISE_LIMIT: Final = "Use --http-max-input-size to increase the limit."


@dataclass(slots=True)
class Input:
    """One member of `inputs`, as parsed, `parameters` not looked into yet. UNSET stands for what is absent."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Any = UNSET
    data: list[Any] | msgspec.UnsetType = UNSET


@dataclass(slots=True)
class Described:
    """An infer request as parsed, `parameters` and `outputs` not looked into yet (UNSET when absent)."""

    id: str
    inputs: list[Input]
    parameters: Any
    outputs: Any


@dataclass(slots=True)
class Target:
    """What an HTTP head says of an infer request: whose it is, and where the body's JSON ends."""

    name: str
    version: str
    #: The value of Inference-Header-Content-Length; -1 without one.
    json_size: int = -1
    #: Headers that become parameters.
    forwarded: Mapping[str, str] = field(default_factory=dict)
    #: Stands for the version and those headers among the things by which a layout is remembered.
    scope: object = field(init=False)

    def __post_init__(self) -> None:
        self.scope = self.version

    def forward(self, headers: Mapping[str, str]) -> None:
        if headers:
            self.forwarded = headers
            self.scope = (self.version, tuple(headers.items()))


@dataclass(slots=True)
class Wishes:
    """Which outputs the client asked for and how it wants them: `kinds` says of each one named whether binary."""

    names: tuple[str, ...]
    kinds: dict[str, bool]
    default_binary: bool
    #: How many classes of an output are asked for; outputs that are not classified are absent.
    classes: dict[str, int] = field(default_factory=dict)
    #: Where outputs go that are not sent at all.
    places: dict[str, Place] = field(default_factory=dict)

    def binary(self, output: str) -> bool:
        return self.kinds.get(output, self.default_binary)


def _label(what: str, error: InferError) -> InferError:
    return InferError(error.code, f"Unable to parse '{what}': {error.message}")


def member(parent: Any, key: str) -> Any:
    """`parent[key]`; a parent that is no object has no members, as in Triton."""
    if not isinstance(parent, dict) or key not in parent:
        raise internal(f"attempt to access non-existing object member '{key}'")
    return parent[key]


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise internal("attempt to access JSON non-string as string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise internal("Invalid encoding in string.", "names, ids and parameters must be valid UTF-8") from None
    return value


def unsigned(value: Any, limit: int = _MAX_UINT64) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise internal("attempt to access JSON non-unsigned-integer as unsigned-integer")
    return value


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise internal("attempt to access JSON non-boolean as boolean")
    return value


def array(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise internal("attempt to access JSON non-array as array")
    return value


def describe(root: Any) -> Described:
    """A parsed request, member by member. Raises InferError with Triton's texts."""
    ident = ""
    if isinstance(root, dict) and "id" in root:
        try:
            ident = text(root["id"])
        except InferError as error:
            raise _label("id", error) from None
    try:
        found = array(member(root, "inputs"))
    except InferError as error:
        raise _label("inputs", error) from None
    inputs = [_read_input(each) for each in found]
    return Described(ident, inputs, root.get("parameters", UNSET), root.get("outputs", UNSET))


def _read_input(value: Any) -> Input:
    members = value if isinstance(value, dict) else {}
    parameters, data = members.get("parameters", UNSET), members.get("data", UNSET)
    # Triton looks for the source of the data first.
    binary_size(Input("", "", (), parameters, data))
    fields: dict[str, Any] = {}
    for key in ("name", "datatype", "shape"):
        try:
            found = member(value, key)
            fields[key] = tuple([unsigned(size) for size in array(found)]) if key == "shape" else text(found)
        except InferError as error:
            raise _label(key, error) from None
    if data is not UNSET and type(data) is not list:
        raise internal("Unable to parse 'data': attempt to access JSON non-array as array")
    return Input(**fields, parameters=parameters, data=data)


def input_head(given: Input) -> InputHead:
    """Raises InferError where a size in the shape is no size, or the type is none."""
    if given.datatype not in BY_NAME:
        raise invalid(f"invalid datatype for input {given.name}")
    for size in given.shape:
        try:
            unsigned(size, _MAX_INT64)
        except InferError as error:
            raise _label("shape", error) from None
    return InputHead(given.name, given.datatype, given.shape)


def binary_size(given: Input) -> int:
    """How many bytes after the JSON are this input's, or IN_JSON or IN_REGION. Exactly one source is set."""
    parameters = given.parameters
    if parameters is None or parameters is UNSET:
        parameters = {}
    if not isinstance(parameters, Mapping):
        raise internal("Unable to parse 'parameters': attempt to get members for non-object")
    sources = ["data"] if given.data is not UNSET else []
    sources += [key for key in ("binary_data_size", "shared_memory_region") if key in parameters]
    if len(sources) != 1:
        raise invalid(_SOURCES + ("set " + " ".join(f"'{each}'" for each in sources) if sources else "no field is set"))
    if sources[0] == "data":
        return IN_JSON
    if sources[0] == "binary_data_size":
        try:
            return unsigned(parameters["binary_data_size"], _MAX_INT64)
        except InferError as error:
            raise _label("binary_data_size", error) from None
    return IN_REGION


def read_place(parameters: Mapping[str, Any]) -> Place:
    """Where a tensor is whose parameters name a region. Without a byte size it has none, which no region accepts."""
    found: list[Any] = []
    for key, read in ((REGION, text), (OFFSET, unsigned), (BYTE_SIZE, unsigned)):
        try:
            found.append(read(parameters[key]) if key in parameters or key == REGION else 0)
        except InferError as error:
            raise _label(key, error) from None
    return Place(*found)


def read_wishes(outputs: Any, default_binary: bool) -> Wishes:
    """`outputs` is the parsed member of that name, UNSET when absent."""
    wishes = Wishes((), {}, default_binary)
    names: list[str] = []
    if outputs is not UNSET:
        try:
            found = array(outputs)
        except InferError as error:
            raise _label("outputs", error) from None
        for each in found:
            try:
                name = text(member(each, "name"))
            except InferError as error:
                raise _label("name", error) from None
            names.append(name)
            _read_wish(name, each.get("parameters"), wishes)
    wishes.names = tuple(names)
    return wishes


def _read_wish(name: str, parameters: Any, wishes: Wishes) -> None:
    """What one output's parameters say goes into `wishes`."""
    wishes.kinds[name] = False
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        raise internal("Unable to parse 'parameters': attempt to get members for non-object")
    binary, classes = False, 0
    if "classification" in parameters:
        try:
            classes = unsigned(parameters["classification"])
        except InferError as error:
            raise internal(f"Unable to set 'classification': {error.message}") from None
    if "binary_data" in parameters:
        try:
            binary = boolean(parameters["binary_data"])
        except InferError as error:
            raise _label("binary_data", error) from None
    if REGION in parameters:
        for conflict, there in (("classification", "classification" in parameters), ("binary_data", binary)):
            if there:
                raise invalid(f"Output can't set both '{REGION}' and '{conflict}'")
        wishes.places[name] = read_place(parameters)
    elif classes:
        wishes.classes[name] = classes
    wishes.kinds[name] = binary


def read_parameters(parameters: Any) -> tuple[dict[str, Parameter], bool]:
    """The request's own parameters, and whether outputs that it does not name are to be binary."""
    if parameters is UNSET:
        return {}, False
    if not isinstance(parameters, dict):
        raise internal("failed to get request params.: attempt to get members for non-object")
    kept: dict[str, Parameter] = {}
    for key, value in parameters.items():
        read = _STEERING.get(key)
        if read is None:
            kept[key] = _own_parameter(key, value)
            continue
        try:
            kept[key] = read(value)
        except InferError as error:
            raise _label(key, error) from None
    return kept, bool(kept.pop("binary_data_output", False))


def _correlation(value: Any) -> int | str:
    return unsigned(value) if type(value) is int and 0 <= value <= _MAX_UINT64 else text(value)


#: What Triton's own parameters must be.
_STEERING: Final[Mapping[str, Callable[[Any], Parameter]]] = {
    "binary_data_output": boolean,
    "priority": unsigned,
    "sequence_end": boolean,
    "sequence_id": _correlation,
    "sequence_start": boolean,
    "timeout": unsigned,
}


def _own_parameter(key: str, value: Any) -> Parameter:
    if text(key).startswith("triton_"):
        raise invalid(
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
        )
    return parameter(key, value)


def parameter(key: str, value: Any) -> Parameter:
    """A value that the model gets as it is. Raises InferError where no model can."""
    text(key)
    if type(value) is int:
        # Triton's parser holds what no 64-bit integer can as a double.
        return value if -_MAX_INT64 - 1 <= value <= _MAX_UINT64 else _wide(value)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, bool | float):
        return value
    raise invalid(f"parameter '{key}' has invalid type. It should be either 'int', 'bool', or 'string'.")


def _wide(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise internal("number too big to be stored in double") from None


def order_data(pieces: Sequence[Any], order: tuple[int, ...]) -> tuple[Any, ...]:
    """`pieces`, in the client's order, in the order of the form's inputs."""
    return tuple([pieces[place] for place in order])


def json_too_large(size: int, limit: int) -> InferError:
    return invalid(
        f"request JSON size of {size} bytes exceeds the maximum allowed input size of {limit} bytes. {RAISE_LIMIT}"
    )


def parse_json_size(value: str) -> int:
    """The number in `Inference-Header-Content-Length`. Raises InferError with Triton's texts."""
    if not value.isascii() or not value.removeprefix("-").isdigit() or len(value) > 40:
        raise invalid(f"Unable to parse Inference-Header-Content-Length, got: {value}")
    number = int(value)
    if not -(1 << 31) <= number < 1 << 31:
        raise invalid(
            "Unable to parse Inference-Header-Content-Length, value is out of range [ -2147483648, 2147483647 ], "
            f"got: {value}"
        )
    return number
