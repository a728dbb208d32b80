"""What TorchScript says of itself: the arguments of `forward`, and whether running it changes anything."""

from __future__ import annotations

from typing import Any, Final

from conch.backend.torch.runtime import runtime
from conch.backend.torch.signature import Argument, Holds, Signature
from conch.types.error import internal

_HOLDS: Final = {"Tensor": Holds.TENSOR, "Optional[Tensor]": Holds.TENSOR, "List[Tensor]": Holds.TENSORS,
                 "List[str]": Holds.STRINGS}  # fmt: skip


def read_signature(module: Any) -> Signature:
    """Of a loaded `ScriptModule`. Raises InferError, in Triton's words, for arguments that are no tensors."""
    taken = [each for each in module.forward.schema.arguments if each.type.kind() != "ClassType"]
    keeps_state, writes_inputs = _effects(module)
    if len(taken) == 1 and taken[0].type.kind() == "DictType":
        return Signature((), dictionary=True, keeps_state=keeps_state, writes_inputs=writes_inputs)
    arguments = []
    for number, each in enumerate(taken):
        if each.type.kind() == "DictType" and number:
            raise internal(
                "Multiple inputs of kind DictType were detected. Only a single input of type Dict(str, Tensor) is "
                "supported."
            )
        holds = _HOLDS.get(str(each.type))
        optional = each.has_default_value() or each.type.kind() == "OptionalType"
        if holds is None and not each.has_default_value():
            raise internal(
                f"An input of type '{each.type}' was detected in the model. Only a single input of type "
                "Dict(str, Tensor) or input(s) of type Tensor are supported.",
                f"give the argument '{each.name}' of forward a default, or make it a Tensor",
            )
        if holds is None:
            # Behind a number or a flag that keeps its default, nothing can be given by position.
            break
        arguments.append(Argument(each.name, holds, not optional))
    return Signature(tuple(arguments), keeps_state=keeps_state, writes_inputs=writes_inputs)


def _effects(module: Any) -> tuple[bool, bool]:
    """Whether running the module changes its own values, and whether its inputs: yes where that cannot be told."""
    try:
        graph = module.forward.graph.copy()
        runtime()._C._jit_pass_inline(graph)
        aliases = graph.alias_db()
        inputs = list(graph.inputs())[1:]
        return _changes(graph, aliases), any(aliases.has_writers(each) for each in inputs)
    except (AttributeError, RuntimeError, ValueError):
        return True, True


def _changes(block: Any, aliases: Any) -> bool:
    """Whether a value of the module's own is assigned to, or changed in place."""
    for node in block.nodes():
        if node.kind() == "prim::SetAttr":
            return True
        if node.kind() == "prim::GetAttr" and any(aliases.has_writers(each) for each in node.outputs()):
            return True
        if any(_changes(inner, aliases) for inner in node.blocks()):
            return True
    return False
