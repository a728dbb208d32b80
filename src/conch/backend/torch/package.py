"""An AOTInductor package, opened in a worker process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conch.backend.torch.naming import every_argument
from conch.backend.torch.signature import Argument, Result, Signature
from conch.backend.torch.trees import argument_paths, plain_name, result_paths
from conch.types.error import internal


class Package:
    """Tensors go in and come out flat, as the package's call specification orders them."""

    def __init__(self, compiled: Any) -> None:
        from torch.utils import _pytree as pytree  # noqa: PLC0415  a worker's import

        self._loader = compiled.loader
        takes, gives = self._loader.get_call_spec()
        arguments = argument_paths(pytree.treespec_loads(takes))
        results = result_paths(pytree.treespec_loads(gives))
        self.warnings: tuple[str, ...] = ()
        self.signature = Signature(
            tuple(
                [
                    Argument(plain_name(path, number, "INPUT"), aliases=(f"INPUT__{number}", path))
                    for number, path in enumerate(arguments)
                ]
            ),
            tuple(
                [
                    Result(plain_name(path, number, "OUTPUT"), aliases=(f"OUTPUT__{number}", path))
                    for number, path in enumerate(results)
                ]
            ),
        )

    def __call__(self, arguments: Mapping[int, Any], names: Mapping[str, int]) -> list[Any]:
        # Compiled code checks nothing: what is not laid out as it expects, it reads as if it were.
        flat = [each.contiguous() for each in every_argument(arguments, self.signature)]
        return list(self._loader.run(flat))


def open_package(told: Mapping[str, Any], device: str | None) -> Package:
    """Raises InferError."""
    import torch  # noqa: PLC0415  a worker's import

    index = int(device.partition(":")[2]) if device is not None and device.startswith("cuda") else -1
    try:
        return Package(torch._inductor.aoti_load_package(told["file"], device_index=index))
    except Exception as error:  # noqa: BLE001  its errors have no common base
        raise internal(
            f"failed to load model '{told['model']}': {error}",
            "an AOTInductor package runs on the kind of machine and the release of PyTorch that made it",
        ) from None
