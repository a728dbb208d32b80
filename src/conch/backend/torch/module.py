"""A torch.nn.Module out of somebody's Python file, with its weights, opened in a worker process."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conch.backend.torch.signature import Argument, Signature
from conch.types.error import InferError, internal, invalid

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Module:
    """The module in evaluation mode."""

    def __init__(self, module: Any, call: Any, warnings: tuple[str, ...]) -> None:
        self.warnings = warnings
        self._call = call
        parameters = inspect.signature(module.forward).parameters.values()
        taken = [each for each in parameters if each.kind in (*_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)]
        self._by_name = [each.kind is inspect.Parameter.KEYWORD_ONLY for each in taken]
        dictionary = len(taken) == 1 and _is_dictionary(taken[0].annotation)
        self.signature = Signature(
            ()
            if dictionary
            else tuple([Argument(each.name, required=each.default is inspect.Parameter.empty) for each in taken]),
            dictionary=dictionary,
        )

    def __call__(self, arguments: Mapping[int, Any], names: Mapping[str, int]) -> list[Any] | dict[str, Any]:
        if self.signature.dictionary:
            answer = self._call({name: arguments[index] for name, index in names.items() if index in arguments})
        else:
            count = next((n for n in range(len(self._by_name)) if n not in arguments or self._by_name[n]), None)
            takes = self.signature.arguments
            positional = [arguments[n] for n in range(len(takes) if count is None else count)]
            named = {takes[n].name: value for n, value in arguments.items() if n >= len(positional)}
            answer = self._call(*positional, **named)
        if isinstance(answer, (tuple, list)):
            return list(answer)
        if isinstance(answer, dict):
            return answer
        return [answer]


def open_module(told: Mapping[str, Any], device: str | None) -> Module:
    """Raises InferError, or whatever the file raises."""
    import torch  # noqa: PLC0415  a worker's import

    path, model = Path(told["file"]), told["model"]
    state = _weights(Path(told["weights"]), model) if told["weights"] else None
    kind, warnings = _choose(_import(path), state, path, model)
    module = kind()
    if state is not None:
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise internal(
                f"failed to load model '{model}': the weights in '{Path(told['weights']).name}' are not those of "
                f"{kind.__name__} in '{path.name}': {error}"
            ) from None
    if device is not None:
        module.to(device)
    module.eval().requires_grad_(False)
    call = module if told["compile"] is None else torch.compile(module, **told["compile"])
    return Module(module, call, warnings)


def _import(path: Path) -> Any:
    """The file as a module that can import its neighbours."""
    sys.path.append(str(path.parent))
    # Not called `model`, which is the worker's own program.
    specification = importlib.util.spec_from_file_location(f"conch_served_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module
    specification.loader.exec_module(module)
    return module


def _weights(path: Path, model: str) -> Mapping[str, Any]:
    import torch  # noqa: PLC0415  a worker's import

    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file  # noqa: PLC0415  few models need it
        except ImportError as error:
            raise invalid(
                f"failed to load model '{model}': '{path.name}' needs the package safetensors ({error})",
                "pip install safetensors",
            ) from None
        try:
            return load_file(path)  # type: ignore[no-any-return,unused-ignore]
        except Exception as error:  # noqa: BLE001  its error is of a class of its own
            raise internal(f"failed to load model '{model}': '{path.name}': {error}") from None
    try:
        # Nothing but tensors is read: a pickle may hold any code.
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  its errors have no common base
        text = str(error).partition("\n")[0]
        raise internal(
            f"failed to load model '{model}': '{path.name}' is no file of weights: {text}",
            "save the weights alone: torch.save(model.state_dict(), 'model.pt')",
        ) from None
    if isinstance(found, Mapping):
        return found
    raise internal(f"failed to load model '{model}': '{path.name}' holds a {type(found).__name__}, no state_dict")


def _choose(module: Any, state: Mapping[str, Any] | None, path: Path, model: str) -> tuple[type[Any], tuple[str, ...]]:
    """The class that is the model: the one whose weights these are, where there are several."""
    import torch  # noqa: PLC0415  a worker's import

    own = [
        each
        for _, each in sorted(vars(module).items())
        if isinstance(each, type) and issubclass(each, torch.nn.Module) and each.__module__ == module.__name__
    ]
    ready = [each for each in own if _needs_nothing(each)]
    if not ready:
        raise _no_class(own, path, model)
    if len(ready) == 1:
        return ready[0], ()
    if state is not None:
        for each in ready:
            if each().state_dict().keys() == state.keys():
                return each, ()
    names = ", ".join(each.__name__ for each in ready)
    return ready[0], (f"model '{model}': '{path.name}' has several modules ({names}), the first is served",)


def _needs_nothing(kind: type[Any]) -> bool:
    try:
        inspect.signature(kind).bind()
    except (TypeError, ValueError):
        return False
    return True


def _no_class(found: list[type[Any]], path: Path, model: str) -> InferError:
    if found:
        names = ", ".join(each.__name__ for each in found)
        return invalid(
            f"failed to load model '{model}': no torch.nn.Module in '{path.name}' can be made without arguments "
            f"(found {names})",
            "give the arguments of __init__ defaults",
        )
    return invalid(f"Cannot find a subclass of torch.nn.Module in '{path.name}' of model '{model}'")


def _is_dictionary(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", annotation) is dict or str(annotation).lower().startswith("dict[")
