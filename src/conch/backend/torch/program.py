"""A PyTorch model that can be called with a list of tensors: TorchScript, or a program of torch.export."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from conch.backend.torch.exported import read_signature as read_exported
from conch.backend.torch.naming import every_argument
from conch.backend.torch.pickles import check_pickles
from conch.backend.torch.runtime import quiet, runtime
from conch.backend.torch.script import read_signature as read_script
from conch.backend.torch.signature import Holds, Signature
from conch.types.error import internal

_LOG: Final = logging.getLogger(__name__)


class Program(Protocol):
    """Any number of threads may call one program, unless it keeps state."""

    signature: Signature

    def __call__(self, arguments: Mapping[int, Any], names: Mapping[str, int]) -> list[Any] | dict[str, Any]:
        """`arguments`: index -> tensor or list, `names` those of the config. Results in order, or by their keys."""


class ScriptProgram:
    """TorchScript. With `optimized` constants are folded, and on CPUs weights are laid out for the kernels.

    Measured on 2 CPUs, CNN at 64x64, one thread, batches of 8: 4,345 img/s in place of 1,991.
    """

    def __init__(self, model: str, path: Path, device: str | None, *, optimized: bool) -> None:
        self._model = model
        self._path = path
        self._device = device
        module = open_script(model, path, device)
        signature = self.signature = read_script(module)
        #: The file as it is, for as long as the optimised form has not answered once.
        self._doubtful = False
        self._plain: Any = None
        # KIND_MODEL may hold several devices, and a module in training behaves as it was saved.
        if optimized and device is not None and not module.training and not signature.keeps_state:
            better = _optimise(model, module, device)
            self._doubtful = better is not module
            module = better
        self._module = module

    def __call__(self, arguments: Mapping[int, Any], names: Mapping[str, int]) -> list[Any] | dict[str, Any]:
        if self.signature.dictionary:
            values: list[Any] = [{name: arguments[index] for name, index in names.items() if index in arguments}]
        else:
            values = self._values(arguments)
        if not self._doubtful:
            return results(self._module(*values))
        return self._first(values)

    def _values(self, arguments: Mapping[int, Any]) -> list[Any]:
        count = max(arguments, default=-1) + 1
        takes = self.signature.arguments
        return [
            [arguments[index]]
            if takes[index].holds is Holds.TENSORS and index in arguments
            # One in the middle that was left out is an Optional[Tensor].
            else arguments.get(index)
            for index in range(count)
        ]

    def _first(self, values: list[Any]) -> list[Any] | dict[str, Any]:
        """Graph passes are not perfect: what the optimised form cannot run is tried as it was saved, once."""
        try:
            found = results(self._module(*values))
        except Exception as error:  # noqa: BLE001  its errors have no common base
            plain = self._plain
            if plain is None:
                # Read once, however many requests neither form can answer.
                plain = self._plain = open_script(self._model, self._path, self._device)
            found = results(plain(*values))
            _LOG.warning("model '%s' cannot run with optimized execution, it is served without: %s", self._model, error)
            self._module = plain
        self._doubtful = False
        self._plain = None
        return found


class ExportedProgram:
    """A program of torch.export: its graph is interpreted, each operator releases the GIL."""

    def __init__(self, model: str, path: Path, device: str | None) -> None:
        program = open_exported(model, path)
        if device not in (None, "cpu"):
            from torch.export.passes import move_to_device_pass  # noqa: PLC0415

            program = move_to_device_pass(program, device)
        self.signature = read_exported(model, program)
        self._specification = program.call_spec.in_spec
        self._tree = runtime().utils._pytree
        self._module = program.module()

    def __call__(self, arguments: Mapping[int, Any], names: Mapping[str, int]) -> list[Any] | dict[str, Any]:
        leaves = every_argument(arguments, self.signature)
        positional, named = self._tree.tree_unflatten(leaves, self._specification)
        return self._tree.tree_leaves(self._module(*positional, **named))  # type: ignore[no-any-return]


def results(answer: Any) -> list[Any] | dict[str, Any]:
    """What a model returned, as a list or by keys. A list of strings is one result."""
    torch = runtime()
    if isinstance(answer, torch.Tensor):
        return [answer]
    if isinstance(answer, dict):
        return answer
    if isinstance(answer, tuple) or (isinstance(answer, list) and not all(isinstance(each, str) for each in answer)):
        return list(answer)
    if isinstance(answer, list):
        return [answer]
    raise internal(
        "PyTorch execute failure: output must be of type Tensor, List[str] or Tuple containing one of these two types. "
        f"It should not be a List / Dictionary of Tensors or a Scalar (found {type(answer).__name__})"
    )


def open_script(model: str, path: Path, device: str | None) -> Any:
    """Raises InferError."""
    torch = runtime()
    try:
        with quiet():
            module = torch.jit.load(str(path), map_location=device)
    except Exception as error:  # noqa: BLE001  its errors have no common base
        raise internal(f"failed to load model '{model}': {error}") from None
    # Called with gradients once, a module cannot be called in inference mode any more.
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    if module.training:
        _LOG.warning(
            "model '%s' was saved in training mode and runs in it: dropout drops, batch normalisation learns; call "
            "model.eval() before saving",
            model,
        )
    return module


def open_exported(model: str, path: Path) -> Any:
    """Raises InferError. The program's own code, its graph, is taken as it is: who writes it is trusted."""
    torch = runtime()
    check_pickles(path, model)
    try:
        with quiet():
            return torch.export.load(str(path))
    except Exception as error:  # noqa: BLE001  its errors have no common base
        raise internal(f"failed to load model '{model}': {error}") from None


def _optimise(model: str, module: Any, device: str) -> Any:
    torch = runtime()
    try:
        with quiet(), torch.no_grad():
            frozen = torch.jit.freeze(module)
            return torch.jit.optimize_for_inference(frozen) if device == "cpu" else frozen
    except Exception as error:  # noqa: BLE001  its errors have no common base
        _LOG.info("model '%s' is not optimized: %s", model, error)
        return module
