"""What a SavedModel or a GraphDef says of its inputs and outputs. Pure, but for reading the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from conch.backend.tensorflow import wire
from conch.types.error import InferError, internal, invalid

SAVED_MODEL: Final = "saved_model.pb"
_PLACEHOLDERS: Final = frozenset({"Placeholder", "PlaceholderV2", "PlaceholderWithDefault"})
#: Signatures that TensorFlow keeps for itself.
_RESERVED: Final = frozenset({"__saved_model_init_op", "__saved_model_train_op"})
_SERVING: Final = "serving_default"
_SERVE: Final = "serve"
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """`tensor` is its name in the graph, empty for what is no dense tensor. `shape` is None for an unknown rank."""

    tensor: str
    #: The number of TensorFlow's DataType.
    type: int
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Chosen:
    """One signature of one graph of a SavedModel."""

    tags: tuple[str, ...]
    signature: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]


@dataclass(frozen=True, slots=True)
class Graph:
    """A GraphDef: the names of its nodes, and what is fed by default."""

    nodes: frozenset[str]
    placeholders: Mapping[str, TensorInfo]


@dataclass(frozen=True, slots=True)
class _MetaGraph:
    tags: tuple[str, ...]
    signatures: Mapping[str, tuple[Mapping[str, TensorInfo], Mapping[str, TensorInfo]]]


def read_saved_model(model: str, folder: Path, tag: str, signature: str) -> Chosen:
    """The signature to serve: `tag` and `signature` are the operator's, empty for TensorFlow's defaults.

    Raises InferError.
    """
    path = folder / SAVED_MODEL
    if not path.is_file():
        also = " (saved_model.pbtxt is not read, save it in the binary form)" * (folder / "saved_model.pbtxt").is_file()
        raise internal(f"unable to load model '{model}', '{folder}' is no SavedModel: it has no {SAVED_MODEL}{also}")
    graphs = _read(model, path, "SavedModel", lambda data: [_meta_graph(each) for each in wire.messages(data, 2)])
    if not graphs:
        raise _unreadable(model, path, "SavedModel", "it holds no graph")
    graph = _graph(model, graphs, tag)
    name = _signature(model, graph, signature)
    inputs, outputs = graph.signatures[name]
    return Chosen(graph.tags, name, inputs, outputs)


def read_graph(model: str, path: Path) -> Graph:
    """Raises InferError."""
    if not path.is_file():
        raise internal(f"unable to load model '{model}', there is no file '{path}'")
    graph = _read(model, path, "GraphDef", _graph_def)
    if not graph.nodes:
        raise _unreadable(model, path, "GraphDef", "it has no nodes")
    return graph


def _read(model: str, path: Path, kind: str, read: Callable[[memoryview], _Made]) -> _Made:
    """What `read` makes of the file's bytes: a copy, for a mapped file that is cut meanwhile ends us."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(model, path, kind, str(error.strerror)) from error
    if not content:
        raise _unreadable(model, path, kind, "it is empty")
    try:
        return read(memoryview(content))
    except wire.WireError as error:
        raise _unreadable(model, path, kind, str(error)) from None


def _unreadable(model: str, path: Path, kind: str, why: str) -> InferError:
    return internal(
        f"unable to load model '{model}', '{path}' cannot be read as a TensorFlow {kind}: {why}",
        "the file may be truncated, or of another format",
    )


def _graph(model: str, graphs: list[_MetaGraph], tag: str) -> _MetaGraph:
    for graph in graphs:
        if (tag or _SERVE) in graph.tags:
            return graph
    if not tag:
        return graphs[0]
    shown = "; ".join([", ".join(graph.tags) or "no tags" for graph in graphs])
    raise invalid(
        f"unable to load model '{model}', parameter TF_GRAPH_TAG is '{tag}' and the SavedModel has no such graph",
        f"the tags of its graphs: {shown}",
    )


def _signature(model: str, graph: _MetaGraph, name: str) -> str:
    names = sorted(graph.signatures.keys() - _RESERVED)
    if name:
        if name in graph.signatures:
            return name
        raise invalid(
            f"unable to load model '{model}', parameter TF_SIGNATURE_DEF is '{name}' and the SavedModel has no such "
            "signature",
            f"its signatures: {', '.join(names)}",
        )
    if _SERVING in names:
        return _SERVING
    if names:
        return names[0]
    raise invalid(
        f"unable to load model '{model}', the SavedModel has no signature to serve",
        "export it with signatures, such as tf.saved_model.save(model, folder, signatures={'serving_default': ...})",
    )


def _meta_graph(data: memoryview) -> _MetaGraph:
    tags: list[str] = []
    for info in wire.messages(data, 1):
        tags += [bytes(each).decode("utf-8", "replace") for each in wire.messages(info, 4)]
    signatures = {name: (dict(_infos(content, 1)), dict(_infos(content, 2))) for name, content in wire.entries(data, 5)}
    return _MetaGraph(tuple(tags), signatures)


def _infos(signature: memoryview, number: int) -> Iterator[tuple[str, TensorInfo]]:
    for name, info in wire.entries(signature, number):
        shape: tuple[int, ...] | None = ()
        for each in wire.messages(info, 3):
            shape = _shape(each)
        yield name, TensorInfo(wire.text(info, 1), wire.whole(info, 2), shape)


def _shape(data: memoryview) -> tuple[int, ...] | None:
    if wire.whole(data, 3):
        return None
    return tuple([max(-1, wire.signed(wire.whole(dim, 1))) for dim in wire.messages(data, 2)])


def _graph_def(data: memoryview) -> Graph:
    nodes, placeholders = set(), {}
    for node in wire.messages(data, 1):
        name = wire.text(node, 1)
        nodes.add(name)
        if wire.text(node, 2) in _PLACEHOLDERS:
            attributes = dict(wire.entries(node, 5))
            shape: tuple[int, ...] | None = None
            for each in wire.messages(attributes.get("shape", memoryview(b"")), 7):
                shape = _shape(each)
            kind = wire.whole(attributes.get("dtype", memoryview(b"")), 6)
            placeholders[name] = TensorInfo(f"{name}:0", kind, shape)
    return Graph(frozenset(nodes), placeholders)
