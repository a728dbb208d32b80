"""Checks what an infer request's JSON says besides its data, and gives it the core's form.

Everything here works on plain parsed values and runs once per distinct request head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from conch.types.dtype import BY_NAME
from conch.types.error import InferError, internal, invalid, unsupported
from conch.types.request import InputHead, Parameter

_MAX_INT64: Final = (1 << 63) - 1
_MAX_UINT64: Final = (1 << 64) - 1
_SOURCES: Final = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'. But "
)

UNSET: Final = msgspec.UNSET
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


@dataclass(slots=True)
class Wishes:
    """Which outputs the client asked for and how it wants them: `kinds` says of each one named whether binary."""

    names: tuple[str, ...]
    kinds: dict[str, bool]
    default_binary: bool

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
    """How many bytes after the JSON are this input's; -1 when its data is in the JSON. Exactly one source is set."""
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
        return -1
    if sources[0] == "binary_data_size":
        try:
            return unsigned(parameters["binary_data_size"], _MAX_INT64)
        except InferError as error:
            raise _label("binary_data_size", error) from None
    raise _no_shared_memory(parameters)


def _no_shared_memory(parameters: Mapping[str, Any]) -> InferError:
    try:
        region = text(parameters["shared_memory_region"])
    except InferError as error:
        return _label("shared_memory_region", error)
    return unsupported(
        f"shared memory is not supported: region '{region}'", "send the tensor in the request, as binary data or JSON"
    )


def read_wishes(outputs: Any, default_binary: bool) -> Wishes:
    """`outputs` is the parsed member of that name, UNSET when absent."""
    names: list[str] = []
    kinds: dict[str, bool] = {}
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
            kinds[name] = _wants_binary(each.get("parameters"))
    return Wishes(tuple(names), kinds, default_binary)


def _wants_binary(parameters: Any) -> bool:
    if parameters is None:
        return False
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
    if "shared_memory_region" in parameters:
        for conflict, there in (("classification", "classification" in parameters), ("binary_data", binary)):
            if there:
                raise invalid(f"Output can't set both 'shared_memory_region' and '{conflict}'")
        raise _no_shared_memory(parameters)
    if classes:
        raise unsupported("the classification extension is not supported", "ask for the output without it")
    return binary


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
