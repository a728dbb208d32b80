"""How a TensorFlow model and a config fit together: what is filled in, what must agree. Pure.

The rules, and the texts, are those of ONNX models (spec: model-config 2.3, 4), but for what has no fixed rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from conch.backend.agree import check_config, check_type, dims_of
from conch.backend.complete import complete_config
from conch.backend.signature import Signature, Slot
from conch.backend.tensorflow.model_file import Chosen, Graph, TensorInfo
from conch.pb.model_config_pb2 import ModelConfig
from conch.types import dtype
from conch.types.dtype import DataType
from conch.types.error import InferError, invalid, unsupported

_TYPES: Final[Mapping[int, DataType]] = {
    1: dtype.FP32, 2: dtype.FP64, 3: dtype.INT32, 4: dtype.UINT8, 5: dtype.INT16, 6: dtype.INT8, 7: dtype.BYTES,
    9: dtype.INT64, 10: dtype.BOOL, 17: dtype.UINT16, 19: dtype.FP16, 22: dtype.UINT32, 23: dtype.UINT64,
}  # fmt: skip
#: Types that TensorFlow has and the protocol, or its numpy form, has not.
_OTHERS: Final = {
    8: "complex64", 11: "qint8", 12: "quint8", 13: "qint32", 14: "bfloat16", 15: "qint16", 16: "quint16",
    18: "complex128", 20: "resource", 21: "variant",
}  # fmt: skip
#: Client's name, the graph's name.
Names = list[tuple[str, str]]


def complete(config: ModelConfig, chosen: Chosen, max_batch_size: int) -> None:
    """Fill in what the config leaves open. Raises InferError."""
    for given, known in ((config.input, chosen.inputs), (config.output, chosen.outputs)):
        _fill(config, given, known)
    if config.input and config.output:
        return
    for kind, infos in (("input", chosen.inputs), ("output", chosen.outputs)):
        for name, info in sorted(infos.items()):
            if info.shape is None:
                raise invalid(
                    f"unable to autofill for '{config.name}', {kind} '{name}' of its signature "
                    f"'{chosen.signature}' has an unknown rank",
                    "write the inputs and outputs of the model into its config.pbtxt",
                )
    complete_config(config, _read(config, chosen), max_batch_size)


def check(config: ModelConfig, chosen: Chosen) -> tuple[Names, Names]:
    """The names in the graph of the config's inputs and outputs. Raises InferError where they disagree."""
    _refuse_ragged(config)
    check_config(config, _read(config, chosen))
    inputs = [(each.name, chosen.inputs[each.name].tensor) for each in config.input]
    return inputs, [(each.name, chosen.outputs[each.name].tensor) for each in config.output]


def check_graph(config: ModelConfig, graph: Graph) -> tuple[Names, Names]:
    """As `check`, for a GraphDef: the names are those of its nodes, `:<n>` for output n of one."""
    _refuse_ragged(config)
    if not config.input or not config.output:
        raise invalid(
            f"unable to autofill for '{config.name}', a GraphDef does not say what its inputs and outputs are",
            "write them into its config.pbtxt; its placeholders: " + ", ".join(sorted(graph.placeholders)),
        )
    groups: tuple[tuple[str, Any], ...] = (("input", config.input), ("output", config.output))
    for kind, given in groups:
        for each in given:
            _check_node(config, kind, each, graph)
    return [(each.name, _port(each.name)) for each in config.input], [
        (each.name, _port(each.name)) for each in config.output
    ]


def _check_node(config: ModelConfig, kind: str, entry: Any, graph: Graph) -> None:
    node = entry.name.partition(":")[0]
    if node not in graph.nodes:
        names = sorted(graph.placeholders) if kind == "input" else sorted(graph.nodes - graph.placeholders.keys())[-10:]
        shown = ", ".join(names)
        raise invalid(
            f"unexpected inference {kind} '{entry.name}', allowed {kind}s are: {shown}"
            + ("" if kind == "input" else ", ..."),
            f"{kind}s of a GraphDef are called as its nodes",
        )
    info = graph.placeholders.get(node)
    if kind == "input" and info is not None:
        check_type(config.name, kind, entry.name, entry.data_type, _datatype(config, node, info))


def _refuse_ragged(config: ModelConfig) -> None:
    for each in config.input:
        if each.allow_ragged_batch:
            raise unsupported(
                f"unable to load model '{config.name}', input '{each.name}' has allow_ragged_batch, which the "
                "tensorflow backend of this server does not support",
                "remove it, or serve the model as ONNX",
            )
        if each.optional:
            raise invalid(
                f"'optional' is set to true for input '{each.name}' while the backend model doesn't support optional "
                "input",
                "a signature needs all of its inputs",
            )


def _fill(config: ModelConfig, given: Any, known: Mapping[str, TensorInfo]) -> None:
    """Type and dims of entries that have a name alone."""
    for entry in given:
        info = known.get(entry.name)
        if info is None or info.shape is None:
            continue
        if not entry.data_type:
            entry.data_type = _datatype(config, entry.name, info).number
        if not entry.dims:
            entry.dims.extend(info.shape[1:] if config.max_batch_size > 0 else info.shape)


def _read(config: ModelConfig, chosen: Chosen) -> Signature:
    """The signature; what has no fixed rank has what the config says, which nothing contradicts."""
    written: list[Any] = [*config.input, *config.output]
    entries = {each.name: each for each in written}

    def slots(infos: Mapping[str, TensorInfo]) -> tuple[Slot, ...]:
        found = []
        for name, info in sorted(infos.items()):
            if not info.tensor:
                raise unsupported(
                    f"unable to load model '{config.name}', '{name}' of its signature '{chosen.signature}' is no dense "
                    "tensor",
                    "make it dense in the signature that you export",
                )
            shape = info.shape
            if shape is None:
                entry = entries.get(name)
                dims = [] if entry is None else dims_of(entry)
                shape = (-1, *dims) if config.max_batch_size > 0 else tuple(dims)
            found.append(Slot(name, _datatype(config, name, info), shape))
        return tuple(found)

    return Signature(slots(chosen.inputs), slots(chosen.outputs))


def _datatype(config: ModelConfig, name: str, info: TensorInfo) -> DataType:
    found = _TYPES.get(info.type)
    if found is None:
        raise _no_equivalent(config, name, info.type)
    return found


def _no_equivalent(config: ModelConfig, name: str, number: int) -> InferError:
    return unsupported(
        f"unable to load model '{config.name}', '{name}' has TensorFlow's type {_OTHERS.get(number, number)}, which "
        "has no equivalent here",
        "cast it to another type in the signature that you export, such as float32",
    )


def _port(name: str) -> str:
    return name if ":" in name else f"{name}:0"
