"""Runs a TorchServe handler as a Python model, in the worker process: bodies in, whatever it answers out as bytes."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from conch.adopt.shim_ts import Context, install


def serve(folder: Path) -> type:
    """The `TritonPythonModel` for the archive unpacked in `folder` (or in `archive` below it)."""
    if (folder / "archive").is_dir():
        folder = folder / "archive"
    manifest: dict[str, Any] = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_bytes())

    class TritonPythonModel:
        def initialize(self, args: dict[str, str]) -> None:
            config = json.loads(args["model_config"])
            gpu = args["model_instance_device_id"] if args["model_instance_kind"] == "GPU" else None
            settings = _settings(folder, manifest)
            self._context = Context(args["model_name"], str(folder), manifest, config["max_batch_size"], gpu, settings)
            self._handle = open_handler(folder, manifest, self._context)

        def execute(self, requests: list[Any]) -> list[Any]:
            pb = sys.modules["triton_python_backend_utils"]
            bodies: list[dict[str, Any]] = []
            sizes: list[int] = []
            ids: list[str] = []
            for request in requests:
                rows = request.inputs()[0].as_numpy().reshape(-1)
                kind = json.loads(request.parameters() or "{}").get("content_type", "")
                bodies += [{"body": _body(row, kind)} for row in rows]
                sizes.append(len(rows))
                ids += [request.request_id()] * len(rows)
            self._context.begin(ids)
            try:
                answers = self._handle(bodies, self._context)
                _check(answers, len(bodies))
            except Exception as error:  # noqa: BLE001  the handler's code
                failure = pb.InferenceResponse(error=pb.TritonError(f"{type(error).__name__}: {error}"))
                return [failure] * len(requests)
            responses = []
            begin = 0
            for size in sizes:
                responses.append(_response(pb, answers[begin : begin + size], self._context, begin))
                begin += size
            return responses

    return TritonPythonModel


def _check(answers: Any, count: int) -> None:
    if not isinstance(answers, list | tuple) or len(answers) != count:
        given = type(answers).__name__ + (f" of {len(answers)}" if hasattr(answers, "__len__") else "")
        raise TypeError(f"the handler must answer {count} requests with a list of as many, it gave {given}")


def _response(pb: Any, answers: Any, context: Context, begin: int) -> Any:
    for row in range(begin, begin + len(answers)):
        status, phrase = context.statuses.get(row, (200, ""))
        if status >= 400:
            code = pb.TritonError.INVALID_ARG if status < 500 else pb.TritonError.INTERNAL
            text = phrase or _text(answers[row - begin]).decode("utf-8", "replace")
            return pb.InferenceResponse(error=pb.TritonError(f"status {status}: {text}", code))
    array = np.empty((len(answers), 1), dtype=object)
    for index, answer in enumerate(answers):
        array[index, 0] = _text(answer)
    return pb.InferenceResponse([pb.Tensor("output", array)])


def _body(raw: bytes, kind: str) -> Any:
    return json.loads(raw) if kind.partition(";")[0].strip() == "application/json" else bytearray(raw)


def _text(answer: Any) -> bytes:
    """As TorchServe writes an answer: bytes and texts as they are, everything else as JSON."""
    if isinstance(answer, bytes | bytearray):
        return bytes(answer)
    if isinstance(answer, str):
        return answer.encode()
    return json.dumps(answer, indent=2, default=_plain).encode()


def _plain(value: Any) -> Any:
    for name in ("tolist", "item"):
        if hasattr(value, name):
            return getattr(value, name)()
    raise TypeError(f"{type(value).__name__} is no JSON")


def _settings(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    file = manifest["model"].get("configFile")
    if not file:
        return {}
    try:
        import yaml  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415  the model's environment has it or not
    except ImportError:
        logging.getLogger("ts").warning("%s is not read: PyYAML is not installed where the handler runs", file)
        return {}
    return yaml.safe_load((folder / file).read_text()) or {}


def open_handler(folder: Path, manifest: dict[str, Any], context: Context) -> Callable[[Any, Any], Any]:
    """By TorchServe's rules: a function (`handle` unless named) of the handler's file, else its one class."""
    install()
    sys.path.insert(0, str(folder))
    file, _, wanted = str(manifest["model"]["handler"]).partition(":")
    module = importlib.import_module(Path(file).name.removesuffix(".py"))
    function = getattr(module, wanted or "handle", None)
    if callable(function):
        initialize = getattr(module, "initialize", None)
        if initialize is not None:
            initialize(context)
        else:
            # TorchServe lets such a function load its model by a call without data.
            function(None, context)
        return function  # type: ignore[no-any-return]
    classes = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__]
    if len(classes) != 1:
        raise TypeError(f"{file} must have a function 'handle' or exactly one class, it has {len(classes)} classes")
    handler: Any = classes[0]()
    if hasattr(handler, "initialize"):
        handler.initialize(context)
    if hasattr(handler, "handle"):
        return handler.handle  # type: ignore[no-any-return]
    return lambda data, _context: handler.postprocess(handler.inference(handler.preprocess(data)))
