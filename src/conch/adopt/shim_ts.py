"""What handlers import from TorchServe (`ts`), where TorchServe is not installed: the context and the base handler."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conch.adopt.shim import offer

_LOG = logging.getLogger("ts")


class Metrics:
    """The handler's metrics: there is no place for them, so they are written to the log, at the level DEBUG."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("add_"):
            raise AttributeError(name)

        def note(*arguments: Any, **named: Any) -> Any:
            _LOG.debug("metric %s %s %s", name, arguments, named)
            return self

        return note

    def add_or_update(self, *arguments: Any, **named: Any) -> None:
        _LOG.debug("metric %s %s", arguments, named)


class Context:
    """TorchServe's context of a model, and of the requests that are handled now."""

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any],
        batch_size: int,
        gpu: str | None,
        settings: dict[str, Any],
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self.model_yaml_config = settings
        self.system_properties: dict[str, Any] = {
            "model_dir": model_dir,
            "gpu_id": gpu,
            "batch_size": batch_size,
            "server_name": "conch",
            "server_version": "0",
            "limit_max_image_pixels": True,
        }
        self.metrics = Metrics()
        self.statuses: dict[int, tuple[int, str]] = {}
        self._ids: Sequence[str] = ()

    def begin(self, ids: Sequence[str]) -> None:
        self._ids = ids
        self.statuses = {}

    @property
    def request_ids(self) -> dict[int, str]:
        return dict(enumerate(self._ids))

    def get_request_id(self, idx: int = 0) -> str:
        return self._ids[idx]

    def get_request_header(self, idx: int, key: str) -> None:
        """None: headers do not reach models."""

    def get_all_request_header(self, idx: int) -> dict[str, str]:
        return {}

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Outputs are tensors, they have no content type."""

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Responses of models have no headers."""

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.statuses[idx] = (code, phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        self.statuses = dict.fromkeys(range(len(self._ids)), (code, phrase))


class BaseHandler:
    """TorchServe's base class: handlers override what is theirs. Loads TorchScript."""

    def __init__(self) -> None:
        self.model: Any = None
        self.device: Any = None
        self.initialized = False
        self.context: Any = None
        self.manifest: Any = None
        self.mapping: Any = None

    def initialize(self, context: Context) -> None:
        import torch  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415  the handler's own library

        self.context, self.manifest = context, context.manifest
        gpu = context.system_properties["gpu_id"]
        self.device = torch.device(f"cuda:{gpu}" if gpu is not None and torch.cuda.is_available() else "cpu")
        folder = Path(context.system_properties["model_dir"])
        model = self.manifest["model"]
        if model.get("modelFile"):
            self.model = self._eager(torch, folder, model)
        else:
            self.model = torch.jit.load(  # type: ignore[no-untyped-call,unused-ignore]
                str(folder / model["serializedFile"]), map_location=self.device
            )
        self.model.eval()
        names = folder / "index_to_name.json"
        if names.is_file():
            self.mapping = json.loads(names.read_bytes())
        self.initialized = True

    def _eager(self, torch: Any, folder: Path, model: dict[str, Any]) -> Any:
        module = importlib.import_module(model["modelFile"].removesuffix(".py"))
        classes = [
            each
            for each in vars(module).values()
            if isinstance(each, type) and issubclass(each, torch.nn.Module) and each.__module__ == module.__name__
        ]
        if len(classes) != 1:
            raise ValueError(f"{model['modelFile']} must have exactly one class of a model, it has {len(classes)}")
        made = classes[0]()
        made.load_state_dict(torch.load(folder / model["serializedFile"], map_location=self.device, weights_only=True))
        return made.to(self.device)

    def preprocess(self, data: Any) -> Any:
        import torch  # noqa: PLC0415

        return torch.as_tensor(data, device=self.device)

    def inference(self, data: Any, *arguments: Any, **named: Any) -> Any:
        import torch  # noqa: PLC0415

        with torch.no_grad():
            return self.model(data.to(self.device), *arguments, **named)

    def postprocess(self, data: Any) -> Any:
        return data.tolist()

    def handle(self, data: Any, context: Context) -> Any:
        self.context = context
        return self.postprocess(self.inference(self.preprocess(data)))


def list_classes_from_module(module: Any, parent_class: type | None = None) -> list[type]:
    return [
        each
        for each in vars(module).values()
        if isinstance(each, type)
        and each.__module__ == module.__name__
        and (parent_class is None or issubclass(each, parent_class))
    ]


def install() -> None:
    """Make `import ts...` work, unless TorchServe is there."""
    modules: dict[str, dict[str, Any]] = {
        "ts": {},
        "ts.context": {"Context": Context},
        "ts.torch_handler": {},
        "ts.torch_handler.base_handler": {"BaseHandler": BaseHandler},
        "ts.utils": {},
        "ts.utils.util": {"list_classes_from_module": list_classes_from_module},
    }
    offer(modules)
