"""What clients may ask of the control plane."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future

import pytest

from conch.service.control import Control
from conch.types.error import InferError
from conch.types.model import IndexEntry


class Registry:
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def index(self, ready_only: bool) -> list[IndexEntry]:
        return [IndexEntry("m", state=str(ready_only))]

    def load(self, name: str, parameters: Mapping[str, str | bytes]) -> Future[None]:
        return self._note("load", name, dict(parameters))

    def unload(self, name: str, unload_dependents: bool = False) -> Future[None]:
        return self._note("unload", name, unload_dependents)

    def _note(self, *call: object) -> Future[None]:
        self.calls.append(call)
        future: Future[None] = Future()
        future.set_result(None)
        return future


def refusal(future: Future[None]) -> str:
    error = future.exception(5)
    assert isinstance(error, InferError)
    return str(error)


def test_calls_go_to_the_registry() -> None:
    """In explicit mode, good requests are passed on."""
    registry = Registry()
    control = Control(registry, "explicit")
    control.load("m", {"config": "{}", "file:1/model.py": b"x"}).result(5)
    control.unload("m", True).result(5)
    assert registry.calls == [("load", "m", {"config": "{}", "file:1/model.py": b"x"}), ("unload", "m", True)]
    assert control.index(True) == [IndexEntry("m", state="True")]


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_other_modes_refuse(mode: str) -> None:
    """Only explicit mode lets clients load and unload."""
    control = Control(Registry(), mode)
    text = "Unavailable: explicit model load / unload is not allowed if polling is enabled"
    assert refusal(control.load("m", {})) == text
    assert refusal(control.unload("m", False)) == text


@pytest.mark.parametrize(
    ("name", "parameters", "text"),
    [
        ("", {}, "Model name cannot be empty. Please enter a valid name to deploy."),
        ("..", {}, "invalid model name '..', model name must not contain path traversal characters"),
        ("m", {"foo": "x"}, "unrecognized load parameter 'foo'."),
        ("m", {"file:1/x": b""}, "Load parameter 'config' must be specified for model file override"),
        (
            "m",
            {"config": "{}", "file:../x": b""},
            "Invalid file parameter 'file:../x' with normalized path '../x' must stay within model directory.",
        ),
        ("m", {"force_reload": "perhaps"}, "Load parameter 'force_reload' must be a boolean"),
        ("m", {"config": b"{}"}, "Load parameter 'config' must be a string: the model config as JSON"),
    ],
)
def test_bad_loads_are_refused_before_anything_happens(
    name: str, parameters: dict[str, str | bytes], text: str
) -> None:
    """A request that is wrong in itself never reaches the registry."""
    registry = Registry()
    assert refusal(Control(registry, "explicit").load(name, parameters)) == f"Invalid argument: {text}"
    assert registry.calls == []
