"""What a program of torch.export says of itself: all names, types and sizes, and which sizes are open."""

from __future__ import annotations

from typing import Any, Final

from conch.backend.torch.runtime import datatypes
from conch.backend.torch.signature import Argument, Result, Signature
from conch.backend.torch.trees import argument_paths, plain_name, result_paths
from conch.types.dtype import DataType
from conch.types.error import unsupported

_KINDS: Final = ("USER_INPUT", "USER_OUTPUT")


def read_signature(model: str, program: Any) -> Signature:
    """Of an `ExportedProgram`. Raises InferError for inputs and outputs that are no tensors of our types."""
    nodes = {node.name: node for node in program.graph.nodes}
    signature = program.graph_signature
    taken = [each.arg for each in signature.input_specs if each.kind.name == _KINDS[0]]
    given = [each.arg for each in signature.output_specs if each.kind.name == _KINDS[1]]
    arguments = [
        Argument(each.name, aliases=(f"INPUT__{number}", path), datatype=datatype, shape=shape)
        for number, (each, path) in enumerate(zip(taken, argument_paths(program.call_spec.in_spec), strict=True))
        for datatype, shape in (_described(model, each, nodes, "input"),)
    ]
    paths = result_paths(program.call_spec.out_spec)
    results = [
        Result(plain_name(path, number, "OUTPUT"), datatype, shape, (f"OUTPUT__{number}", path))
        for number, (each, path) in enumerate(zip(given, paths, strict=True))
        for datatype, shape in (_described(model, each, nodes, "output"),)
    ]
    return Signature(
        tuple(arguments),
        tuple(results),
        keeps_state=bool(signature.buffers_to_mutate),
        writes_inputs=bool(signature.user_inputs_to_mutate),
        rows=_rows(program, [nodes[each.name].meta["val"] for each in taken]),
    )


def _described(model: str, argument: Any, nodes: dict[str, Any], role: str) -> tuple[DataType, tuple[int, ...]]:
    """Type and shape; an open size is -1."""
    value = nodes[argument.name].meta.get("val") if argument.name in nodes else None
    datatype = datatypes().get(getattr(value, "dtype", None))
    if value is None or datatype is None:
        raise unsupported(
            f"unable to load model '{model}', {role} '{argument.name}' is {getattr(value, 'dtype', 'no tensor')}, "
            "which the inference protocol does not have",
            "export a forward that takes and returns tensors of numbers alone",
        )
    return datatype, tuple([size if isinstance(size, int) else -1 for size in value.shape])


def _rows(program: Any, values: list[Any]) -> tuple[int, int | None]:
    """What the program's guards allow of its first dimensions (`torch.export.Dim(min=..., max=...)`)."""
    fewest, most = 0, None
    for value in values:
        size = value.shape[0] if len(value.shape) else 0
        allowed = None if isinstance(size, int) else program.range_constraints.get(size.node.expr)
        if allowed is not None:
            fewest = max(fewest, int(allowed.lower))
            # Beyond a thousand millions there is no bound, only a number for it.
            upper = int(allowed.upper) if allowed.upper < 1 << 30 else None
            most = upper if most is None or (upper is not None and upper < most) else most
    return fewest, most
